"""What a client sees when the answer is no, and that nothing stays reserved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from naru import api_key
from naru.api.accounting.v1 import limit_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.api.inference.v1 import generation_pb2
from naru.convert import duration_to_proto
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Scopes
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until
from tests.support.fake_accounting import grant, refuse
from tests.support.fake_inference import MODEL, Event, accepted, delta, finished, refused

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        yield harness


def limit(kind: Any, window: Any, most: int, left: int, seconds: float) -> limit_pb2.LimitState:
    return limit_pb2.LimitState(
        scope=limit_pb2.LIMIT_SCOPE_KEY,
        kind=kind,
        window=window,
        limit=most,
        remaining=left,
        reset_delay=duration_to_proto(seconds),
    )


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"Authorization": "Bearer sk-naru-nonsense"}, "invalid_api_key"),
        ({"Authorization": f"Bearer {KEY[:-1]}x"}, "invalid_api_key"),
        ({"X-Api-Key": "sk-naru-nonsense"}, "invalid_api_key"),
        ({"Authorization": "Basic abc"}, None),
    ],
)
async def test_bad_credentials_cost_no_call(edge: Harness, headers: dict[str, str], code: str | None) -> None:
    """Missing and malformed keys are 401 in OpenAI's shape, and no service hears of them."""
    async with edge.http.post(edge.url + PATH, json=CHAT, headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        error = (await answer.json())["error"]
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert edge.auth.asked == []
    assert edge.inference.submitted == []


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key", "Api-Key"])
async def test_unknown_key(edge: Harness, header: str) -> None:
    """A well-formed key that authsvc does not know is 401, in whichever header it comes; a known one works."""
    unknown = api_key.format_key("zzzzzzzzzzzz", "q" * 43)
    prefix = "Bearer " if header == "Authorization" else ""
    async with edge.http.post(edge.url + PATH, json=CHAT, headers={header: prefix + unknown}) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "invalid_api_key"
    assert edge.accounting.reserved == []
    async with edge.http.post(edge.url + PATH, json=CHAT, headers={header: prefix + KEY}) as answer:
        assert answer.status == 200


async def test_known_key_is_asked_about_once(edge: Harness) -> None:
    """The second request with a key asks nobody whose it is."""
    for _ in range(2):
        async with edge.post(PATH, CHAT) as answer:
            assert answer.status == 200
    assert edge.auth.asked == [KEY]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{nonsense", None, "JSON"),
        (b"[]", None, "object"),
        (b'{"messages":[]}', "model", "you must provide a model parameter"),
        (b'{"model":"test-model"}', "messages", "Missing required parameter"),
        (b'{"model":"test-model","messages":"hi"}', "messages", "array"),
        (b'{"model":"test-model","messages":[],"stream":"yes"}', "stream", "boolean"),
        (b'{"model":"test-model","messages":[],"n":0}', "n", "between 1 and 128"),
        (b'{"model":"test-model","messages":[],"max_tokens":0}', "max_tokens", "between 1"),
        (b'{"model":"test-model","messages":[],"stream_options":{}}', "stream_options", "stream"),
    ],
)
async def test_malformed_requests(edge: Harness, body: bytes, param: str | None, words: str) -> None:
    """A body that the edge cannot decide on is a 400 that names the field, and reserves nothing."""
    async with edge.http.post(edge.url + PATH, data=body, headers={"Authorization": f"Bearer {KEY}"}) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert edge.accounting.reserved == []


async def test_unknown_model(edge: Harness) -> None:
    """A model nobody serves is 404 in OpenAI's words, before anything is reserved."""
    async with edge.post(PATH, CHAT | {"model": "gpt-5"}) as answer:
        assert answer.status == 404
        error = (await answer.json())["error"]
    assert error["message"] == "The model `gpt-5` does not exist or you do not have access to it."
    assert error["code"] == "model_not_found"
    assert edge.accounting.reserved == []


async def test_scopes(edge: Harness) -> None:
    """A key for other models sees 404 and an empty list; one for other endpoints sees 403."""
    edge.auth.principals[KEY] = replace(PRINCIPAL, scopes=Scopes(models=("other-*",)))
    async with edge.post(PATH, CHAT) as answer:
        assert answer.status == 404
    async with edge.get("/v1/models") as answer:
        assert (await answer.json())["data"] == []
    other = api_key.format_key("otherOTHER12", "o" * 43)
    edge.auth.principals[other] = replace(PRINCIPAL, scopes=Scopes(endpoints=("/v1/models",)))
    async with edge.post(PATH, CHAT, headers={"Authorization": f"Bearer {other}"}) as answer:
        assert answer.status == 403
        assert (await answer.json())["error"]["type"] == "permission_error"
    async with edge.get("/v1/models", headers={"Authorization": f"Bearer {other}"}) as answer:
        assert answer.status == 200


