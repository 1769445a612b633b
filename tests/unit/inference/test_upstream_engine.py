"""The upstream engine by itself: what only a fine look at its connections and its patience can show."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain, cycle, repeat
from typing import Any

import pytest
import structlog
from aiohttp import web

from inference.config import InferenceConfig
from inference.engine import ChoiceOutput, EngineRequest, InputKind, Sampling
from inference.upstream_engine import UpstreamEngine
from inference.upstream_errors import BROKEN, TOO_MUCH
from inference.upstream_settings import UpstreamEngineConfig
from naru.config import ConfigError, describe, load
from naru.errors import NaruError, Reason
from naru.lifecycle import open_many_files
from naru.testing.redis_server import free_ports
from naru.usage import Accuracy, Usage
from tests.support.edge_harness import until
from tests.support.upstream import SECRET, USAGE, FakeUpstream, chunk, fake_upstream, gained, whole


def config_of(url: str, **fields: Any) -> UpstreamEngineConfig:
    """Of one model."""
    return UpstreamEngineConfig(url, {"ours": "theirs"}, api_key=SECRET, **fields)


@asynccontextmanager
async def engine_of(config: UpstreamEngineConfig) -> AsyncIterator[UpstreamEngine]:
    """A started engine."""
    engine = UpstreamEngine(config, structlog.get_logger())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.shutdown(1)


def asked(stream: bool = True, **fields: Any) -> EngineRequest:
    """A chat."""
    return EngineRequest(
        **{"kind": InputKind.CHAT, "model": "ours", "stream": stream, "messages": (("user", "Hello"),), **fields}
    )


async def answer(engine: UpstreamEngine, request: EngineRequest) -> list[ChoiceOutput]:
    """All outputs of a request. Raises NaruError when it is refused."""
    heard: list[ChoiceOutput] = []
    handle = await engine.submit(await engine.prepare(request), heard.append)
    await handle.taken()
    await until(lambda: engine.unfinished_requests() == 0)
    return heard


async def test_a_connection_is_tried_again() -> None:
    """An endpoint that listens a little later is reached; the request arrives once."""
    upstream = FakeUpstream(answer=whole({"content": "Hello"}))
    (port,) = free_ports(1)
    async with engine_of(config_of(f"http://127.0.0.1:{port}/v1", connect_retries=5)) as engine:
        asking = asyncio.create_task(answer(engine, asked(stream=False)))
        await asyncio.sleep(0.15)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", upstream.generate)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            outputs = await asking
        finally:
            await runner.cleanup()
    assert "".join(output.text for output in outputs) == "Hello"
    assert len(upstream.bodies) == 1


async def test_a_crowd_has_connections() -> None:
    """More requests at once than an HTTP client has connections for by itself all reach the upstream."""
    crowd = 1_010
    open_many_files()
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url, connect_timeout=60.0)) as engine:
        upstream.stream = [600.0]
        for asking in range(1, crowd + 1):
            await engine.submit(await engine.prepare(asked()), lambda _: None)
            if asking % 101 == 0:  # no more at once than wait to be let in at a small server
                await until(lambda asking=asking: upstream.open == asking)


async def test_what_was_sent_is_not_sent_again() -> None:
    """A connection that breaks after the request was sent, and a 500, are not tried again."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url)) as engine:
        upstream.status, upstream.answer = 500, {}
        with pytest.raises(NaruError):
            await answer(engine, asked(stream=False))
        upstream.status, upstream.done = 200, None
        with pytest.raises(NaruError) as broke:
            await answer(engine, asked())
    assert broke.value.reason is Reason.SERVICE_UNAVAILABLE
    assert len(upstream.bodies) == 2


async def test_away_and_back() -> None:
    """Two misses are nothing, the third makes it away, one answer brings it back; the engine stays healthy throughout."""
    (port,) = free_ports(1)
    config = config_of(f"http://127.0.0.1:{port}/v1", connect_retries=0, probe_seconds=0.05)
    async with engine_of(dataclasses.replace(config, probe_seconds=60.0)) as engine:
        await engine.prepare(asked())
        for _ in range(2):
            prepared = await engine.prepare(asked())
            with pytest.raises(NaruError):
                await (await engine.submit(prepared, lambda _: None)).taken()
        with pytest.raises(NaruError) as away:
            await engine.prepare(asked())
        assert away.value.reason is Reason.SERVICE_UNAVAILABLE
        assert away.value.retry_after
        assert engine.healthy()
    async with fake_upstream() as upstream, engine_of(dataclasses.replace(config, base_url=upstream.url)) as engine:
        upstream.models = {"data": [{"id": "theirs", "context_length": 1234}]}
        await until(lambda: engine.models()[0].context_tokens == 1234)
        upstream.models = {"data": 3}
        await asyncio.sleep(0.1)
        assert engine.models()[0].context_tokens == 1234
        await engine.prepare(asked())


async def test_who_answers_nothing_is_away() -> None:
    """A proxy that takes connections and closes them, with nobody behind it, is as good as none."""

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with engine_of(config_of(url, probe_seconds=0.05)) as engine:
            assert engine.available()
            await until(lambda: not engine.available())
            assert engine.healthy()


