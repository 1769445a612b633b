"""Tokenize and Detokenize over real gRPC, with the simulated engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from naru.api.common.v1 import error_pb2, error_reason_pb2
from naru.api.inference.v1 import generation_pb2, inference_service_pb2_grpc, tokenization_pb2
from naru.client import ServiceClient
from naru.errors import NaruError, Reason
from naru.identity import Scopes, ServiceName
from tests.support.inference_service import InferenceService, generation, inference_service, submit

CONVERSATION = [{"role": "user", "content": "A quiet river landing"}]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[InferenceService]:
    async with inference_service(tmp_path) as running:
        yield running


async def tokenize(client: ServiceClient, **fields: Any) -> tokenization_pb2.TokenizeResponse:
    stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
    return await client.call(stub.Tokenize, tokenization_pb2.TokenizeRequest(**fields), timeout=10)


async def detokenize(client: ServiceClient, ids: list[int], **fields: Any) -> str:
    stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
    request = tokenization_pb2.DetokenizeRequest(token_ids=ids, **fields)
    return (await client.call(stub.Detokenize, request, timeout=10)).text


async def test_a_conversation_has_the_tokens_that_its_answer_is_billed_for(service: InferenceService) -> None:
    """However it is written, the count is the prompt tokens of a generation from the same messages."""
    body = json.dumps({"messages": CONVERSATION, "return_token_strs": True}).encode()
    message = generation_pb2.ChatMessage(role="user", content="A quiet river landing")
    async with service.client(service=ServiceName.EDGE) as client, service.session() as session:
        by_json = await tokenize(client, json=body, model="small")
        typed = await tokenize(client, conversation=tokenization_pb2.Conversation(messages=[message]))
        chat = generation_pb2.OpenAiInput(endpoint=generation_pb2.ENDPOINT_CHAT_COMPLETIONS, json=body)
        await session.send(submit(1, generation(1, openai=chat)))
        frames = await session.read_until(lambda frames: frames != [])
    assert frames[0].accepted.prompt_tokens == len(by_json.token_ids) == len(typed.token_ids) == 8
    assert by_json.token_ids == typed.token_ids
    assert "".join(by_json.token_strings[4:]) == "A quiet river landing"
    assert list(typed.token_strings) == []
    assert by_json.context_tokens == 8192


async def test_a_text_there_and_back(service: InferenceService) -> None:
    """Text becomes ids and ids become the text."""
    async with service.client(service=ServiceName.EDGE) as client:
        ids = (await tokenize(client, text="ferry river landing")).token_ids
        assert await detokenize(client, list(ids)) == "ferry river landing"
        assert await detokenize(client, []) == ""


async def test_a_direct_caller_is_counted_and_bills_nothing(service: InferenceService) -> None:
    """A key's question reserves no prompt tokens and is released again, so that only its request counts."""
    key, principal = service.new_key()
    async with service.client(key=key) as client:
        await tokenize(client, text="ferry")
        await detokenize(client, [0])
    first, second = service.accounting.reservations
    assert (first.endpoint, second.endpoint) == ("/tokenize", "/detokenize")
    assert first.principal.key_id == principal.key_id
    assert (first.input_tokens, first.output_tokens) == (0, 1)
    assert [ref.event_id for ref in service.accounting.released] == [first.event_id, second.event_id]
    assert service.events == []


async def test_the_edge_has_counted_its_callers(service: InferenceService) -> None:
    """Its questions reserve nothing here."""
    async with service.client(service=ServiceName.EDGE) as client:
        await tokenize(client, text="ferry")
    assert service.accounting.reservations == []


async def test_a_limit_and_a_scope_hold(service: InferenceService) -> None:
    """A spent limit and a model that the key may not use are refused."""
    other, _ = service.new_key(scopes=Scopes(models=("other",)))
    async with service.client(key=other) as client:
        with pytest.raises(NaruError) as caught:
            await tokenize(client, text="ferry")
    assert caught.value.reason is Reason.PERMISSION_DENIED
    key, _ = service.new_key()
    service.accounting.refusal = error_pb2.Error(
        reason=error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED, message="Too many requests."
    )
    async with service.client(key=key) as client:
        with pytest.raises(NaruError) as caught:
            await tokenize(client, text="ferry")
    assert caught.value.reason is Reason.RATE_LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({}, Reason.INVALID_ARGUMENT, "input"),
        ({"text": ""}, Reason.INVALID_ARGUMENT, "text"),
        ({"json": b"{"}, Reason.INVALID_ARGUMENT, "body"),
        ({"json": b"{}"}, Reason.INVALID_ARGUMENT, "prompt"),
        ({"json": b'{"prompt": ["a", "b"]}'}, Reason.INVALID_ARGUMENT, "prompt"),
        ({"json": b'{"messages": []}'}, Reason.INVALID_ARGUMENT, "messages"),
        ({"text": "ferry", "model": "none"}, Reason.MODEL_NOT_FOUND, None),
        ({"text": "x" * 600_000}, Reason.PAYLOAD_TOO_LARGE, None),
    ],
)
async def test_wrong_questions(
    service: InferenceService, fields: dict[str, Any], reason: Reason, field: str | None
) -> None:
    """Each says which field is wrong."""
    async with service.client(service=ServiceName.EDGE) as client:
        with pytest.raises(NaruError) as caught:
            await tokenize(client, **fields)
    assert caught.value.reason is reason
    assert caught.value.metadata.get("field") == field


async def test_wrong_tokens(service: InferenceService) -> None:
    """Tokens that are none of the model's, or too many of them, are refused."""
    async with service.client(service=ServiceName.EDGE) as client:
        for ids in ([4_000_000_000], [0] * 300_000):
            with pytest.raises(NaruError) as caught:
                await detokenize(client, ids)
            assert caught.value.metadata == {"field": "tokens"}
