"""/v1/embeddings, /v1/rerank and /v1/score over HTTP, with the OpenAI SDK, and what of them reaches inference."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from naru.api.inference.v1 import generation_pb2
from naru.errors import NaruError, Reason
from tests.support.edge_harness import KEY, Harness, edge_with_peers, until
from tests.support.fake_inference import MODEL, Event, accepted, delta, finished, refused

VECTORS = [(0.25, -0.5, 1.0), (0.0, 0.125, -2.0)]
RERANK = {"model": MODEL, "query": "river", "documents": ["bread", "ferry", {"text": "landing"}]}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        yield harness


def answering(*deltas: Any) -> Any:
    """The last choice first: they may end in any order."""

    async def behave(generation: Any) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(9, len(deltas))]
        yield deltas[::-1]
        yield [finished(9, 0)]

    return behave


def vectors(*wanted: tuple[float, ...]) -> Any:
    return answering(
        *(delta("", 0, choice=i, finish="stop", embedding=struct.pack("<3f", *one)) for i, one in enumerate(wanted))
    )


def scores(*wanted: float) -> Any:
    return answering(*(delta("", 0, choice=i, finish="stop", score=one) for i, one in enumerate(wanted)))


@pytest.mark.parametrize("encoding", ["float", "base64", openai.omit])
async def test_the_sdk_gets_its_vectors(edge: Harness, encoding: Any) -> None:
    """As numbers and as base64, which the SDK asks for by itself; in the order of the inputs."""
    edge.inference.behave = vectors(*VECTORS)
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=KEY, max_retries=0) as client:
        made = await client.embeddings.create(model=MODEL, input=["one", "two"], encoding_format=encoding, user="me")
    first = made.data[0].embedding
    if encoding == "base64":
        first = list(struct.unpack("<3f", base64.b64decode(first)))  # type: ignore[arg-type] # text when asked for
    assert tuple(first) == VECTORS[0]
    assert [(one.index, one.object) for one in made.data] == [(0, "embedding"), (1, "embedding")]
    assert (made.object, made.model) == ("list", MODEL)
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (9, 9)


@pytest.mark.parametrize("given", ["text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
async def test_the_body_goes_on_as_it_came(edge: Harness, given: Any) -> None:
    """All forms of `input`; reserved once with no output to speak of, and the request is in the log."""
    choices = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    edge.inference.behave = vectors(*[VECTORS[0]] * choices)
    body = {"model": MODEL, "input": given, "truncate_prompt_tokens": 5}
    async with edge.post("/v1/embeddings", body) as answer:
        assert answer.status == 200, await answer.text()
        assert len((await answer.json())["data"]) == choices
    await until(lambda: edge.accounting.records)
    (submitted,), (reservation,), (record,) = (
        edge.inference.submitted,
        edge.accounting.reserved,
        edge.accounting.records,
    )
    assert submitted.openai.endpoint == generation_pb2.ENDPOINT_EMBEDDINGS
    assert json.loads(submitted.openai.json) == body
    assert (reservation.endpoint, reservation.output_tokens) == ("/v1/embeddings", 1)
    assert reservation.input_tokens >= choices
    assert (record.endpoint, record.status) == ("/v1/embeddings", 200)


async def test_many_short_texts_are_not_estimated_as_conversations(edge: Harness) -> None:
    """What is reserved for 2,048 words is a few tokens for each, or limits would refuse what is small."""
    edge.inference.behave = vectors(*[VECTORS[0]] * 2048)
    async with edge.post("/v1/embeddings", {"model": MODEL, "input": ["word"] * 2048}) as answer:
        assert answer.status == 200
        assert len((await answer.json())["data"]) == 2048
    assert edge.accounting.reserved[0].input_tokens <= 2048 * 8


async def test_an_answer_larger_than_a_message_arrives_whole(edge: Harness) -> None:
    """Vectors of several messages, each of nearly 4 MiB."""
    vector = struct.pack("<4096f", *range(4096))

    async def behave(generation: Any) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(9, 600)]
        for start in range(0, 600, 200):
            yield [delta("", 0, choice=start + i, finish="stop", embedding=vector) for i in range(200)]
        yield [finished(9, 0)]

    edge.inference.behave = behave
    body = {"model": MODEL, "input": ["word"] * 600, "encoding_format": "base64"}
    async with edge.post("/v1/embeddings", body) as answer:
        data = (await answer.json())["data"]
    assert len(data) == 600
    assert {base64.b64decode(one["embedding"]) for one in data} == {vector}


async def test_the_best_documents_come_first(edge: Harness) -> None:
    """As many as `top_n` says, with their texts unless these are not wanted; one query and all documents reach inference."""
    edge.inference.behave = scores(0.1, 0.9, 0.5)
    async with edge.post("/v1/rerank", RERANK | {"top_n": 2, "truncate_prompt_tokens": 7}) as answer:
        assert answer.status == 200, await answer.text()
        shown = await answer.json()
    assert [(one["index"], one["relevance_score"], one["document"]["text"]) for one in shown["results"]] == [
        (1, 0.9, "ferry"),
        (2, 0.5, "landing"),
    ]
    assert shown["model"] == MODEL
    assert shown["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    submitted = edge.inference.submitted[0].openai
    assert submitted.endpoint == generation_pb2.ENDPOINT_RERANK
    assert json.loads(submitted.json) == {
        "queries": ["river"],
        "documents": ["bread", "ferry", "landing"],
        "truncate_prompt_tokens": 7,
    }
    async with edge.post("/v2/rerank", RERANK | {"return_documents": False}) as answer:
        results = (await answer.json())["results"]
    assert [set(one) for one in results] == [{"index", "relevance_score"}] * 3
    assert {reservation.endpoint for reservation in edge.accounting.reserved} == {"/v1/rerank"}


@pytest.mark.parametrize(
    "sides",
    [
        {"queries": "a", "documents": ["b", "c"]},
        {"text_1": ["a"], "text_2": ["b", "c"]},
        {"data_1": ["a"], "data_2": ["b", "c"]},
        {"queries": ["a"], "items": ["b", "c"]},
    ],
)
async def test_scores_by_all_their_names(edge: Harness, sides: dict[str, Any]) -> None:
    """The names that vLLM's server takes the two sides by; scores in the order of the documents."""
    edge.inference.behave = scores(0.25, -0.5)
    async with edge.post("/v1/score", {"model": MODEL, **sides}) as answer:
        assert answer.status == 200, await answer.text()
        shown = await answer.json()
    assert shown["data"] == [
        {"index": 0, "object": "score", "score": 0.25},
        {"index": 1, "object": "score", "score": -0.5},
    ]
    assert json.loads(edge.inference.submitted[0].openai.json) == {"queries": ["a"], "documents": ["b", "c"]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("embeddings", {"input": "a", "model": None}, "model"),
        ("embeddings", {}, "input"),
        ("embeddings", {"input": None}, "input"),
        ("embeddings", {"input": ""}, "input"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": ["a", ""]}, "input"),
        ("embeddings", {"input": [[]]}, "input"),
        ("embeddings", {"input": ["a", 1]}, "input"),
        ("embeddings", {"input": [-1]}, "input"),
        ("embeddings", {"input": 5}, "input"),
        ("embeddings", {"input": ["a"] * 2049}, "input"),
        ("embeddings", {"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ("embeddings", {"input": "a", "encoding_format": 1}, "encoding_format"),
        ("embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("embeddings", {"input": "a", "dimensions": "64"}, "dimensions"),
        ("embeddings", {"input": "a", "user": 1}, "user"),
        ("embeddings", {"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
        ("embeddings", {"input": "a", "endianness": "big"}, "endianness"),
        ("embeddings", {"messages": []}, "messages"),
        ("rerank", RERANK | {"query": ""}, "query"),
        ("rerank", RERANK | {"query": "\ud800"}, None),
        ("rerank", {"documents": ["a"]}, "query"),
        ("rerank", RERANK | {"documents": []}, "documents"),
        ("rerank", RERANK | {"documents": ["a"] * 2048}, "documents"),
        ("rerank", RERANK | {"top_n": -1}, "top_n"),
        ("score", {}, "queries"),
        ("score", {"text_1": "a"}, "text_2"),
        ("score", {"queries": ["a", "b"], "documents": ["c"]}, "queries"),
        ("score", {"queries": "a", "documents": [""]}, "documents"),
    ],
)
async def test_wrong_bodies_name_their_field(edge: Harness, path: str, body: dict[str, Any], param: str | None) -> None:
    """A 400 before anybody is asked."""
    async with edge.post(f"/v1/{path}", {"model": MODEL} | body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param
    assert edge.accounting.reserved == []


async def test_what_the_model_cannot_do_is_the_models_fault(edge: Harness) -> None:
    """The engine's refusal is a 400 that names `model`, and what was reserved is given back."""

    async def behave(generation: Any) -> AsyncIterator[Sequence[Event]]:
        yield [refused(NaruError(Reason.NOT_SUPPORTED, "It makes no embeddings.", metadata={"field": "model"}))]

    edge.inference.behave = behave
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=MODEL, input="a")
    assert caught.value.param == "model"
    await until(lambda: edge.accounting.released)


async def test_a_client_that_hangs_up_cancels(edge: Harness) -> None:
    """The request is cancelled at inference, with all its inputs."""
    asked = asyncio.Event()

    async def behave(generation: Any) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(9, 2)]
        asked.set()
        await asyncio.Event().wait()

    edge.inference.behave = behave
    asking = asyncio.ensure_future(edge.post("/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}).__aenter__())
    await asked.wait()
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: edge.inference.cancelled)


async def test_an_idempotency_key_answers_again(edge: Harness) -> None:
    """As for what generates: the outcome is kept under the key."""
    edge.inference.behave = vectors(VECTORS[0])
    headers = {"Idempotency-Key": "once"}
    async with edge.post("/v1/embeddings", {"model": MODEL, "input": "a"}, headers=headers) as answer:
        assert answer.status == 200
    await until(lambda: edge.accounting.kept)
    assert b"embedding" in edge.accounting.kept[0].outcome