async def test_an_answer_ends_though_its_stream_does_not() -> None:
    """Once all choices have ended the usage has a little time to come; then the answer is over without it."""
    end = chunk(gained(content="Hi", finish_reason="stop"))
    for events, patience, usage in (
        ([end, 60.0], 0.1, None),
        ([end, chunk(usage=USAGE), 60.0], 2.0, Usage(31, 17, 9, 4)),
    ):
        async with fake_upstream() as upstream, engine_of(config_of(upstream.url, usage_patience=patience)) as engine:
            upstream.stream = events
            *_, last = await answer(engine, asked())
            await until(lambda upstream=upstream: upstream.open == 0)  # type: ignore[misc] # mypy cannot infer it
        assert (last.finish_reason, last.usage) == ("stop", usage)


BLOCK = 1 << 16
SOCKETS = 16 << 20
"""More than two sockets and their clients keep between them."""


@pytest.mark.parametrize("status", [200, 400, 503])
async def test_an_answer_without_an_end(status: int) -> None:
    """A body that never ends is hung up on once it is too much, also that of an error; the engine goes on working."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url, answer_bytes=1 << 20)) as engine:
        upstream.status, upstream.answer = status, repeat(b" " * BLOCK)
        with pytest.raises(NaruError) as refused:
            await answer(engine, asked(stream=False))
        assert (refused.value.reason, refused.value.message) == (Reason.SERVICE_UNAVAILABLE, TOO_MUCH)
        await until(lambda: upstream.open == 0)
        assert (1 << 20) <= upstream.sent < SOCKETS
        upstream.status, upstream.answer = 200, whole({"content": "Hello"})
        assert "".join(output.text for output in await answer(engine, asked(stream=False))) == "Hello"


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param([b"data: ", *[b'"' * BLOCK] * 8_000], id="event"),
        pytest.param([(b"data: " + b"a" * 8_000 + b"\n") * 8] * 8_000, id="lines of one event"),
    ],
)
async def test_an_event_without_an_end(endless: list[bytes]) -> None:
    """An event that never ends is hung up on; before anything else came it refuses the request."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url)) as engine:
        upstream.stream = endless
        with pytest.raises(NaruError) as refused:
            await answer(engine, asked())
        assert refused.value.message == TOO_MUCH
        upstream.stream = [chunk(gained(content="One ")), *endless]
        outputs = await answer(engine, asked())
        assert [output.text for output in outputs] == ["One ", ""]
        assert isinstance(outputs[-1].error, NaruError)
        assert outputs[-1].error.message == TOO_MUCH
        await until(lambda: upstream.open == 0)
        assert upstream.sent < 2 * SOCKETS


async def test_a_stream_without_an_end() -> None:
    """As a whole a stream may bring 32 times as much as an answer that is kept."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url, answer_bytes=10_000)) as engine:
        upstream.stream = repeat(b": " + b"." * BLOCK + b"\n\n")
        with pytest.raises(NaruError) as refused:
            await answer(engine, asked())
        assert refused.value.message == TOO_MUCH
        await until(lambda: upstream.open == 0)
        assert upstream.sent < SOCKETS


@pytest.mark.parametrize("content", ["x" * 9_000, ""])
async def test_far_more_than_was_asked_for(content: str) -> None:
    """Who passes over `max_tokens` is hung up on when it is more than any tokenizer makes of so many tokens."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url)) as engine:
        upstream.stream = repeat(chunk(gained(content=content)))
        outputs = await answer(engine, asked(sampling=Sampling(max_tokens=5)))
        assert isinstance(outputs[-1].error, NaruError)
        assert outputs[-1].error.message == TOO_MUCH
        assert sum(len(output.text) for output in outputs) < 256 * 300
        await until(lambda: upstream.open == 0)
        upstream.stream = [chunk(gained(content="x" * 9_000, finish_reason="stop"))]
        outputs = await answer(engine, asked(sampling=Sampling(max_tokens=5)))
        assert [output.error for output in outputs] == [None, None]


async def test_chunks_after_the_end() -> None:
    """An upstream that goes on when every choice has ended is not waited for longer than one that falls silent."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url, usage_patience=0.3)) as engine:
        upstream.stream = chain([chunk(gained(content="One", finish_reason="stop"))], cycle([chunk(), 0.05]))
        outputs = await answer(engine, asked())
        assert "".join(output.text for output in outputs) == "One"
        assert (outputs[-1].finish_reason, outputs[-1].error) == ("stop", None)
        await until(lambda: upstream.open == 0)


async def test_a_compressed_answer() -> None:
    """What was not asked for is not unpacked: a little of it may be without an end."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url)) as engine:
        upstream.headers = {"Content-Encoding": "gzip"}
        upstream.answer = iter([gzip.compress(json.dumps(whole({"content": "Hello"})).encode())])
        with pytest.raises(NaruError) as refused:
            await answer(engine, asked(stream=False))
        assert refused.value.message == BROKEN


