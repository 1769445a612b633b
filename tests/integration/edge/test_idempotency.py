"""`Idempotency-Key` over HTTP: what the edge tells accounting, and what it answers when something was made before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.outcomes import MAX_OUTCOME_BYTES
from naru.api.accounting.v1 import quota_service_pb2
from naru.api.inference.v1 import generation_pb2
from naru.convert import error_to_proto
from naru.errors import NaruError, Reason, unavailable
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until
from tests.support.fake_accounting import refuse
from tests.support.fake_inference import MODEL, Event, accepted, delta, finished, refused

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
TEXT = {"model": MODEL, "prompt": "The capital of France is"}
ANSWERED = quota_service_pb2.OUTCOME_FATE_ANSWERED
TOO_LARGE = quota_service_pb2.OUTCOME_FATE_TOO_LARGE
FAILED = quota_service_pb2.OUTCOME_FATE_FAILED
KEYED = {"Idempotency-Key": "order 7/a"}
"""A key with a blank and a slash in it."""


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        yield harness


async def kept(edge: Harness) -> quota_service_pb2.KeepOutcomeRequest:
    """The one fate that accounting was told."""
    await until(lambda: edge.accounting.kept)
    (told,) = edge.accounting.kept
    return told


def replay(edge: Harness, outcome: bytes) -> None:
    """From now on accounting says that everything was made before."""

    def decide(item: quota_service_pb2.Reservation) -> quota_service_pb2.ReserveResult:
        replay = quota_service_pb2.Replay(outcome=outcome)
        return quota_service_pb2.ReserveResult(event_id=item.event_id, attempt=item.attempt, replay=replay)

    edge.accounting.decide = decide


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", TEXT),
        ("/v1/completions", TEXT | {"stream": True}),
        ("/api/chat", CHAT),
        ("/chat/completions", CHAT),
    ],
)
async def test_an_answer_is_kept_and_given_again(edge: Harness, path: str, body: dict[str, Any]) -> None:
    """What the client was sent is kept, and sent again byte for byte: nothing is generated, and headers say so."""
    async with edge.post(path, body, headers=KEYED | {"X-Request-Id": "first"}) as answer:
        first, headers = await answer.read(), answer.headers
    told, (item,) = await kept(edge), edge.accounting.reserved
    assert (told.event_id, told.key, told.fate) == (item.event_id, "order 7/a", ANSWERED)
    assert told.principal == item.principal
    assert item.principal.key_id == PRINCIPAL.key_id
    replay(edge, told.outcome)
    async with edge.post(path, body, headers=KEYED | {"X-Request-Id": "second"}) as answer:
        assert (answer.status, await answer.read()) == (200, first)
        assert answer.headers["Content-Type"] == headers["Content-Type"]
        assert answer.headers["X-Naru-Replayed"] == "true"
        assert answer.headers["X-Naru-Original-Request-Id"] == "first"
        assert answer.headers["X-Request-Id"] == "second"
    assert "X-Naru-Replayed" not in headers
    assert len(edge.inference.submitted) == 1
    await until(lambda: len(edge.accounting.records) == 2)
    assert [record.status for record in edge.accounting.records] == [200, 200]
    assert len(edge.accounting.kept) == 1
    assert not edge.accounting.released


async def test_what_makes_two_requests_the_same(edge: Harness) -> None:
    """Body, endpoint and whether it streams decide; by which name the endpoint was called does not."""
    asked = [
        ("/v1/chat/completions", CHAT),
        ("/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"n": 1}),
        ("/chat/stream", CHAT),
        ("/v1/completions", TEXT),
    ]
    for path, body in asked:
        async with edge.post(path, body, headers=KEYED) as answer:
            assert answer.status == 200
            await answer.read()
    digests = [item.idempotency.body_digest for item in edge.accounting.reserved]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert {len(digest) for digest in digests} == {32}


async def test_without_a_key_nothing_is_kept(edge: Harness) -> None:
    """Requests without the header are as they were."""
    for stream in (False, True):
        async with edge.post("/v1/chat/completions", CHAT | {"stream": stream}) as answer:
            await answer.read()
    await until(lambda: len(edge.accounting.records) == 2)
    assert not any(item.HasField("idempotency") for item in edge.accounting.reserved)
    assert not edge.accounting.kept


@pytest.mark.parametrize("headers", [{"Idempotency-Key": ""}, {"Idempotency-Key": "x" * 256}, {"Idempotency-Key": "é"}])
async def test_a_wrong_key_is_refused(edge: Harness, headers: dict[str, str]) -> None:
    """A key that is empty, too long or not ASCII is a 400 that names the header."""
    async with edge.post("/v1/chat/completions", CHAT, headers=headers) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (400, "Idempotency-Key")
    assert not edge.accounting.reserved


async def test_two_keys_are_refused(edge: Harness) -> None:
    """Two headers of the name are a 400 too, not a choice."""
    headers = [("Authorization", f"Bearer {KEY}"), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    async with edge.http.post(edge.url + "/v1/chat/completions", json=CHAT, headers=headers) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize(
    ("reason", "retry_after", "code", "headers"),
    [
        (Reason.IDEMPOTENCY_CONFLICT, None, "idempotency_key_reused", {"X-Should-Retry": "false"}),
        (Reason.IDEMPOTENCY_IN_FLIGHT, 1.0, "idempotency_key_in_use", {"Retry-After": "1", "Retry-After-Ms": "1000"}),
        (Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT, None, "idempotency_outcome_not_kept", {"X-Should-Retry": "false"}),
    ],
)
async def test_the_key_of_another_request(
    edge: Harness, reason: Reason, retry_after: float | None, code: str, headers: dict[str, str]
) -> None:
    """A 409 says why, and whether to ask again; the key stays with the request that has it."""
    error = NaruError(reason, "No.", metadata={"field": "Idempotency-Key"}, retry_after=retry_after)
    edge.accounting.decide = lambda item: refuse(item, error)
    async with edge.post("/v1/chat/completions", CHAT, headers=KEYED) as answer:
        assert answer.status == 409
        assert (await answer.json())["error"] | {"message": ""} == {
            "message": "",
            "type": "invalid_request_error",
            "param": "Idempotency-Key",
            "code": code,
        }
        assert {name: answer.headers[name] for name in headers} == headers
    await until(lambda: edge.accounting.records)
    assert not edge.accounting.kept
    assert not edge.accounting.released
    assert not edge.inference.submitted


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_too_large_to_keep(edge: Harness, stream: bool) -> None:
    """Past 256 KiB the client gets its answer, and accounting hears that there is none to give again."""

    async def much(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        for tokens in range(1, 9):
            yield [delta("x" * (MAX_OUTCOME_BYTES // 8), tokens)]
        yield [delta("", 9, finish="stop"), finished(completion_tokens=9)]

    edge.inference.behave = much
    async with edge.post("/v1/chat/completions", CHAT | {"stream": stream}, headers=KEYED) as answer:
        assert answer.status == 200
        assert len(await answer.read()) > MAX_OUTCOME_BYTES
    told = await kept(edge)
    assert (told.fate, told.outcome) == (TOO_LARGE, b"")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_frees_its_key(edge: Harness, stream: bool) -> None:
    """Nobody was there for the answer: the request may be made again."""

    async def endless(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        for tokens in range(1, 10_000):
            yield [delta("x", tokens)]
            await asyncio.sleep(0.01)

    edge.inference.behave = endless
    asking = asyncio.create_task(
        edge.post("/v1/chat/completions", CHAT | {"stream": stream}, headers=KEYED).__aenter__()
    )
    await until(lambda: edge.inference.submitted)
    if stream:
        (await asking).close()
    else:
        asking.cancel()
    assert (await kept(edge)).fate == FAILED


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_frees_its_key(edge: Harness, stream: bool) -> None:
    """An engine that fails, before or in the middle of the answer, leaves the key free."""

    async def broken(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(), delta("x", 1)]
        yield [finished(error=error_to_proto(unavailable("inference")))]

    edge.inference.behave = broken
    async with edge.post("/v1/chat/completions", CHAT | {"stream": stream}, headers=KEYED) as answer:
        assert answer.status == (200 if stream else 503)
        await answer.read()
    assert (await kept(edge)).fate == FAILED


async def test_a_refusal_of_the_engine_frees_the_key(edge: Harness) -> None:
    """What inference refuses gives the reservation back, and the key with it."""

    async def no(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [refused(NaruError(Reason.INVALID_ARGUMENT, "No."))]

    edge.inference.behave = no
    async with edge.post("/v1/chat/completions", CHAT, headers=KEYED) as answer:
        assert answer.status == 400
    assert (await kept(edge)).fate == FAILED
    await until(lambda: edge.accounting.released)


async def test_a_second_reservation_has_the_key_too(edge: Harness) -> None:
    """When the prompt is larger than its estimate, the exact reservation is of the same event and key."""
    asked = 0

    async def exact(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        nonlocal asked
        asked += 1
        if asked == 1:
            yield [refused(NaruError(Reason.INVALID_ARGUMENT, "More."), prompt_tokens=900)]
        else:
            yield [accepted(), delta("x", 1, finish="stop"), finished(completion_tokens=1)]

    edge.inference.behave = exact
    async with edge.post("/v1/chat/completions", CHAT, headers=KEYED) as answer:
        assert answer.status == 200
    first, second = edge.accounting.reserved
    assert (first.event_id, first.idempotency) == (second.event_id, second.idempotency)
    assert (await kept(edge)).fate == ANSWERED


async def test_accounting_that_was_away_is_told_later(edge: Harness) -> None:
    """A fate that could not be told at once is told when accounting is back."""
    refusals = 2

    def fail(_: quota_service_pb2.KeepOutcomeRequest) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise unavailable("accounting")

    edge.accounting.keeping = fail
    async with edge.post("/v1/chat/completions", CHAT, headers=KEYED) as answer:
        body = await answer.json()
    told = await kept(edge)
    assert refusals == 0
    assert json.dumps(body["choices"][0]["message"]["content"]).encode() in told.outcome


async def test_many_replays_at_once(edge: Harness) -> None:
    """Answers of the largest size, to many at once, are not too much for one message between the services."""

    async def much(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(), delta("x" * 250_000, 1, finish="stop"), finished(completion_tokens=1)]

    edge.inference.behave = much
    async with edge.post("/v1/chat/completions", CHAT, headers=KEYED) as answer:
        first = await answer.read()
    replay(edge, (await kept(edge)).outcome)

    async def again() -> bytes:
        async with edge.post("/v1/chat/completions", CHAT, headers=KEYED) as answer:
            return await answer.read()  # type: ignore[no-any-return] # a client response

    assert set(await asyncio.gather(*(again() for _ in range(40)))) == {first}
