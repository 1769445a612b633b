"""Embed and Score over real gRPC, and the usage that they leave, with an engine that a test speaks for."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inference.engine import ChoiceOutput
from naru.api.accounting.v1 import usage_event_pb2
from naru.api.inference.v1 import generation_pb2, inference_service_pb2_grpc, pooling_pb2
from naru.client import ServiceClient
from naru.errors import NaruError, Reason
from naru.identity import ServiceName
from tests.support.edge_harness import until
from tests.support.inference_service import InferenceService, generation, inference_service, submit
from tests.support.scripted_engine import ScriptedEngine

VECTOR = (0.5, -0.25)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def service(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[InferenceService]:
    async with inference_service(tmp_path, engine) as running:
        yield running


async def embed(client: ServiceClient, *texts: str, **fields: Any) -> pooling_pb2.EmbedResponse:
    stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
    inputs = [pooling_pb2.EmbedInput(text=text) for text in texts]
    return await client.call(stub.Embed, pooling_pb2.EmbedRequest(inputs=inputs, **fields), timeout=10)


async def score(client: ServiceClient, **fields: Any) -> pooling_pb2.ScoreResponse:
    stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
    return await client.call(stub.Score, pooling_pb2.ScoreRequest(**fields), timeout=10)


async def speak(engine: ScriptedEngine, **fields: Any) -> None:
    """Ends the only choice of the last request once the engine has it."""
    await until(lambda: engine.submitted)
    engine.submitted[-1].ended.add(0)
    engine.submitted[-1].sink(ChoiceOutput(0, "", 0, finish_reason="stop", **fields))


async def test_a_vector_and_its_event(service: InferenceService, engine: ScriptedEngine) -> None:
    """A direct caller gets its vector, and is billed the prompt tokens once, and nothing generated."""
    key, principal = service.new_key()
    async with service.client(key=key) as client:
        asking = asyncio.create_task(embed(client, "ferry", request_id="mine"))
        await speak(engine, embedding=struct.pack("<2f", *VECTOR))
        answer = await asking
    assert tuple(answer.embeddings[0].values) == VECTOR
    assert (answer.request_id, answer.model) == ("mine", "small")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 0)
    assert b'"ferry"' in engine.submitted[0].request.openai_json
    await until(lambda: any(event.evidence == usage_event_pb2.EVIDENCE_FINAL for event in service.events))
    (event,) = (event for event in service.events if event.evidence == usage_event_pb2.EVIDENCE_FINAL)
    assert (event.endpoint, event.principal.key_id) == ("/v1/embeddings", principal.key_id)
    assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (7, 0)
    assert event.outcome == usage_event_pb2.OUTCOME_COMPLETED
    reservation = service.accounting.reservations[0]
    assert (reservation.endpoint, reservation.output_tokens) == ("/v1/embeddings", 1)


async def test_a_score(service: InferenceService, engine: ScriptedEngine) -> None:
    """Scores come back in order, under their own endpoint."""
    key, _ = service.new_key()
    async with service.client(key=key) as client:
        asking = asyncio.create_task(score(client, queries=["river"], documents=["ferry"]))
        await speak(engine, score=0.75)
        assert list((await asking).scores) == [0.75]
    assert service.accounting.reservations[0].endpoint == "/v1/score"


async def test_a_cancelled_call_ends_in_the_engine(service: InferenceService, engine: ScriptedEngine) -> None:
    """The engine hears of it, and the request is metered as aborted."""
    key, _ = service.new_key()
    async with service.client(key=key) as client:
        asking = asyncio.create_task(embed(client, "ferry"))
        await until(lambda: engine.submitted)
        asking.cancel()
        await asyncio.wait([asking])
    await until(lambda: engine.submitted[0].cancelled)
    await until(lambda: any(event.outcome == usage_event_pb2.OUTCOME_ABORTED for event in service.events))


async def test_what_the_edge_reserved_is_given_back_when_it_hangs_up(
    service: InferenceService, engine: ScriptedEngine
) -> None:
    """Large inputs come by a call of their own, whose end tells the edge nothing; nothing was billed yet."""
    engine.prepare_gate.clear()
    body = generation_pb2.OpenAiInput(endpoint=generation_pb2.ENDPOINT_EMBEDDINGS, json=b'{"input": "a"}')
    order = generation(5, openai=body)
    async with service.generate(order, service=ServiceName.EDGE):
        await until(lambda: engine.prepared)
    await until(lambda: service.accounting.released)
    assert [ref.event_id for ref in service.accounting.released] == [order.event_id]
    assert service.events == []


@pytest.mark.parametrize(
    ("texts", "reason", "field"),
    [
        ([], Reason.INVALID_ARGUMENT, "input"),
        ([""], Reason.INVALID_ARGUMENT, "input"),
        (["a"] * 2049, Reason.INVALID_ARGUMENT, "input"),
    ],
)
async def test_wrong_requests(service: InferenceService, texts: list[str], reason: Reason, field: str) -> None:
    """Refused by name of the field before anything is reserved."""
    key, _ = service.new_key()
    async with service.client(key=key) as client:
        with pytest.raises(NaruError) as caught:
            await embed(client, *texts)
    assert (caught.value.reason, caught.value.metadata["field"]) == (reason, field)
    assert service.accounting.reservations == []


async def test_texts_and_tokens_cannot_be_mixed(service: InferenceService) -> None:
    """One request asks for one kind."""
    key, _ = service.new_key()
    tokens = pooling_pb2.EmbedInput(tokens=pooling_pb2.EmbedTokens(token_ids=[1]))
    async with service.client(key=key) as client:
        stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
        request = pooling_pb2.EmbedRequest(inputs=[tokens, pooling_pb2.EmbedInput(text="a")])
        with pytest.raises(NaruError) as caught:
            await client.call(stub.Embed, request, timeout=10)
    assert caught.value.metadata["field"] == "inputs"


async def test_a_model_that_generates_makes_no_embeddings(tmp_path: Path) -> None:
    """The refusal names the model's field; nothing is journalled."""
    body = generation_pb2.OpenAiInput(endpoint=generation_pb2.ENDPOINT_EMBEDDINGS, json=b'{"input": "a"}')
    async with inference_service(tmp_path) as simulated, simulated.session() as session:
        await session.send(submit(1, generation(1, openai=body)))
        frames = await session.read_until(lambda frames: frames != [])
    error = frames[0].refused.error
    assert dict(error.metadata) == {"field": "model"}
    assert simulated.events == []
