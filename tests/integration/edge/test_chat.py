"""Chat over HTTP: what a client sees when all goes well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from naru.api.accounting.v1 import price_pb2
from naru.api.inference.v1 import generation_pb2
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until
from tests.support.fake_accounting import grant
from tests.support.fake_inference import MODEL, Event, accepted, delta, finished

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path, model_aliases=("gpt-4o-mini=test-model",)) as harness:
        yield harness


async def test_sdk_gets_an_answer(edge: Harness) -> None:
    """The OpenAI SDK, unchanged, gets a whole answer with exact usage."""
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY) as client:
        answer = await client.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content == "Paris it is."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    assert answer.model == MODEL


async def test_sdk_streams(edge: Harness) -> None:
    """The OpenAI SDK streams: role first, text in pieces, a finish reason, then usage because it was asked for."""
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Paris it is."
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_completions_stream_and_whole(edge: Harness) -> None:
    """The older completions endpoint answers the SDK both ways."""
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY) as client:
        whole = await client.completions.create(model=MODEL, prompt="The capital of France is")
        stream = await client.completions.create(model=MODEL, prompt="The capital of France is", stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
    assert whole.choices[0].text == "Paris it is."
    assert "".join(pieces) == "Paris it is."
    assert len(pieces) > 1
    assert edge.inference.submitted[0].openai.endpoint == generation_pb2.ENDPOINT_COMPLETIONS


async def test_several_choices(edge: Harness) -> None:
    """With n=2 both choices come back, each with its own text, whole and streamed."""

    async def two(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(choices=2), delta("a", 1), delta("x", 1, choice=1)]
        yield [delta("b", 2, finish="stop"), delta("y", 2, choice=1, finish="length"), finished(completion_tokens=4)]

    edge.inference.behave = two
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY) as client:
        whole = await client.chat.completions.create(**CHAT, n=2)
        stream = await client.chat.completions.create(**CHAT, n=2, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [choice.message.content for choice in whole.choices] == ["ab", "xy"]
    assert [choice.finish_reason for choice in whole.choices] == ["stop", "length"]
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "ab", 1: "xy"}


async def test_what_inference_and_accounting_are_told(edge: Harness) -> None:
    """The body goes on untouched; reservation and submission name the same event, principal and models."""
    body = {**CHAT, "model": "gpt-4o-mini", "max_tokens": 5, "n": 2, "unheard_of": {"z": 1, "a": 12345678901234567890}}
    raw = json.dumps(body, indent=1).encode()
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "my-request.1"}
    async with edge.http.post(edge.url + "/v1/chat/completions", data=raw, headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["X-Request-Id"] == "my-request.1"
        assert (await answer.json())["model"] == MODEL
    generation, reservation = edge.inference.submitted[0], edge.accounting.reserved[0]
    assert generation.openai.json == raw
    assert generation.event_id == reservation.event_id
    assert generation.principal.key_id == reservation.principal.key_id == PRINCIPAL.key_id
    assert (generation.requested_model, generation.model) == ("gpt-4o-mini", MODEL)
    assert (reservation.requested_model, reservation.served_model) == ("gpt-4o-mini", MODEL)
    assert (reservation.output_tokens, reservation.choices) == (10, 2)
    assert reservation.input_tokens == generation.reserved_prompt_tokens > 0
    assert generation.request_id == reservation.request_id == "my-request.1"
    assert 580 < generation.timeout.seconds <= 600
    assert reservation.client_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "stream", "streams"),
    [
        ("/api/chat", None, True),
        ("/api/chat", False, False),
        ("/chat/stream", None, True),
        ("/chat/completions", None, False),
        ("/api/chat/completions", None, False),
        ("/api/chat/completions", True, True),
    ],
)
async def test_other_names(edge: Harness, path: str, stream: bool | None, streams: bool) -> None:
    """The earlier gateways' names answer, and those that always streamed still do."""
    async with edge.post(path, CHAT | ({} if stream is None else {"stream": stream})) as answer:
        assert answer.status == 200
        assert answer.content_type == ("text/event-stream" if streams else "application/json")
        text = await answer.text()
    assert text.endswith("data: [DONE]\n\n") is streams
    await until(lambda: edge.accounting.records)
    assert edge.accounting.records[0].endpoint == "/v1/chat/completions"


