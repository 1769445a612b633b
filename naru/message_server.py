"""The serving end of streams of messages: a port where one method is served, to services, each stream on a connection of its own.

gRPC's own server serves the method too, at its own port and to whoever may call it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from urllib.parse import quote

from hpack import Encoder

from naru import permissions
from naru.context import RequestContext
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Caller, ServiceTokens
from naru.ids import new_request_id
from naru.interceptors import SERVICE_TOKEN_METADATA
from naru.message_stream import END_HEADERS, END_STREAM, PREFACE, SILENCE_SECONDS, Kind, Listener, MessageStream, frame
from naru.status import error_to_status

_HEAD = [(":status", "200"), ("content-type", "application/grpc")]


class Served(Listener, Protocol):
    """Hears what a caller's stream has to say."""

    def finished(self) -> None:
        """The caller sends no more, and still listens."""


Serve = Callable[["ServedStream", RequestContext], Served]
Accept = Callable[["ServedStream", dict[str, str]], Served]


class ServedStream(MessageStream):
    """The serving end of a stream. Made by `MessageServer`.

    Args:
        accept: Begins to serve a call by its headers, or raises NaruError.
        closed: Called when the connection is gone.
    """

    def __init__(self, accept: Accept, closed: Callable[[ServedStream], None], silence_seconds: float) -> None:
        super().__init__(_Nobody(), "the caller", silence_seconds)
        self._accept = accept
        self._closed = closed
        self._encoder = Encoder()
        self._greeting = b""
        self._served: Served | None = None
        self._last: bytes | None = None

    def finish(self, error: NaruError | None = None) -> None:
        """Ends the stream after all that was written; the caller hears of `error`."""
        if self._last is None:
            self._last = self._headers(_trailers(error), END_STREAM)
            self._flush()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for what the caller wants."""
        super().connection_made(transport)
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the listener, unless it knows."""
        super().connection_lost(exc)
        self._closed(self)

    def data_received(self, data: bytes) -> None:
        """Takes the frames apart, once the caller has shown that it speaks HTTP/2."""
        if (missing := len(PREFACE) - len(self._greeting)) > 0:
            self._greeting += data[:missing]
            data = data[missing:]
            if not PREFACE.startswith(self._greeting):
                self._broken("it does not speak HTTP/2")
                return
        super().data_received(data)

    def _take_data(self, flags: int, payload: bytes) -> None:
        if self._served is None:
            self._broken("it sends messages before it calls")
        else:
            super()._take_data(flags, payload)

    def _hear_headers(self, headers: dict[str, str], stream: int, *, is_last: bool) -> None:
        if self._served is None:
            self._stream = stream
            try:
                self._listener = self._served = self._accept(self, headers)
            except NaruError as error:
                self._last = self._headers(_HEAD + _trailers(error), END_STREAM)
                self._flush()
                return
            self._send(self._headers(_HEAD))
        elif stream != self._stream:
            self._broken("it has another stream already")
            return
        if is_last:
            self._hear_end()

    def _hear_end(self) -> None:
        if self._served is not None:
            self._served.finished()

    def _flush(self) -> None:
        super()._flush()
        if self._last is not None and not self._waiting and not self.is_over:
            self._send(self._last)
            self._end(unavailable(self._name))

    def _headers(self, headers: list[tuple[str, str]], flags: int = 0) -> bytes:
        block = self._encoder.encode(headers, huffman=False)
        return frame(Kind.HEADERS, END_HEADERS | flags, self._stream, block)


class MessageServer:
    """Serves one method to the services that may call it, on a port of its own.

    Args:
        path: As in "/naru.api.inference.v1.InferenceService/GenerateSession".
        tokens: Those of the services.
        serve: Begins to serve a stream, which may be written to once it returned.
        silence_seconds: As `MessageStream` has it.
    """

    def __init__(
        self, path: str, tokens: ServiceTokens, serve: Serve, *, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self._path = path
        self._tokens = tokens
        self._serve = serve
        self._silence_seconds = silence_seconds
        self._open: set[ServedStream] = set()
        self._none_open = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, a free one when `port` is 0. Raises OSError when it is taken."""
        self._server = await asyncio.get_running_loop().create_server(self._made, host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self, grace: float) -> None:
        """Takes no new connections, lets streams end within `grace` seconds, then closes them."""
        if self._server is None:
            return
        self._server.close()
        if self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    _ = await self._none_open.wait()
        for stream in tuple(self._open):
            stream.close()
        await self._server.wait_closed()

    def _made(self) -> ServedStream:
        stream = ServedStream(self._accept, self._closed, self._silence_seconds)
        self._open.add(stream)
        self._none_open.clear()
        return stream

    def _closed(self, stream: ServedStream) -> None:
        self._open.discard(stream)
        if not self._open:
            self._none_open.set()

    def _accept(self, stream: ServedStream, headers: dict[str, str]) -> Served:
        if headers.get(":path") != self._path:
            raise NaruError(Reason.NOT_SUPPORTED, f"Only {self._path} is served at this port.")
        token = headers.get(SERVICE_TOKEN_METADATA)
        if token is None:
            raise NaruError(
                Reason.CREDENTIALS_MISSING, f"This port is for services, which send {SERVICE_TOKEN_METADATA}."
            )
        service = self._tokens.who(token)
        if service is None:
            raise NaruError(Reason.INVALID_API_KEY, "Unknown service token.")
        caller = Caller(service=service)
        permissions.check(caller, self._path)
        return self._serve(stream, RequestContext(new_request_id(), caller, self._path))


class _Nobody:
    """Hears of a stream that nobody serves."""

    def message(self, message: bytes) -> None:
        pass

    def ready(self) -> None:
        pass

    def ended(self, error: NaruError) -> None:
        pass


def _trailers(error: NaruError | None) -> list[tuple[str, str]]:
    """What a call ends with (PROTOCOL-HTTP2.md of gRPC)."""
    if error is None:
        return [("grpc-status", "0")]
    status = error_to_status(error)
    details = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    return [
        ("grpc-status", str(status.code)),
        ("grpc-message", quote(status.message, safe=" ")),
        ("grpc-status-details-bin", details),
    ]
