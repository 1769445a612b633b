"""One stream of gRPC's messages in both directions, over a connection of its own.

What travels is gRPC over HTTP/2 (RFC 9113, and PROTOCOL-HTTP2.md of gRPC), so the other side is any gRPC server. Sessions carry
every token and every reservation of an edge, and what gRPC for Python spends on a message, waking a thread that wakes the loop
that wakes a task, is most of what they cost. Here a message is handed on where the loop reads it. ADR 28 has the figures.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import random
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol, cast
from urllib.parse import unquote

import grpc
from aiohappyeyeballs import start_connection
from hpack import Decoder, Encoder, HeaderTuple, HPACKError, NeverIndexedHeaderTuple

from naru.errors import NaruError, unavailable
from naru.logs import get_logger
from naru.server import MAX_MESSAGE_BYTES
from naru.status import error_from_rpc

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 4, 5
_CANCEL = 8
_CONNECTION, _STREAM = 0, 1
_HEAD = struct.Struct(">HBBBI")
_PREFIX = struct.Struct(">BI")
_SETTING = struct.Struct(">HI")
_DEFAULT_WINDOW = 65_535
_DEFAULT_FRAME = 16_384
# What the peer may send before it hears that it was read, which is at once.
_WINDOW = 4 << 20
_MOST_HEADER_BYTES = 64 << 10
_CONNECT_SECONDS = 5.0
_NEXT_ADDRESS_SECONDS = 0.25
_SILENCE_SECONDS = 10.0
_log = get_logger(__name__)


class _Kind(IntEnum):
    """Of a frame (RFC 9113, 6)."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Listener(Protocol):
    """Hears what a stream has to say, in the loop. Nothing of it may raise."""

    def message(self, message: bytes) -> None:
        """One came."""

    def ready(self) -> None:
        """All that was written has left, after it could not for a while."""

    def ended(self, error: NaruError) -> None:
        """No more comes or goes, whoever ended it. Said once."""