async def test_rate_limit(edge: Harness) -> None:
    """A spent limit is 429 with the time to wait and where the limits stand; the SDK raises RateLimitError."""
    limits = (
        limit(limit_pb2.LIMIT_KIND_REQUESTS, limit_pb2.LIMIT_WINDOW_MINUTE, 10, 0, 11.2),
        limit(limit_pb2.LIMIT_KIND_REQUESTS, limit_pb2.LIMIT_WINDOW_HOUR, 100, 90, 360),
        limit(limit_pb2.LIMIT_KIND_INPUT_TOKENS, limit_pb2.LIMIT_WINDOW_DAY, 1000, 900, 0.012),
    )
    error = NaruError(
        Reason.RATE_LIMIT_EXCEEDED, "Too many requests.", metadata={"kind": "requests"}, retry_after=11.15
    )
    edge.accounting.decide = lambda reservation: refuse(reservation, error, limits)
    async with edge.post(PATH, CHAT) as answer:
        assert answer.status == 429
        headers = answer.headers
        assert (await answer.json())["error"] == {
            "message": "Too many requests.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    assert headers["Retry-After"] == "12"
    assert headers["Retry-After-Ms"] == "11150"
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "11.2s"
    assert headers["x-ratelimit-remaining-tokens"] == "900"
    assert headers["x-ratelimit-reset-tokens"] == "12ms"
    assert headers["X-RateLimit-Limit-Hour"] == "100"
    assert headers["X-RateLimit-Remaining-Minute"] == "0"
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**CHAT)
    assert edge.inference.submitted == []
    assert edge.accounting.released == []


@pytest.mark.parametrize("body", [CHAT, CHAT | {"stream": True}], ids=["whole", "stream"])
async def test_answers_tell_where_limits_stand(edge: Harness, body: dict[str, Any]) -> None:
    """Those that are granted too, as headers of a stream before its first byte."""
    limits = (
        limit(limit_pb2.LIMIT_KIND_REQUESTS, limit_pb2.LIMIT_WINDOW_MINUTE, 10, 4, 11.2),
        limit(limit_pb2.LIMIT_KIND_OUTPUT_TOKENS, limit_pb2.LIMIT_WINDOW_HOUR, 1000, 900, 60),
        limit(limit_pb2.LIMIT_KIND_REQUESTS, limit_pb2.LIMIT_WINDOW_HOUR, 100, 90, 360),
    )
    edge.accounting.decide = lambda reservation: grant(reservation, limits=limits)
    async with edge.post(PATH, body) as answer:
        assert answer.status == 200
        found = {name.lower(): value for name, value in answer.headers.items() if "ratelimit" in name.lower()}
        await answer.read()
    assert found == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "11.2s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "1m0s",
        "x-ratelimit-limit-minute": "10",
        "x-ratelimit-remaining-minute": "4",
        "x-ratelimit-limit-hour": "100",
        "x-ratelimit-remaining-hour": "90",
    }


async def test_request_larger_than_the_limit_is_not_retried(edge: Harness) -> None:
    """Where waiting does not help the SDK is told not to try again."""
    error = NaruError(Reason.REQUEST_EXCEEDS_LIMIT, "Too large.")
    edge.accounting.decide = lambda reservation: refuse(reservation, error)
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY, max_retries=3) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**CHAT)
    assert len(edge.accounting.reserved) == 1


