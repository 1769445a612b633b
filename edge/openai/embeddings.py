"""Requests and answers of /v1/embeddings."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from edge.generation import Delta
from edge.openai.answers import AnswerOptions
from edge.openai.requests import OpenAiRequest, UsageOptions, check_model_name, decode
from naru.errors import NaruError, Reason, invalid_argument
from naru.money import format_money
from naru.prompt_estimate import estimate_input_tokens
from naru.usage import Usage

MOST_INPUTS = 2048
"""As many as OpenAI takes."""
_FORMATS = ("float", "base64")
_OUTPUT_TOKENS = 1
"""There are none; but none at all would be understood as output of unknown length."""


class _Embeddings(msgspec.Struct):
    model: str | None = None
    input: str | list[str | int | list[int]] | msgspec.UnsetType = msgspec.UNSET
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
    embed_dtype: str | None = None
    endianness: str | None = None
    usage: UsageOptions | None = None
    messages: msgspec.Raw = msgspec.Raw()


_DECODER = msgspec.json.Decoder(_Embeddings)


def parse_embeddings(body: bytes, *, stream: bool | None = None) -> OpenAiRequest:
    """Reads a body of /v1/embeddings. Never streams. Raises NaruError naming the field that is wrong."""
    request = decode(_DECODER, body)
    model = check_model_name(request.model)
    if bytes(request.messages) and request.input is msgspec.UNSET:
        raise _not_supported("messages", "'messages' are not supported; send texts or token ids as 'input'.")
    inputs = _inputs(request.input)
    written = request.encoding_format or "float"
    if written not in _FORMATS:
        raise invalid_argument("encoding_format", "Invalid value for 'encoding_format': expected 'float' or 'base64'.")
    if request.dimensions is not None and request.dimensions < 1:
        raise invalid_argument("dimensions", "Invalid value for 'dimensions': expected an integer of at least 1.")
    if request.embed_dtype not in (None, "float32"):
        raise _not_supported("embed_dtype", "'embed_dtype' other than 'float32' is not supported.")
    if request.endianness not in (None, "native", "little"):
        raise _not_supported("endianness", "'endianness' other than 'little' is not supported.")
    return pooling_request(
        model,
        body,
        inputs,
        choices=len(inputs),
        include_cost=bool(request.usage and request.usage.include),
        encoding_format=written,
    )


def pooling_request(
    model: str, body: bytes, inputs: Sequence[str | Sequence[int]], *, choices: int, include_cost: bool, **shown: Any
) -> OpenAiRequest:
    """A request that generates nothing. `shown`: what decides how its answer looks."""
    return OpenAiRequest(
        model=model,
        stream=False,
        include_usage=True,
        continuous_usage=False,
        include_cost=include_cost,
        input_tokens=estimate_input_tokens(inputs),
        output_tokens=_OUTPUT_TOKENS,
        choices=choices,
        token_ids=False,
        tokens_as_ids=False,
        body=body,
        repeated=shown,
    )


def _inputs(given: str | list[str | int | list[int]] | msgspec.UnsetType) -> list[str | list[int]]:
    if isinstance(given, msgspec.UnsetType):
        raise invalid_argument("input", "Missing required parameter: 'input'.")
    if isinstance(given, str):
        given = [given]
    texts = [one for one in given if isinstance(one, str)]
    ids = [one for one in given if isinstance(one, int)]
    lists = [one for one in given if isinstance(one, list)]
    if len(given) not in (len(texts), len(ids), len(lists)):
        raise invalid_argument("input", "Invalid 'input': texts, token ids and lists of these cannot be mixed.")
    inputs: list[str | list[int]] = [*texts, *([ids] if ids else lists)]
    if not all(inputs) or not inputs:
        raise invalid_argument("input", "Invalid 'input': it must not be empty, nor hold anything empty.")
    check_count("input", len(inputs))
    if (ids and min(ids) < 0) or any(min(one) < 0 for one in lists):
        raise invalid_argument("input", "Invalid 'input': token ids are at least 0.")
    return inputs


def check_count(field: str, count: int) -> None:
    """Raises NaruError INVALID_ARGUMENT when a request has more inputs than one may have."""
    if count > MOST_INPUTS:
        raise invalid_argument(
            field, f"Invalid '{field}': {count} inputs are too many; at most {MOST_INPUTS} may be sent."
        )


def pooling_usage(usage: Usage, cost: int | None) -> dict[str, Any]:
    """`usage` as OpenAI shows it where nothing is generated. `cost`: as `edge.openai.answers.usage_object`."""
    shown: dict[str, Any] = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
    if cost is not None:
        shown["cost"] = msgspec.Raw(format_money(cost).encode())
    return shown


class EmbeddingsAnswer:
    """Collects vectors, each written down as it comes: thousands at once would hold up everybody."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._base64 = options.repeated["encoding_format"] == "base64"
        self._items = [b""] * options.choices

    def add(self, deltas: Iterable[Delta]) -> None:
        """Takes what one step brought."""
        for delta in deltas:
            shown = base64.b64encode(delta.embedding).decode() if self._base64 else _numbers(delta.embedding)
            item = {"index": delta.choice_index, "object": "embedding", "embedding": shown}
            self._items[delta.choice_index] = msgspec.json.encode(item)

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The list of embeddings."""
        options = self._options
        head = {"id": options.answer_id, "object": "list", "created": options.created, "model": options.model}
        tail = {"usage": pooling_usage(usage, cost)}
        return b'%s,"data":[%s],%s' % (
            msgspec.json.encode(head)[:-1],
            b",".join(self._items),
            msgspec.json.encode(tail)[1:],
        )


def _numbers(vector: bytes) -> Sequence[float]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def _not_supported(field: str, message: str) -> NaruError:
    return NaruError(Reason.NOT_SUPPORTED, message, metadata={"field": field})


def answer_id(event_id: str) -> str:
    """The id of the answer to the request of this event."""
    return "embd-" + event_id.replace("-", "")
