"""Between the messages about embeddings and scores and inference's own types."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from inference import convert
from inference.engine import ChoiceOutput
from inference.events import Finished, GenerationOrder
from naru.api.inference.v1 import generation_pb2, pooling_pb2
from naru.context import RequestContext
from naru.convert import usage_to_proto
from naru.errors import invalid_argument


def embed_order(message: pooling_pb2.EmbedRequest, context: RequestContext) -> GenerationOrder:
    """The request, as the body of /v1/embeddings. Raises NaruError INVALID_ARGUMENT or PERMISSION_DENIED."""
    kinds = {one.WhichOneof("input") for one in message.inputs}
    if len(kinds) > 1 or None in kinds:
        raise invalid_argument("inputs", "inputs must all be texts, or all be tokens.")
    inputs: list[Any] = [one.text if one.HasField("text") else list(one.tokens.token_ids) for one in message.inputs]
    body: dict[str, Any] = {"input": inputs}
    if message.HasField("dimensions"):
        body["dimensions"] = message.dimensions
    return _order(message, generation_pb2.ENDPOINT_EMBEDDINGS, body, context)


def score_order(message: pooling_pb2.ScoreRequest, context: RequestContext) -> GenerationOrder:
    """The request, as the body of /v1/score. Raises NaruError PERMISSION_DENIED."""
    body = {"queries": list(message.queries), "documents": list(message.documents)}
    return _order(message, generation_pb2.ENDPOINT_SCORE, body, context)


def embeddings_to_proto(
    order: GenerationOrder, model: str, outputs: Sequence[ChoiceOutput], finished: Finished
) -> pooling_pb2.EmbedResponse:
    """The vectors, in the order of the inputs."""
    return pooling_pb2.EmbedResponse(
        embeddings=[pooling_pb2.Embedding(values=_numbers(output.embedding)) for output in outputs],
        usage=usage_to_proto(finished.usage),
        request_id=order.request_id,
        model=model,
    )


def scores_to_proto(
    order: GenerationOrder, model: str, outputs: Sequence[ChoiceOutput], finished: Finished
) -> pooling_pb2.ScoreResponse:
    """The scores, in the order of the documents."""
    return pooling_pb2.ScoreResponse(
        scores=[output.score or 0.0 for output in outputs],
        usage=usage_to_proto(finished.usage),
        request_id=order.request_id,
        model=model,
    )


def _numbers(vector: bytes) -> Sequence[float]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def _order(
    message: pooling_pb2.EmbedRequest | pooling_pb2.ScoreRequest,
    endpoint: generation_pb2.Endpoint.ValueType,
    body: dict[str, Any],
    context: RequestContext,
) -> GenerationOrder:
    generation = generation_pb2.Generation(
        model=message.model,
        request_id=message.request_id,
        openai=generation_pb2.OpenAiInput(endpoint=endpoint, json=json.dumps(body).encode()),
    )
    return convert.order_from_proto(generation, context)
