"""The HTTP server: aiohttp's, with its own errors in OpenAI's shape too."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDictProxy

from edge.http_errors import plain_error
from edge.middleware import SECURITY_HEADERS, to_response
from naru.ids import new_request_id

_CONTINUE = "100-continue"


class _Connection(RequestHandler):
    """One connection."""

    __slots__ = ()

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
    """Makes connections and requests of our kind; `options` are those of aiohttp's request handler."""

    def __init__(self, server: web.Server, options: dict[str, object]) -> None:
        super().__init__(
            server.request_handler,
            request_factory=lambda message, *more: server.request_factory(_without_odd_expectation(message), *more),
            handler_cancellation=server.handler_cancellation,
        )
        self._options = options

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._options)  # type: ignore[arg-type] # aiohttp's own


def _without_odd_expectation(message: RawRequestMessage) -> RawRequestMessage:
    """The head of a request, as if it expected nothing but `100 Continue`, which alone there is.

    aiohttp itself would refuse any other before the application hears of the request.
    """
    if message.headers.get(hdrs.EXPECT, _CONTINUE).lower() == _CONTINUE:
        return message
    headers = message.headers.copy()
    del headers[hdrs.EXPECT]
    return message._replace(headers=CIMultiDictProxy(headers))


class Listener(web.AppRunner):
    """Runs the application.

    Args:
        max_header_bytes: Most bytes of the request line and of each header.
    """

    __slots__ = ("_options",)

    def __init__(self, app: web.Application, *, max_header_bytes: int, shutdown_timeout: float) -> None:
        super().__init__(app, access_log=None, handler_cancellation=True, shutdown_timeout=shutdown_timeout)
        self._options: dict[str, object] = {
            "access_log": None,
            "max_line_size": max_header_bytes,
            "max_field_size": max_header_bytes,
            "keepalive_timeout": 75.0,
        }

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._options)