async def test_models(edge: Harness) -> None:
    """Models and their aliases are listed, and one can be asked for by name."""
    async with edge.get("/v1/models") as answer:
        listed = await answer.json()
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} == {MODEL, "gpt-4o-mini"}
    async with edge.get(f"/v1/models/{MODEL}") as answer:
        model = await answer.json()
    assert (model["max_model_len"], model["owned_by"], model["root"], model["parent"]) == (2048, "naru", MODEL, None)
    assert model["permission"][0]["allow_sampling"] is True
    async with edge.get("/v1/models/gpt-4o-mini") as answer:
        assert (await answer.json())["root"] == MODEL
    async with edge.get("/v1/models/none/such") as answer:
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "model_not_found"


async def test_large_input_travels_alone(edge: Harness) -> None:
    """A body over 256 KiB goes by a call of its own, and is answered like any other."""
    body = {**CHAT, "messages": [{"role": "user", "content": "x" * 300_000}], "stream": True}
    async with edge.post("/v1/chat/completions", body) as answer:
        assert answer.status == 200
        assert "Paris" in await answer.text()
    assert len(edge.inference.large) == 1


async def test_a_client_of_http_1_0(edge: Harness) -> None:
    """It is told nothing in chunks, which it would not know; the stream ends with the connection."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(version=aiohttp.HttpVersion10) as old,
        old.post(f"{edge.url}/v1/chat/completions", json=CHAT | {"stream": True}, headers=headers) as answer,
    ):
        assert "Transfer-Encoding" not in answer.headers
        text = await answer.text()
    assert text.startswith("data: {")
    assert text.endswith("\n\ndata: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in text.split("\n") if line)


async def test_silence_is_filled(tmp_path: Path) -> None:
    """A silent stream gets comments, which keep proxies from closing it."""
    heard = asyncio.Event()

    async def slow(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        await heard.wait()
        yield [delta("late", 1, finish="stop"), finished()]

    async with edge_with_peers(tmp_path, keep_alive_seconds=0.1) as edge:
        edge.inference.behave = slow
        async with edge.post("/v1/chat/completions", CHAT | {"stream": True}) as answer:
            for _ in range(2):
                await answer.content.readuntil(b": keep-alive\n\n")
            heard.set()
            text = await answer.text()
    assert '"late"' in text


PRICES = price_pb2.UnitPrices(input_million=10**9, cached_input_million=5 * 10**8, output_million=2 * 10**9, request=7)
# 7 prompt tokens, 4 of them cached, and 3 generated.
COST = "0.000011007"


async def test_cost(edge: Harness) -> None:
    """A whole answer tells its cost in a header, and in its usage when asked; a stream in its last chunk."""
    edge.accounting.decide = lambda reservation: grant(reservation, prices=PRICES)
    asked = {**CHAT, "usage": {"include": True}}
    async with edge.post("/v1/chat/completions", CHAT) as answer:
        assert answer.headers["X-Naru-Cost"] == COST
        assert "cost" not in (await answer.json())["usage"]
    async with edge.post("/v1/chat/completions", asked, headers={"Origin": "https://a.example"}) as answer:
        assert answer.headers["X-Naru-Cost"] == COST
        assert f'"cost":{COST}}}' in await answer.text()
    async with edge.post("/v1/chat/completions", {**asked, "stream": True}) as answer:
        assert "X-Naru-Cost" not in answer.headers
        chunks = (await answer.text()).split("\n\n")
        assert f'"cost":{COST}}}' in chunks[-3]
        assert chunks[-2] == "data: [DONE]"
    assert all(b"usage" not in generation.openai.json for generation in edge.inference.submitted)
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY) as client:
        whole = await client.completions.create(
            model=MODEL, prompt="The capital of France is", extra_body={"usage": {"include": True}}
        )
    assert whole.usage is not None
    assert whole.usage.model_extra == {"cost": float(COST)}


async def test_cost_without_a_price(edge: Harness) -> None:
    """A model that nobody set a price for has no header, and costs nothing to whoever asks."""
    async with edge.post("/v1/chat/completions", {**CHAT, "usage": {"include": True}}) as answer:
        assert "X-Naru-Cost" not in answer.headers
        assert (await answer.json())["usage"]["cost"] == 0
