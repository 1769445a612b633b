"""The port that is for sessions alone: whom it serves, and callers that are odd."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from hpack import Encoder

from naru.errors import NaruError, Reason
from naru.identity import ServiceName
from naru.message_call import open_stream
from naru.message_stream import END_HEADERS, PREFACE, Kind, frame
from tests.integration.naru.test_message_stream import Heard
from tests.support.generation_bench import eventually
from tests.support.inference_service import SESSION, InferenceService, generation, inference_service, submit
from tests.support.scripted_engine import ScriptedEngine


async def _refusal(service: InferenceService, path: str, metadata: tuple[tuple[str, str], ...]) -> NaruError:
    heard = Heard()
    address = f"127.0.0.1:{await service.session_port()}"
    _ = await open_stream(address, path, heard, name="inference", metadata=metadata)
    await heard.until(lambda: heard.failure is not None)
    assert heard.failure is not None
    assert heard.messages == []
    return heard.failure


async def test_only_the_edge_is_served_and_only_sessions_are(tmp_path: Path) -> None:
    """Each refusal names what is wrong, as gRPC's own port does."""
    async with inference_service(tmp_path, ScriptedEngine()) as service:
        token = "x-naru-service-token"
        edge, accounting = service.token(ServiceName.EDGE), service.token(ServiceName.ACCOUNTING)
        generate = SESSION.replace("GenerateSession", "Generate")
        assert (await _refusal(service, SESSION, ())).reason is Reason.CREDENTIALS_MISSING
        assert (await _refusal(service, SESSION, ((token, "x" * 32),))).reason is Reason.INVALID_API_KEY
        assert (await _refusal(service, SESSION, ((token, accounting),))).reason is Reason.PERMISSION_DENIED
        unknown = await _refusal(service, generate, ((token, edge),))
        assert unknown.reason is Reason.NOT_SUPPORTED
        assert SESSION in unknown.message


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        PREFACE + frame(Kind.DATA, 0, 1, b"\0\0\0\0\1x"),
        PREFACE + frame(Kind.HEADERS, END_HEADERS | 0x8, 1),
        PREFACE + frame(Kind.HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
        PREFACE + b"\xff\xff\xff\0\0\0\0\0\1",
    ],
    ids=["HTTP/1", "a message first", "no headers", "broken headers", "a frame too large"],
)
async def test_who_makes_no_sense_is_hung_up_on(tmp_path: Path, said: bytes) -> None:
    """Whatever it is; the next caller is served."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", await service.session_port())
        writer.write(said[:10])
        await asyncio.sleep(0.01)
        writer.write(said[10:])
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                _ = await reader.read()
        writer.close()
        async with service.session(own_port=True) as session:
            await session.send(submit(1, generation(1)))
            await eventually(lambda: engine.submitted)


async def test_a_connection_is_for_one_stream(tmp_path: Path) -> None:
    """Another one on it ends both, and what the first one ran is metered."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service, service.session(own_port=True) as session:
        await session.send(submit(1, generation(1)))
        await eventually(lambda: engine.submitted)
        block = Encoder().encode([(":method", "POST"), (":path", SESSION)], huffman=False)
        session.call.stream._send(frame(Kind.HEADERS, END_HEADERS, 3, block))
        while await session.read() is not None:
            pass
        await eventually(lambda: engine.submitted[0].cancelled)
        await eventually(lambda: service.events)


async def test_a_session_that_does_not_read_is_closed_and_metered(tmp_path: Path) -> None:
    """Past the bound of its buffer its streams are aborted, and other sessions go on."""
    engine = ScriptedEngine()
    async with (
        inference_service(tmp_path, engine, session_buffer_bytes=2_000_000) as service,
        service.session(own_port=True) as stalled,
        service.session(own_port=True) as other,
    ):
        await stalled.send(submit(1, generation(1)))
        await eventually(lambda: engine.submitted)
        stalled.call.stream._transport.pause_reading()
        await other.send(submit(1, generation(2)))
        await eventually(lambda: len(engine.submitted) == 2)
        for _ in range(20_000):
            engine.submitted[0].emit("x" * 10_000)
            await asyncio.sleep(0)
            if engine.submitted[0].cancelled:
                break
        await eventually(lambda: service.events)
        assert service.events[0].usage.completion_tokens == engine.submitted[0].counts[0]
        engine.submitted[1].emit("x", finish_reason="stop")
        await other.read_until(lambda frames: any(frame.HasField("finished") for frame in frames))


async def test_sessions_end_with_the_service(tmp_path: Path) -> None:
    """Also those that run nothing, at once."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        session = service.session(own_port=True)
        held = await session.__aenter__()
        await held.send(submit(1, generation(1)))
        await eventually(lambda: engine.submitted)
        engine.submitted[0].emit("x", finish_reason="stop")
    while await held.read() is not None:
        pass
    assert held.frames()[-1].HasField("finished")
    await session.__aexit__(None, None, None)