async def test_reserves_again_with_the_exact_figure(edge: Harness) -> None:
    """A prompt larger than its estimate is reserved again, same event and attempt, and then answered."""

    async def exact(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        if generation.reserved_prompt_tokens < 5_000:
            yield [refused(NaruError(Reason.REQUEST_EXCEEDS_LIMIT, "Larger than reserved."), 5_000)]
        else:
            yield [accepted(5_000), delta("ok", 1, finish="stop"), finished(5_000, 1)]

    edge.inference.behave = exact
    edge.accounting.decide = lambda reservation: grant(reservation, cap=4096)
    async with edge.post(PATH, CHAT) as answer:
        assert answer.status == 200
        assert (await answer.json())["usage"]["prompt_tokens"] == 5_000
    first, second = edge.accounting.reserved
    assert (first.event_id, first.attempt, first.revision) == (second.event_id, 0, 0)
    assert (second.attempt, second.revision, second.input_tokens) == (0, 1, 5_000)
    assert [generation.output_token_cap for generation in edge.inference.submitted] == [4096, 4096]
    assert edge.accounting.released == []


async def test_refused_by_inference(edge: Harness) -> None:
    """What the engine refuses is a real 400 also for a stream, and the reservation is given back."""

    async def no(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [refused(invalid_argument("temperature", "temperature must be at most 2."))]

    edge.inference.behave = no
    async with edge.post(PATH, CHAT | {"stream": True, "temperature": 9}) as answer:
        assert answer.status == 400
        assert answer.content_type == "application/json"
        assert (await answer.json())["error"]["param"] == "temperature"
    await until(lambda: edge.accounting.released)
    assert edge.accounting.released == [(edge.accounting.reserved[0].event_id, 0)]


async def test_accounting_away(edge: Harness) -> None:
    """Without accounting nothing is admitted: 503 that says to come back."""
    await edge.accounting.kill()
    async with edge.post(PATH, CHAT) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert (await answer.json())["error"]["code"] == "service_unavailable"
    assert edge.inference.submitted == []


async def test_a_reservation_that_is_not_answered(edge: Harness) -> None:
    """Asked again as the same event for two seconds; then 503, nothing is submitted, and what may be held is given back."""
    edge.accounting.answering.clear()
    async with edge.post(PATH, CHAT) as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "service_unavailable"
    await until(lambda: edge.accounting.released)
    (event_id,) = {reservation.event_id for reservation in edge.accounting.reserved}
    assert edge.accounting.released == [(event_id, 0)]
    assert edge.inference.submitted == []
    edge.accounting.answering.set()
    async with edge.post(PATH, CHAT) as answer:
        assert answer.status == 200


async def test_accounting_away_and_admitted(tmp_path: Path) -> None:
    """An operator may choose that requests go on while accounting is away; what they cost is not known then, and not said."""
    async with edge_with_peers(tmp_path, admit_without_accounting=True) as edge:
        await edge.accounting.kill()
        async with edge.post(PATH, CHAT | {"usage": {"include": True}}) as answer:
            assert answer.status == 200
            assert "X-Naru-Cost" not in answer.headers
            assert set((await answer.json())["usage"]) >= {"prompt_tokens", "completion_tokens"}
            assert "cost" not in (await answer.json())["usage"]


async def test_inference_away(edge: Harness) -> None:
    """With no replica up: 503, nothing reserved, and /health names the culprit."""
    await edge.inference.kill()
    await until_status(edge, 503)
    async with edge.post(PATH, CHAT) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
    async with edge.get("/v1/models") as answer:
        assert answer.status == 503
    assert edge.accounting.reserved == []
    async with edge.http.get(edge.url + "/health") as answer:
        states = (await answer.json())["dependencies"]
    assert states["authsvc"] == states["accounting"] == "ok"
    assert states[f"inference 127.0.0.1:{edge.inference.port}"] != "ok"


async def test_too_many_at_once(tmp_path: Path) -> None:
    """Above the concurrent requests of the process the answer is 503, and the slot comes free again."""
    gate = asyncio.Event()

    async def wait(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        await gate.wait()
        yield [accepted(), delta("ok", 1, finish="stop"), finished()]

    async with edge_with_peers(tmp_path, max_concurrent_requests=1) as edge:
        edge.inference.behave = wait
        first = asyncio.create_task(status_of(edge))
        await until(lambda: edge.inference.submitted)
        async with edge.post(PATH, CHAT) as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "overloaded"
        gate.set()
        assert await first == 200
        assert await status_of(edge) == 200


async def test_request_records(edge: Harness) -> None:
    """Every API request leads to one record, refused ones too, in batches; health checks lead to none."""
    assert await status_of(edge) == 200
    async with edge.post(PATH, CHAT | {"model": "gpt-5"}) as answer:
        assert answer.status == 404
    async with edge.http.post(edge.url + PATH, json=CHAT) as answer:
        assert answer.status == 401
    await until(lambda: len(edge.accounting.records) == 3)
    by_status = {record.status: record for record in edge.accounting.records}
    assert set(by_status) == {200, 404, 401}
    good = by_status[200]
    assert good.event_id == edge.accounting.reserved[0].event_id
    assert good.principal.key_id == PRINCIPAL.key_id
    assert good.endpoint == PATH
    assert 0 < good.first_byte_us <= good.duration_us
    assert good.request_bytes > 10
    assert good.response_bytes > 100
    assert good.finish_reason == "stop"
    assert by_status[404].reason == error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND
    assert by_status[404].requested_model == "gpt-5"
    assert not by_status[401].HasField("principal")


async def status_of(edge: Harness) -> int:
    async with edge.post(PATH, CHAT) as answer:
        await answer.read()
        status: int = answer.status
        return status


async def until_status(edge: Harness, status: int) -> None:
    async def health() -> int:
        async with edge.http.get(edge.url + "/health") as answer:
            return answer.status

    async with asyncio.timeout(20):
        while await health() != status:
            await asyncio.sleep(0.02)
