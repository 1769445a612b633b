"""The calling end of a stream of messages: how one is opened, and what the service may answer instead."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import random
import socket
from collections.abc import Sequence
from urllib.parse import unquote

import grpc
from aiohappyeyeballs import start_connection
from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple

from naru.errors import NaruError, unavailable
from naru.message_stream import END_HEADERS, PREFACE, SILENCE_SECONDS, Kind, Listener, MessageStream, frame
from naru.status import error_from_rpc

_CONNECT_SECONDS = 5.0
_NEXT_ADDRESS_SECONDS = 0.25


async def open_stream(
    address: str,
    path: str,
    listener: Listener,
    *,
    name: str,
    metadata: Sequence[tuple[str, str]] = (),
    silence_seconds: float = SILENCE_SECONDS,
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
    stream = _Call(listener, name, headers, silence_seconds)
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


async def _connect(address: str, stream: _Call) -> None:
    """To whichever address of the name answers first; each has a moment before the next is tried too."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    random.shuffle(found)
    connection = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
    # What was sent and is not acknowledged for so long is lost, however often the kernel would try again.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_SECONDS * 1_000))
    _ = await loop.create_connection(lambda: stream, sock=connection)
    stream.watch()


class _Call(MessageStream):
    """The caller's end.

    Args:
        headers: What the stream begins with.
    """

    def __init__(self, listener: Listener, name: str, headers: Sequence[HeaderTuple], silence_seconds: float) -> None:
        super().__init__(listener, name, silence_seconds)
        self._headers = headers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins both the connection and the stream."""
        super().connection_made(transport)
        self._send(frame(Kind.HEADERS, END_HEADERS, self._stream, Encoder().encode(self._headers, huffman=False)))

    def abandon(self) -> None:
        """Ends what nobody was given. The listener need not hear of it."""
        self.is_over = True
        if self._watching is not None:
            self._watching.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _opening(self) -> bytes:
        return PREFACE

    def _hear_headers(self, headers: dict[str, str], stream: int, *, is_last: bool) -> None:
        if is_last or headers.get(":status", "200") != "200":
            self._end(self._status(headers))

    def _hear_end(self) -> None:
        self._end(unavailable(self._name))

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