class MessageStream(asyncio.Protocol):
    """Made by `open_stream`.

    Args:
        listener: Hears of it.
        name: What the service is called in errors.
        headers: What the stream begins with.
        silence_seconds: After which a peer that says nothing is asked whether it is there; it has as long to answer.

    Attributes:
        is_over: Whether it has ended.
    """

    def __init__(self, listener: Listener, name: str, headers: Sequence[HeaderTuple], silence_seconds: float) -> None:
        self._listener = listener
        self._name = name
        self._headers = headers
        self._silence_seconds = silence_seconds
        self._transport: asyncio.Transport | None = None
        self.is_over = False
        self._rest = b""
        self._decoder = Decoder(max_header_list_size=_MOST_HEADER_BYTES)
        self._block = b""
        self._block_ends = False
        self._message = bytearray()
        self._needed = _PREFIX.size
        self._read = 0
        self._waiting = bytearray()
        self._paused = False
        self._window = self._stream_window_at_first = _DEFAULT_WINDOW
        self._connection_window = _DEFAULT_WINDOW
        self._largest_frame = _DEFAULT_FRAME
        self._heard = True
        self._asked = False
        self._watching: asyncio.TimerHandle | None = None

    @property
    def is_ready(self) -> bool:
        """Whether all that was written has left, and more may be; when it has not, `Listener.ready` tells."""
        return not self.is_over and not self._waiting and not self._paused

    def write(self, message: bytes) -> None:
        """Sends a message, after those before it. Does nothing when the stream has ended."""
        if not self.is_over:
            self._waiting += _PREFIX.pack(0, len(message)) + message
            self._flush()

    def close(self) -> None:
        """Ends the stream, also for the peer."""
        if not self.is_over:
            self._send(_frame(_Kind.RST_STREAM, 0, _STREAM, _CANCEL.to_bytes(4, "big")))
            self._end(unavailable(self._name))

    def abandon(self) -> None:
        """Ends what nobody was given. The listener need not hear of it."""
        self.is_over = True
        if self._watching is not None:
            self._watching.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins both the connection and the stream."""
        self._transport = cast(asyncio.Transport, transport)
        block = Encoder().encode(self._headers, huffman=False)
        self._transport.write(
            _PREFACE
            + _frame(_Kind.SETTINGS, 0, _CONNECTION, _SETTING.pack(_INITIAL_WINDOW_SIZE, _WINDOW))
            + _frame(_Kind.WINDOW_UPDATE, 0, _CONNECTION, (_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big"))
            + _frame(_Kind.HEADERS, _END_HEADERS, _STREAM, block)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the listener, unless it knows."""
        self._end(unavailable(self._name))

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self._flush()
        if self.is_ready:
            self._listener.ready()

    def data_received(self, data: bytes) -> None:
        """Takes the frames apart."""
        self._heard = True
        if self._rest:
            data = self._rest + data
        start, end = 0, len(data)
        while end - start >= _HEAD.size and not self.is_over:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, start)
            body = start + _HEAD.size
            start = body + (high << 8 | low)
            if start - body > _DEFAULT_FRAME:
                self._broken("a frame is larger than agreed")
            elif start > end:
                start = body - _HEAD.size
                break
            elif not kind:  # _Kind.DATA: nearly all that comes
                self._take_data(flags, data[body:start])
            else:
                self._take(kind, flags, stream & 0x7FFFFFFF, data[body:start])
        self._rest = data[start:]
        if self._read >= _WINDOW // 2 and not self.is_over:
            self._acknowledge()

    def _take_data(self, flags: int, payload: bytes) -> None:
        self._read += len(payload)
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if self._message:
            self._message += payload
            if len(self._message) < self._needed and not flags & _END_STREAM:
                return
            payload = bytes(self._message)
            self._message.clear()
        start = 0
        self._needed = _PREFIX.size
        while len(payload) - start >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(payload, start)
            if compressed or size > MAX_MESSAGE_BYTES:
                self._broken("a message is compressed or too large")
                return
            stop = start + _PREFIX.size + size
            if stop > len(payload):
                self._needed = stop - start
                break
            self._listener.message(payload[start + _PREFIX.size : stop])
            if self.is_over:
                return
            start = stop
        self._message += payload[start:]
        if flags & _END_STREAM:
            self._end(unavailable(self._name))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        match kind:
            case _Kind.HEADERS | _Kind.CONTINUATION:
                self._take_headers(kind, flags, payload)
            case _Kind.SETTINGS if not flags & _ACK:
                self._take_settings(payload)
            case _Kind.PING if not flags & _ACK:
                self._send(_frame(_Kind.PING, _ACK, _CONNECTION, payload))
            case _Kind.WINDOW_UPDATE:
                more = int.from_bytes(payload, "big") & 0x7FFFFFFF
                if stream == _CONNECTION:
                    self._connection_window += more
                else:
                    self._window += more
                self._go_on()
            case _Kind.RST_STREAM:
                self._end(unavailable(self._name))
            case _Kind.GOAWAY if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF < _STREAM:
                self._end(unavailable(self._name))
            case _:
                pass  # what has no meaning here, or is not known, is passed over (RFC 9113, 4.1)

    def _take_headers(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _Kind.HEADERS:
            self._block_ends = bool(flags & _END_STREAM)
            first = 1 if flags & _PADDED else 0
            stop = len(payload) - (payload[0] if flags & _PADDED else 0)
            payload = payload[first + (5 if flags & _PRIORITY else 0) : stop]
            self._block = b""
        self._block += payload
        if len(self._block) > _MOST_HEADER_BYTES:
            self._broken("its headers are too large")
        elif flags & _END_HEADERS:
            try:
                headers = {str(name): str(value) for name, value in self._decoder.decode(self._block)}
            except (HPACKError, UnicodeDecodeError):
                self._broken("its headers make no sense")
                return
            if self._block_ends or headers.get(":status", "200") != "200":
                self._end(self._status(headers))

    def _take_settings(self, payload: bytes) -> None:
        for identifier, value in _SETTING.iter_unpack(payload[: len(payload) // _SETTING.size * _SETTING.size]):
            if identifier == _INITIAL_WINDOW_SIZE:
                self._window += value - self._stream_window_at_first
                self._stream_window_at_first = value
            elif identifier == _MAX_FRAME_SIZE:
                self._largest_frame = value
        self._send(_frame(_Kind.SETTINGS, _ACK, _CONNECTION))
        self._go_on()

    def _status(self, headers: dict[str, str]) -> NaruError:
        try:
            code = next(code for code in grpc.StatusCode if str(code.value[0]) == headers["grpc-status"])
        except (KeyError, StopIteration):
            return unavailable(self._name)
        if code is grpc.StatusCode.OK:
            return unavailable(self._name)
        details = headers.get("grpc-status-details-bin", "")
        trailers = (
            [("grpc-status-details-bin", base64.b64decode(details + "=" * (-len(details) % 4)))] if details else []
        )
        message = unquote(headers.get("grpc-message", ""))
        failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), message)
        return error_from_rpc(failure, self._name)

    def _acknowledge(self) -> None:
        read, self._read = self._read.to_bytes(4, "big"), 0
        self._send(_frame(_Kind.WINDOW_UPDATE, 0, _CONNECTION, read) + _frame(_Kind.WINDOW_UPDATE, 0, _STREAM, read))

    def _go_on(self) -> None:
        if self._waiting:
            self._flush()
            if self.is_ready:
                self._listener.ready()

    def _flush(self) -> None:
        waiting = self._waiting
        while waiting and not self._paused:
            size = min(len(waiting), self._largest_frame, self._window, self._connection_window)
            if size <= 0:
                return
            self._window -= size
            self._connection_window -= size
            self._send(_frame(_Kind.DATA, 0, _STREAM, waiting[:size]))
            del waiting[:size]

    def _send(self, frames: bytes) -> None:
        assert self._transport is not None  # noqa: S101 -- nothing is sent before there is a connection
        self._transport.write(frames)

    def watch(self) -> None:
        """Asks a silent peer whether it is there, and gives up one that was asked (RFC 9113, 6.7), from now on to its end."""
        if self.is_over:
            return
        if not self._heard and self._asked:
            self._broken("it does not answer")
            return
        self._asked = not self._heard
        if self._asked:
            self._send(_frame(_Kind.PING, 0, _CONNECTION, bytes(8)))
        self._heard = False
        self._watching = asyncio.get_running_loop().call_later(self._silence_seconds, self.watch)

    def _broken(self, why: str) -> None:
        _log.warning("a stream of messages is given up", service=self._name, why=why)
        self._end(unavailable(self._name))

    def _end(self, error: NaruError) -> None:
        if not self.is_over:
            self.is_over = True
            if self._watching is not None:
                self._watching.cancel()
            self._waiting.clear()
            if self._transport is not None:
                self._transport.close()
            self._listener.ended(error)


async def open_stream(
    address: str,
    path: str,
    listener: Listener,
    *,
    name: str,
    metadata: Sequence[tuple[str, str]] = (),
    silence_seconds: float = _SILENCE_SECONDS,
) -> MessageStream:
    """Begins a call of a method that takes a stream and answers with one.

    Args:
        address: host:port. Any address that the name has is taken.
        path: As in "/naru.api.accounting.v1.QuotaService/ReserveSession".
        listener: Hears what comes.
        name: What the service is called in errors.
        metadata: Names the caller; kept out of tables of headers, which outlive it.
        silence_seconds: As `MessageStream` has it.

    Raises NaruError SERVICE_UNAVAILABLE when nobody is there within 5 seconds. What the service itself has against the call,
    the listener hears.
    """
    headers = [
        HeaderTuple(":method", "POST"),
        HeaderTuple(":scheme", "http"),
        HeaderTuple(":path", path),
        HeaderTuple(":authority", address),
        HeaderTuple("te", "trailers"),
        HeaderTuple("content-type", "application/grpc"),
        HeaderTuple("user-agent", "naru"),
        *(NeverIndexedHeaderTuple(key, value) for key, value in metadata),
    ]
    stream = MessageStream(listener, name, headers, silence_seconds)
    # Not in the context of whoever opens it: the stream outlives their request, and what it logs is not theirs.
    connecting = asyncio.create_task(_connect(address, stream), context=contextvars.Context())
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await connecting
    except BaseException as failure:
        stream.abandon()
        # uvloop has a RuntimeError for some that are an OSError otherwise.
        if isinstance(failure, OSError | TimeoutError | UnicodeError | RuntimeError):
            raise unavailable(name) from failure
        raise
    return stream


async def _connect(address: str, stream: MessageStream) -> None:
    """To whichever address of the name answers first; each has a moment before the next is tried too."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    random.shuffle(found)
    connection = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
    # What was sent and is not acknowledged for so long is lost, however often the kernel would try again.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_SILENCE_SECONDS * 1_000))
    _ = await loop.create_connection(lambda: stream, sock=connection)
    stream.watch()


def _frame(kind: int, flags: int, stream: int, payload: bytes | bytearray = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload
