"""The HTTP server: aiohttp's, with its own errors in OpenAI's shape too."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from edge.http_errors import plain_error
from edge.middleware import SECURITY_HEADERS, to_response
from naru.ids import new_request_id

_CONTINUE = "100-continue"


class _Connection(RequestHandler):
    """One connection.

    Args:
        stall_seconds: Seconds a client may leave an answer unread. Streams are looked after where they are made, until they end.
    """

    __slots__ = ("_finishing", "_look", "_stall_seconds")

    def __init__(self, manager: web.Server, *, stall_seconds: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._stall_seconds = stall_seconds
        self._finishing = False
        self._look: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Answers one request after the other, then hangs up on a client that does not read what is left."""
        transport = self.transport
        try:
            await super().start()
        finally:
            # It is closed by now, which waits without any bound until the kernel has taken what was written.
            if transport is not None and transport.get_write_buffer_size() > 0:
                self._look_later(transport, sys.maxsize, self._loop.time())

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Writes an answer, and hangs up on a client that does not read it."""
        self._finishing = True
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._finishing = False
            if self._look is not None:
                self._look.cancel()
                self._look = None

    def pause_writing(self) -> None:
        """Hears that an answer is longer than what the client takes at once; of most there is nothing to wait for."""
        super().pause_writing()
        if self._finishing and self._look is None and self.transport is not None:
            self._look_later(self.transport, _unread_bytes(self.transport), self._loop.time())

    def _look_later(self, transport: asyncio.Transport, unread: int, since: float) -> None:
        self._look = self._loop.call_later(self._stall_seconds / 4, self._look_again, transport, unread, since)

    def _look_again(self, transport: asyncio.Transport, unread: int, since: float) -> None:
        """Hangs up if nothing was read for too long; `unread`: bytes that have been so since then."""
        self._look = None
        if transport.get_write_buffer_size() == 0:
            # The kernel has the rest, or the connection is lost.
            return
        now, left = self._loop.time(), _unread_bytes(transport)
        if left < unread:
            self._look_later(transport, left, now)
        elif now - since < self._stall_seconds:
            self._look_later(transport, unread, since)
        else:
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what is no HTTP request at all: the application never sees those.

        Raises ConnectionError, which ends the connection without a word, when the client went away during its answer.
        """
        if request.writer.output_size > 0:
            if isinstance(exc, ConnectionError) and exc.__cause__ is None:
                # The client hung up, which the request's own line in the log says. An answer that was broken off on this
                # side has a cause, and stays an error.
                raise exc
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            error = plain_error(431, "The request line or a header is too long.", "headers_too_large")
        elif status < 500:
            error = plain_error(status, "The request is not valid HTTP.", "bad_request")
        else:
            error = plain_error(status, "Something went wrong on our side.", "internal_error")
        response = to_response(error)
        response.headers.update(SECURITY_HEADERS)
        response.headers["X-Request-Id"] = new_request_id()
        response.force_close()
        return response


class _Server(web.Server):
    """Makes connections and requests of our kind; `options` are a connection's."""

    def __init__(self, server: web.Server, options: dict[str, Any]) -> None:
        super().__init__(
            server.request_handler,
            request_factory=lambda message, *more: server.request_factory(_without_odd_expectation(message), *more),
            handler_cancellation=server.handler_cancellation,
        )
        self._options = options

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._options)


def _unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the client's machine has not taken yet."""
    # The kernel's too: it holds megabytes and takes more by the third of that, which slow clients need minutes to read.
    waiting = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
    return transport.get_write_buffer_size() + int.from_bytes(waiting, sys.byteorder)


def _without_odd_expectation(message: RawRequestMessage) -> RawRequestMessage:
    """The head of a request, as if it expected nothing but `100 Continue`, which alone there is.

    aiohttp itself would refuse any other before the application hears of the request.
    """
    if message.headers.get(hdrs.EXPECT, _CONTINUE).lower() == _CONTINUE:
        return message
    headers = message.headers.copy()
    del headers[hdrs.EXPECT]
    return message._replace(headers=type(message.headers)(headers))


class Listener(web.AppRunner):
    """Runs the application.

    Args:
        max_header_bytes: Most bytes of the request line and of each header.
        stall_seconds: Seconds a client may leave an answer unread that is no stream, or the end of one.
    """

    __slots__ = ("_options",)

    def __init__(
        self, app: web.Application, *, max_header_bytes: int, stall_seconds: float, shutdown_timeout: float
    ) -> None:
        super().__init__(app, access_log=None, handler_cancellation=True, shutdown_timeout=shutdown_timeout)
        self._options: dict[str, Any] = {
            "access_log": None,
            "max_line_size": max_header_bytes,
            "max_field_size": max_header_bytes,
            "keepalive_timeout": 75.0,
            "stall_seconds": stall_seconds,
        }

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._options)
