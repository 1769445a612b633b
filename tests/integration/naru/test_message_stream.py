"""A stream of messages that speaks HTTP/2 by itself, with gRPC's own server and with peers that are odd."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from naru import context
from naru.api.accounting.v1 import quota_service_pb2, quota_service_pb2_grpc
from naru.context import RequestContext
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Caller, ServiceName
from naru.message_call import open_stream
from naru.message_stream import MessageStream
from naru.server import TRANSPORT_OPTIONS
from naru.status import error_to_status

PATH = "/naru.api.accounting.v1.QuotaService/ReserveSession"
_PATIENCE = 30.0
_PREFACE = 24
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8


class Heard:
    """What a stream told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.request: RequestContext | None = None
        self.times_ready = 0
        self.failure: NaruError | None = None
        self.times_ended = 0

    def message(self, message: bytes) -> None:
        self.messages.append(message)

    def ready(self) -> None:
        self.times_ready += 1

    def ended(self, error: NaruError) -> None:
        self.failure = error
        self.times_ended += 1
        self.request = context.current_or_none()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(_PATIENCE):
            while not true():
                await asyncio.sleep(0.005)


class Service(quota_service_pb2_grpc.QuotaServiceServicer):
    """Answers what it is asked with the same, once it is let."""

    def __init__(self) -> None:
        self.going = asyncio.Event()
        self.going.set()
        self.metadata: dict[str, Any] = {}
        self.refusal: NaruError | None = None
        self.ended = asyncio.Event()

    async def ReserveSession(
        self, request_iterator: AsyncIterator[Any], call: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[quota_service_pb2.ReserveSessionResponse]:
        self.metadata = dict(call.invocation_metadata() or ())
        try:
            if self.refusal is not None:
                status = error_to_status(self.refusal)
                details = (("grpc-status-details-bin", status.SerializeToString()),)
                call.set_trailing_metadata(details)
                await call.abort(grpc.StatusCode(value_of(status.code)), status.message)
            async for message in request_iterator:
                _ = await self.going.wait()
                result = quota_service_pb2.ReserveResult(event_id=message.traceparent)
                yield quota_service_pb2.ReserveSessionResponse(
                    reserved=quota_service_pb2.ReserveResponse(results=[result])
                )
        finally:
            self.ended.set()


def value_of(code: int) -> tuple[int, str]:
    return next(status.value for status in grpc.StatusCode if status.value[0] == code)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Service, grpc.aio.Server, str]]:
    # Pings come more often here than it would stand.
    server, service = grpc.aio.server(options=[*TRANSPORT_OPTIONS, ("grpc.http2.max_ping_strikes", 0)]), Service()
    quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield service, server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def question(text: str) -> bytes:
    return quota_service_pb2.ReserveSessionRequest(traceparent=text).SerializeToString()


def texts(heard: Heard) -> list[str]:
    answers = map(quota_service_pb2.ReserveSessionResponse.FromString, heard.messages)
    return [answer.reserved.results[0].event_id for answer in answers]


async def test_messages_of_all_sizes_come_and_go_in_order() -> None:
    """Also those of many frames, and more than either side lets the other send unread."""
    sizes = [0, 1, 100, 16_370, 16_384, 16_400, 70_000, 3_900_000, 5, 3_900_000, 2_000_000] * 2
    async with serving() as (service, _, address):
        heard = Heard()
        stream = await open_stream(address, PATH, heard, name="accounting", metadata=(("x-token", "secret"),))
        for number, size in enumerate(sizes):
            stream.write(question(f"{number} " + "x" * size))
        await heard.until(lambda: len(heard.messages) == len(sizes))
        assert texts(heard) == [f"{number} " + "x" * size for number, size in enumerate(sizes)]
        assert service.metadata["x-token"] == "secret"
        assert stream.is_ready
        stream.close()