async def test_a_cancel_at_any_time() -> None:
    """Before the first chunk, amid the answer and after its end: each open choice ends once, the upstream hears of it."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url)) as engine:
        for events, ends in (([5.0], ["abort"] * 2), ([chunk(gained(content="Hi")), 5.0], ["abort"] * 2)):
            upstream.stream = events
            heard: list[ChoiceOutput] = []
            handle = await engine.submit(await engine.prepare(asked(sampling=Sampling(n=2))), heard.append)
            await until(lambda: upstream.open == 1)
            if len(events) > 1:
                await handle.taken()
            await asyncio.gather(handle.cancel(), handle.cancel())
            await handle.taken()
            assert [output.finish_reason for output in heard if output.finish_reason] == ends
            await until(lambda: upstream.open == 0)
        assert upstream.hung_up == 2
        upstream.answer = whole({"content": "Hello"})
        heard = []
        handle = await engine.submit(await engine.prepare(asked(stream=False)), heard.append)
        await handle.taken()
        await handle.cancel()
        assert [output.finish_reason for output in heard] == ["", "stop"]
        handle = await engine.submit(await engine.prepare(asked(stream=False)), heard.append)
        await handle.cancel()
        assert engine.unfinished_requests() == 0


async def test_estimates() -> None:
    """A prompt is estimated and says so; output without usage by tokens that were listed, by pieces, or by bytes."""
    logprobs = {"content": [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -9e9}]}
    cases: list[tuple[list[dict[str, Any]], int]] = [
        ([gained(content="a"), gained(content="b"), gained(reasoning="c")], 3),
        ([gained(content="x" * 400), gained(content="나루" * 10)], 130),
        ([{"index": 0, "delta": {"content": "ab"}, "logprobs": logprobs}], 2),
    ]
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url)) as engine:
        prepared = await engine.prepare(asked())
        assert (prepared.accuracy, prepared.prompt_tokens > 30) == (Accuracy.ESTIMATED, True)
        for choices, tokens in cases:
            upstream.stream = [*(chunk(choice) for choice in choices), chunk(gained(finish_reason="stop"))]
            *_, last = await answer(engine, asked())
            assert (last.completion_tokens, last.usage) == (tokens, None)


async def test_typed_requests() -> None:
    """Text and token ids of a direct caller become completions, with OpenAI's most tokens where none are said."""
    async with fake_upstream() as upstream, engine_of(config_of(upstream.url)) as engine:
        upstream.answer = {"choices": [{"text": "Hi", "finish_reason": "stop"}], "usage": USAGE}
        fields: dict[str, Any] = {"messages": (), "stream": False}
        await answer(engine, asked(kind=InputKind.TEXT, text="Hello", **fields))
        await answer(engine, asked(kind=InputKind.TOKEN_IDS, token_ids=(1, 2), output_token_cap=9, **fields))
    expected: dict[str, Any] = {"model": "theirs", "stream": False, "n": 1}
    assert upstream.bodies == [
        {"prompt": "Hello", "max_tokens": 16, **expected},
        {"prompt": [1, 2], "max_tokens": 9, **expected},
    ]


async def test_no_key_sends_none() -> None:
    """An endpoint without keys gets no header."""
    async with fake_upstream() as upstream:
        upstream.answer = whole({"content": "Hello"})
        async with engine_of(UpstreamEngineConfig(upstream.url, {"ours": "theirs"})) as engine:
            await answer(engine, asked(stream=False))
    assert upstream.authorizations == [""]


GOOD = {
    "NARU_INFERENCE_ENGINE": "upstream",
    "NARU_INFERENCE_UPSTREAM_BASE_URL": "https://openrouter.ai/api/v1",
    "NARU_INFERENCE_UPSTREAM_API_KEY": SECRET,
    "NARU_INFERENCE_UPSTREAM_MODELS": "gpt=openai/gpt-5:nitro, plain",
}


def test_settings() -> None:
    """Names of models are read; the key is in no description and in no text of the settings."""
    config = load(InferenceConfig, GOOD)
    made = config.upstream()
    assert made.models == {"gpt": "openai/gpt-5:nitro", "plain": "plain"}
    assert made.api_key == SECRET
    assert SECRET not in f"{describe(config)} {made}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BASE_URL", ""),
        ("BASE_URL", "ftp://host/v1"),
        ("BASE_URL", f"https://me:{SECRET}@host/v1"),
        ("BASE_URL", f"https://host/v1?key={SECRET}"),
        ("API_KEY", f"{SECRET}\nmore"),
        ("MODELS", ""),
        ("MODELS", "a=b,a=c"),
        ("MODELS", "=b"),
        ("TOTAL_TIMEOUT", "0"),
        ("CONNECT_RETRIES", "-1"),
    ],
)
def test_wrong_settings(name: str, value: str) -> None:
    """Each is refused by the name of its variable, without a secret."""
    with pytest.raises(ConfigError) as wrong:
        load(InferenceConfig, GOOD | {f"NARU_INFERENCE_UPSTREAM_{name}": value})
    assert f"NARU_INFERENCE_UPSTREAM_{name} must" in str(wrong.value) or name == "MODELS"
    assert SECRET not in str(wrong.value)
