"""One stream of gRPC's messages in both directions, over a connection of its own: what both ends of it do.

What travels is gRPC over HTTP/2 (RFC 9113, and PROTOCOL-HTTP2.md of gRPC), so the other side may be anybody's. Sessions carry
every token and every reservation of an edge, and what gRPC for Python spends on a message, waking a thread that wakes the loop
that wakes a task, is most of what they cost. Here a message is handed on where the loop reads it. ADR 28 and 30 have the figures.
The calling end is `naru/message_call.py`, the serving end `naru/message_server.py`.
"""

from __future__ import annotations

import asyncio
import struct
from enum import IntEnum
from typing import Protocol, cast

from hpack import Decoder, HPACKError

from naru.errors import NaruError, unavailable
from naru.logs import get_logger
from naru.server import MAX_MESSAGE_BYTES

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a caller begins a connection with (RFC 9113, 3.4)."""
SILENCE_SECONDS = 10.0
"""After which a peer that says nothing is asked whether it is there."""
END_STREAM, END_HEADERS = 0x1, 0x4
_ACK, _PADDED, _PRIORITY = 0x1, 0x8, 0x20
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 4, 5
_CANCEL = 8
_CONNECTION = 0
_HEAD = struct.Struct(">HBBBI")
_PREFIX = struct.Struct(">BI")
_SETTING = struct.Struct(">HI")
_DEFAULT_WINDOW = 65_535
_DEFAULT_FRAME = 16_384
# What the peer may send before it hears that it was read, which is at once.
_WINDOW = 4 << 20
_MOST_HEADER_BYTES = 64 << 10
_log = get_logger(__name__)


class Kind(IntEnum):
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
    """One end of a stream: frames, windows, messages, and whether the other end is there. Its kinds know how it begins and ends.

    Args:
        listener: Hears of it.
        name: What the other end is called in errors.
        silence_seconds: After which a peer that says nothing is asked whether it is there; it has as long to answer.

    Attributes:
        is_over: Whether it has ended.
    """

    def __init__(self, listener: Listener, name: str, silence_seconds: float) -> None:
        self.is_over = False
        self._listener = listener
        self._name = name
        self._silence_seconds = silence_seconds
        self._transport: asyncio.Transport | None = None
        self._stream = 1
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
            self._send(frame(Kind.RST_STREAM, 0, self._stream, _CANCEL.to_bytes(4, "big")))
            self._end(unavailable(self._name))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins the connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(
            self._opening()
            + frame(Kind.SETTINGS, 0, _CONNECTION, _SETTING.pack(_INITIAL_WINDOW_SIZE, _WINDOW))
            + frame(Kind.WINDOW_UPDATE, 0, _CONNECTION, (_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big"))
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
            elif not kind:  # Kind.DATA: nearly all that comes
                self._take_data(flags, data[body:start])
            else:
                self._take(kind, flags, stream & 0x7FFFFFFF, data[body:start])
        self._rest = data[start:]
        if self._read >= _WINDOW // 2 and not self.is_over:
            self._acknowledge()

    def _take_data(self, flags: int, payload: bytes) -> None:
        self._read += len(payload)
        if flags & _PADDED:
            payload = _unpadded(payload)
        if self._message:
            self._message += payload
            if len(self._message) < self._needed and not flags & END_STREAM:
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
        if flags & END_STREAM:
            self._hear_end()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        match kind:
            case Kind.HEADERS | Kind.CONTINUATION:
                self._take_headers(kind, flags, stream, payload)
            case Kind.SETTINGS if not flags & _ACK:
                self._take_settings(payload)
            # Where nothing leaves, what waits will say that this end is there; answers to whoever reads none must not gather.
            case Kind.PING if not flags & _ACK and not self._paused:
                self._send(frame(Kind.PING, _ACK, _CONNECTION, payload))
            case Kind.WINDOW_UPDATE:
                more = int.from_bytes(payload, "big") & 0x7FFFFFFF
                if stream == _CONNECTION:
                    self._connection_window += more
                else:
                    self._window += more
                self._go_on()
            case Kind.RST_STREAM:
                self._end(unavailable(self._name))
            case Kind.GOAWAY if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF < self._stream:
                self._end(unavailable(self._name))
            case _:
                pass  # what has no meaning here, or is not known, is passed over (RFC 9113, 4.1)

    def _take_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == Kind.HEADERS:
            self._block_ends = bool(flags & END_STREAM)
            if flags & _PADDED:
                payload = _unpadded(payload)
            self._block = b""
            payload = payload[5 if flags & _PRIORITY else 0 :]
        self._block += payload
        if len(self._block) > _MOST_HEADER_BYTES:
            self._broken("its headers are too large")
        elif flags & END_HEADERS:
            try:
                headers = {str(name): str(value) for name, value in self._decoder.decode(self._block)}
            except (HPACKError, UnicodeDecodeError):
                self._broken("its headers make no sense")
                return
            self._hear_headers(headers, stream, is_last=self._block_ends)

    def _take_settings(self, payload: bytes) -> None:
        for identifier, value in _SETTING.iter_unpack(payload[: len(payload) // _SETTING.size * _SETTING.size]):
            if identifier == _INITIAL_WINDOW_SIZE:
                self._window += value - self._stream_window_at_first
                self._stream_window_at_first = value
            elif identifier == _MAX_FRAME_SIZE:
                self._largest_frame = value
        self._send(frame(Kind.SETTINGS, _ACK, _CONNECTION))
        self._go_on()

    def _acknowledge(self) -> None:
        read, self._read = self._read.to_bytes(4, "big"), 0
        self._send(frame(Kind.WINDOW_UPDATE, 0, _CONNECTION, read) + frame(Kind.WINDOW_UPDATE, 0, self._stream, read))

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
            self._send(frame(Kind.DATA, 0, self._stream, waiting[:size]))
            del waiting[:size]

    def _opening(self) -> bytes:
        """What is sent before all else."""
        return b""

    def _hear_headers(self, headers: dict[str, str], stream: int, *, is_last: bool) -> None:
        """Takes what the peer begins or ends a stream with; `is_last`: it sends no more."""
        raise NotImplementedError

    def _hear_end(self) -> None:
        """The peer sends no more messages."""
        raise NotImplementedError

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
            self._send(frame(Kind.PING, 0, _CONNECTION, bytes(8)))
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


def frame(kind: int, flags: int, stream: int, payload: bytes | bytearray = b"") -> bytes:
    """The bytes of one (RFC 9113, 4.1). At most 16,384 in `payload`, or what the peer allowed."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def _unpadded(payload: bytes) -> bytes:
    """What a padded frame carries (RFC 9113, 6.1)."""
    return payload[1 : max(len(payload) - payload[0], 1)] if payload else b""