async def test_a_server_that_takes_nothing_is_told_apart_from_one_that_does() -> None:
    """What is written waits here, without end if need be; the listener hears when it has left."""
    async with serving() as (service, _, address):
        service.going.clear()
        heard = Heard()
        stream = await open_stream(address, PATH, heard, name="accounting")
        for _ in range(8):
            stream.write(question("x" * 3_900_000))
        await asyncio.sleep(0.5)
        assert not stream.is_ready
        assert heard.times_ready == 0
        service.going.set()
        await heard.until(lambda: len(heard.messages) == 8 and stream.is_ready)
        assert heard.times_ready > 0
        stream.close()


async def test_closing_ends_the_call_for_the_server() -> None:
    """And is heard once; what is written after is nobody's."""
    async with serving() as (service, _, address):
        heard = Heard()
        stream = await open_stream(address, PATH, heard, name="accounting")
        stream.write(question("a"))
        await heard.until(lambda: texts(heard) == ["a"])
        stream.close()
        stream.close()
        stream.write(question("b"))
        async with asyncio.timeout(_PATIENCE):
            _ = await service.ended.wait()
        assert heard.times_ended == 1
        assert texts(heard) == ["a"]
        # Whoever still has something to write keeps it.
        assert not stream.is_ready


async def test_an_error_of_the_service_is_heard_as_it_is() -> None:
    """With its reason, its message and what belongs to it, whatever characters it has."""
    async with serving() as (service, _, address):
        service.refusal = invalid_argument("traceparent", "100 % of `traceparent` is 값.")
        heard = Heard()
        _ = await open_stream(address, PATH, heard, name="accounting")
        await heard.until(lambda: heard.failure is not None)
        assert heard.failure is not None
        assert heard.failure.reason is Reason.INVALID_ARGUMENT
        assert heard.failure.message == "100 % of `traceparent` is 값."
        assert heard.failure.metadata == service.refusal.metadata


async def test_a_method_that_nobody_has_is_not_supported() -> None:
    """An answer that is nothing but its end."""
    async with serving() as (_, _, address):
        heard = Heard()
        _ = await open_stream(address, "/naru.api.accounting.v1.QuotaService/Nothing", heard, name="accounting")
        await heard.until(lambda: heard.failure is not None)
        assert heard.failure is not None
        assert heard.failure.reason is Reason.NOT_SUPPORTED


@pytest.mark.parametrize("grace", [0.0, 1.0])
async def test_a_server_that_stops_ends_the_stream(grace: float) -> None:
    """The service is away then; within its grace it still answers."""
    async with serving() as (service, server, address):
        service.going.clear()
        heard = Heard()
        stream = await open_stream(address, PATH, heard, name="accounting")
        stream.write(question("a"))
        await heard.until(lambda: bool(service.metadata))
        stopping = asyncio.create_task(server.stop(grace))
        await asyncio.sleep(0.2)
        service.going.set()
        await heard.until(lambda: heard.failure is not None)
        await stopping
        assert heard.failure is not None
        assert heard.failure.reason is Reason.SERVICE_UNAVAILABLE
        assert texts(heard) == (["a"] if grace else [])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody.invalid:50052", "accounting", "a" * 70 + ":1"])
async def test_nobody_there(address: str) -> None:
    """The service is away, also where the address is none."""
    with pytest.raises(NaruError) as told:
        _ = await open_stream(address, PATH, Heard(), name="accounting")
    assert told.value.reason is Reason.SERVICE_UNAVAILABLE
    assert told.value.metadata == {"service": "accounting"}


async def test_a_dead_address_among_several_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is tried while the first is silent, long before all the time is over."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as dead, ExitStack() as waiting:
        for _ in range(4):
            # Nobody takes these, so that the kernel takes no more.
            full = waiting.enter_context(socket.socket())
            full.setblocking(False)
            _ = full.connect_ex(dead.getsockname())
        async with serving() as (_, _, address):
            living = ("127.0.0.1", int(address.rpartition(":")[2]))

            async def both(*_: object, **__: object) -> list[Any]:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", at) for at in (dead.getsockname(), living)]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
            monkeypatch.setattr(random, "shuffle", lambda _: None)
            heard = Heard()
            async with asyncio.timeout(4.0):
                stream = await open_stream("both:1", PATH, heard, name="accounting")
            stream.write(question("a"))
            await heard.until(lambda: texts(heard) == ["a"])
            stream.close()


async def test_a_stream_knows_nothing_of_who_opened_it() -> None:
    """Their request is over long before; what is logged of the stream is not theirs."""
    heard = Heard()
    async with serving() as (_, server, address):
        token = context.enter(RequestContext("theirs", Caller(service=ServiceName.EDGE), ""))
        _ = await open_stream(address, PATH, heard, name="accounting")
        context.leave(token)
        await server.stop(0)
        await heard.until(lambda: heard.failure is not None)
    assert heard.request is None


@pytest.mark.parametrize("turns", range(12))
async def test_who_goes_away_while_it_opens_leaves_nothing(turns: int) -> None:
    """Neither a connection nor anything that looks after one, whenever it is."""
    async with serving() as (service, _, address):
        heard = Heard()
        opening = asyncio.create_task(open_stream(address, PATH, heard, name="accounting", silence_seconds=0.05))
        for _ in range(turns):
            await asyncio.sleep(0)
        opened = opening.done() or not opening.cancel()
        if opened:
            (await opening).close()
        else:
            with pytest.raises(asyncio.CancelledError):
                _ = await opening
            assert heard.times_ended <= 1
        await asyncio.sleep(0.2)
        if service.metadata:
            async with asyncio.timeout(_PATIENCE):
                _ = await service.ended.wait()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def message(content: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(content)) + content


class Peer:
    """Another end that says what it is told to, and keeps the frames that came: kind, flags, payload."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.frames: list[tuple[int, int, bytes]] = []
        self.gone = asyncio.Event()

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            _ = await reader.readexactly(_PREFACE)
            while True:
                head = await reader.readexactly(9)
                self.frames.append((head[3], head[4], await reader.readexactly(int.from_bytes(head[:3], "big"))))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writer.close()
            self.gone.set()

    def of(self, kind: int) -> list[tuple[int, bytes]]:
        return [(flags, payload) for of, flags, payload in self.frames if of == kind]


@asynccontextmanager
async def odd_peer(silence_seconds: float = 30.0) -> AsyncIterator[tuple[Peer, Heard, MessageStream]]:
    """A peer that has taken a stream and said nothing yet."""
    peers: list[Peer] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(writer))
        await peers[-1].read(reader)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    heard = Heard()
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    stream = await open_stream(address, PATH, heard, name="accounting", silence_seconds=silence_seconds)
    await heard.until(lambda: bool(peers))
    try:
        yield peers[0], heard, stream
    finally:
        stream.close()
        _ = await peers[0].gone.wait()
        server.close()
        await server.wait_closed()


async def test_frames_may_be_cut_anywhere() -> None:
    """And be padded, unknown, empty, or hold several messages and parts of them."""
    body = message(b"one") + message(b"") + message(b"three")
    said = b"".join(
        (
            frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 20)),
            frame(0x42, 0xFF, 1, b"nobody knows this"),
            frame(_HEADERS, 0x4 | 0x8 | 0x20, 1, b"\x02" + bytes(5) + b"\x88" + bytes(2)),
            frame(_DATA, 0, 1),
            frame(_DATA, 0x8, 1, b"\x03" + body[:7] + bytes(3)),
            frame(_DATA, 0, 1, body[7:9]),
            frame(_DATA, 0, 1, body[9:]),
            frame(_PING, 0, 0, b"12345678"),
            frame(_GOAWAY, 0, 0, struct.pack(">II", 1, 0)),
        )
    )
    async with odd_peer() as (peer, heard, _):
        for start in range(len(said)):
            peer.writer.write(said[start : start + 1])
            await asyncio.sleep(0)
        await heard.until(lambda: bool(peer.of(_PING)))
        assert heard.messages == [b"one", b"", b"three"]
        assert peer.of(_PING) == [(1, b"12345678")]
        assert [flags for flags, _ in peer.of(_SETTINGS)] == [0, 1]
        assert heard.failure is None


@pytest.mark.parametrize(
    "said",
    [
        frame(_DATA, 0, 1, message(b"zipped", compressed=1)),
        frame(_DATA, 0, 1, struct.pack(">BI", 0, 1 << 30)),
        frame(_DATA, 0, 1, bytes(16_385)),
        frame(_HEADERS, 0x4, 1, b"\xff\xff\xff\xff\xff"),
        frame(_HEADERS, 0x4, 1, b"\x8d"),  # :status 404
        frame(_HEADERS, 0, 1, bytes(16_000)) + 5 * frame(9, 0, 1, bytes(16_000)),
        frame(_RST_STREAM, 0, 1, bytes(4)),
        frame(_GOAWAY, 0, 0, struct.pack(">II", 0, 11)),
        frame(_DATA, 1, 1, message(b"the last")),
        frame(_DATA, 0, 1, message(b"the last")[:6]) + frame(_DATA, 1, 1, b"h"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2,
    ],
    ids=[
        "compressed",
        "too large",
        "large frame",
        "no hpack",
        "404",
        "endless headers",
        "reset",
        "gone",
        "end",
        "cut",
        "http/1",
    ],
)
async def test_what_makes_no_sense_ends_the_stream(said: bytes) -> None:
    """The service is away; nothing raises, nothing waits."""
    async with odd_peer() as (peer, heard, stream):
        peer.writer.write(said)
        await heard.until(lambda: heard.failure is not None)
        assert heard.failure is not None
        assert heard.failure.reason is Reason.SERVICE_UNAVAILABLE
        assert stream.is_over
        assert heard.times_ended == 1


async def test_no_more_is_sent_than_the_peer_allows() -> None:
    """Neither in all nor in a frame, and the rest follows as it allows more."""
    async with odd_peer() as (peer, heard, stream):
        stream.write(bytes(100_000))
        await heard.until(lambda: sum(len(payload) for _, payload in peer.of(_DATA)) == 65_535)
        peer.writer.write(frame(_WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big")))
        peer.writer.write(frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 80_000)))
        await heard.until(lambda: sum(len(payload) for _, payload in peer.of(_DATA)) == 80_000)
        assert heard.times_ready == 0
        assert not stream.is_ready
        peer.writer.write(frame(_WINDOW_UPDATE, 0, 1, (1 << 20).to_bytes(4, "big")))
        await heard.until(lambda: heard.times_ready == 1)
        await heard.until(lambda: sum(len(payload) for _, payload in peer.of(_DATA)) == 100_005)
        assert max(len(payload) for _, payload in peer.of(_DATA)) == 16_384


async def test_a_peer_that_is_gone_without_a_word_is_noticed() -> None:
    """It is asked, and does not answer."""
    async with odd_peer(silence_seconds=0.2) as (peer, heard, _):
        await heard.until(lambda: heard.failure is not None)
        assert peer.of(_PING) == [(0, bytes(8))]
        assert heard.failure is not None
        assert heard.failure.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_peer_that_answers_is_kept() -> None:
    """However long it has nothing to say."""
    async with serving() as (_, _, address):
        heard = Heard()
        stream = await open_stream(address, PATH, heard, name="accounting", silence_seconds=0.2)
        await asyncio.sleep(2.0)
        stream.write(question("still here"))
        await heard.until(lambda: texts(heard) == ["still here"])
        assert heard.failure is None
        stream.close()
