"""What every HTTP request goes through: who may ask at all, one place for errors, headers, log, metrics and request log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import HttpVersion11, hdrs, web
from opentelemetry import trace

from edge.accounts import RequestRecord
from edge.dialect import Dialect
from edge.exchange import EXCHANGE, Exchange
from edge.http_errors import HttpError
from edge.metrics import EdgeMetrics
from naru import context
from naru.addresses import TrustedProxies
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.identity import Caller
from naru.ids import new_request_id
from naru.interceptors import internal_error
from naru.logs import get_logger
from naru.tracing import Tracing, current_trace_id

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECURITY_HEADERS = {
    # Not which server and which version of it.
    "Server": "naru",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
_EXPOSED_HEADERS = (
    "X-Request-Id, Request-Id, Retry-After, Retry-After-Ms, OpenAI-Processing-Ms, Server-Timing, X-RateLimit-Limit-Requests,"
    " X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests, X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens,"
    " X-RateLimit-Reset-Tokens, X-RateLimit-Limit-Minute, X-RateLimit-Remaining-Minute, X-RateLimit-Limit-Hour,"
    " X-RateLimit-Remaining-Hour, X-Should-Retry, X-Naru-Cost, X-Naru-Replayed, X-Naru-Original-Request-Id, "
    + ", ".join(
        f"Anthropic-RateLimit-{kind}-{what}"
        for kind in ("Requests", "Tokens", "Input-Tokens", "Output-Tokens")
        for what in ("Limit", "Remaining", "Reset")
    )
)


class RequestLog(Protocol):
    """Takes what is to be known of every API request."""

    def put(self, record: RequestRecord) -> None:
        """Does not wait."""


@dataclass(frozen=True, slots=True)
class WebPolicy:
    """Who may ask at all.

    Attributes:
        trusted_hosts: Host names that are answered; "*.example.com" for all below, "*" for all.
        cors_origins: Origins whose pages may call from a browser; "*" for all.
        cookie_origins: Origins whose pages may also send cookies.
        endpoints: Canonical endpoint by route.
        quiet: Routes that are no API: kept out of the request log, logged at debug level.
        dialect: Which API's client makes a request.
    """

    trusted_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    cookie_origins: tuple[str, ...]
    proxies: TrustedProxies
    endpoints: dict[str, str]
    quiet: frozenset[str]
    dialect: Callable[[web.Request], Dialect]


class Middleware:
    """The outermost layer of the application. `observe` is its middleware, `add_headers` hears of every response."""

    def __init__(
        self,
        *,
        policy: WebPolicy,
        clock: Clock,
        metrics: EdgeMetrics,
        tracing: Tracing,
        request_log: RequestLog,
    ) -> None:
        self._policy = policy
        self._trusts_every_host = "*" in policy.trusted_hosts
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        self._request_log = request_log
        # Bound once: each use of the module's own would look the configuration up again.
        self._log = get_logger(__name__).bind()

    @web.middleware
    async def observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers every request, whatever happens, and tells everybody who counts requests."""
        exchange = self._exchange(request)
        request[EXCHANGE] = exchange
        entered = context.enter(
            context.RequestContext(
                exchange.request_id, Caller(), exchange.endpoint, client_address=exchange.client_address
            )
        )
        self._metrics.in_flight.inc()
        try:
            if not self._tracing.enabled:
                return await self._answer(request, handler, exchange)
            span = self._tracing.start_span(
                f"{request.method} {exchange.endpoint}",
                request.headers.get("traceparent", ""),
                {"http.request.method": request.method, "http.route": exchange.endpoint},
                trace.SpanKind.SERVER,
            )
            with trace.use_span(span, end_on_exit=True, record_exception=False):
                exchange.trace_id = current_trace_id()
                response = await self._answer(request, handler, exchange)
                span.set_attributes(
                    {"http.response.status_code": exchange.status, "naru.request_id": exchange.request_id}
                )
                return response
        finally:
            self._metrics.in_flight.dec()
            self._tell(exchange)
            context.leave(entered)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Sets the headers that every response has, streams and errors included, just before they are sent."""
        exchange = request.get(EXCHANGE)
        headers = response.headers
        if request.version < HttpVersion11 and hdrs.CONTENT_LENGTH not in headers:
            # Its end is the end of the connection, which aiohttp 3.14 announces and then keeps open (`_prepare_headers`).
            response.force_close()
        headers.update(SECURITY_HEADERS)
        headers.setdefault("Cache-Control", "no-store")
        origin = request.headers.get("Origin")
        if origin is not None and (self._policy.cors_origins or self._policy.cookie_origins):
            headers["Vary"] = "Origin"
            if self._allows(origin):
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
            if origin in self._policy.cookie_origins:
                headers["Access-Control-Allow-Credentials"] = "true"
        if exchange is None:
            return
        elapsed = self._clock.monotonic() - exchange.started
        headers["X-Request-Id"] = exchange.request_id
        if exchange.api:
            headers["OpenAI-Processing-Ms"] = str(round(elapsed * 1000))
            headers["Server-Timing"] = (
                f"auth;dur={exchange.auth_seconds * 1000:.2f},"
                f" reserve;dur={exchange.progress.reserve_seconds * 1000:.2f}, first;dur={elapsed * 1000:.2f}"
            )
            headers.update(exchange.dialect.headers(exchange.request_id, exchange.progress.limits, self._clock.time()))

    def _exchange(self, request: web.Request) -> Exchange:
        given = request.headers.get("X-Request-Id", "")
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else ""
        return Exchange(
            request_id=given if context.is_request_id(given) else new_request_id(),
            endpoint=self._policy.endpoints.get(route, route) or "unknown",
            api=bool(route) and route not in self._policy.quiet,
            started=self._clock.monotonic(),
            start_time=self._clock.time(),
            client_address=self._policy.proxies.client_address(
                request.remote or "", ",".join(request.headers.getall("X-Forwarded-For", ()))
            ),
            dialect=self._policy.dialect(request),
        )

    async def _answer(self, request: web.Request, handler: Handler, exchange: Exchange) -> web.StreamResponse:
        try:
            response = self._turned_away(request, exchange) or await handler(request)
        except NaruError as error:
            exchange.reason = error.reason
            response = to_response(exchange.dialect.error(error, exchange.request_id))
        except web.HTTPException as error:
            response = to_response(_http_exception(request, exchange, error))
        except (asyncio.CancelledError, ConnectionError):
            exchange.reason = exchange.reason or Reason.CANCELLED
            exchange.status = exchange.status or 499
            raise
        except Exception as cause:  # noqa: BLE001 -- whatever it is, the client gets a fixed text and the log gets the cause
            exchange.reason = Reason.INTERNAL
            fault = internal_error(cause, exchange.endpoint)
            response = to_response(exchange.dialect.error(fault, exchange.request_id))
        exchange.status = response.status
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            exchange.response_bytes = len(response.body)
            exchange.first_byte = exchange.first_byte or self._clock.monotonic() - exchange.started
        return response

    def _turned_away(self, request: web.Request, exchange: Exchange) -> web.Response | None:
        """The answer to a request that does not get as far as its handler; None for all others."""
        if not self._trusts_every_host and not self._trusts_host(request.headers.get("Host", "")):
            return to_response(_plain(exchange, 400, "Invalid Host header.", "invalid_host"))
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if not self._allows(request.headers.get("Origin", "")):
            return to_response(_plain(exchange, 403, "This origin may not call this server.", "origin_not_allowed"))
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
                # The SDKs have headers of their own (X-Stainless-*), and browsers take no wildcard for Authorization.
                "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", ""),
                "Access-Control-Max-Age": "600",
            },
        )

    def _trusts_host(self, host: str) -> bool:
        name = host.lower()
        name = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
        return any(
            name == pattern.lower() or (pattern.startswith("*.") and name.endswith(pattern[1:].lower()))
            for pattern in self._policy.trusted_hosts
        )

    def _allows(self, origin: str) -> bool:
        allowed = (*self._policy.cors_origins, *self._policy.cookie_origins)
        return bool(origin) and ("*" in allowed or origin in allowed)

    def _tell(self, exchange: Exchange) -> None:
        duration = self._clock.monotonic() - exchange.started
        self._metrics.requests.labels(exchange.endpoint, exchange.status).inc()
        self._metrics.seconds.labels(exchange.endpoint).observe(duration)
        usage = exchange.progress.usage
        level = self._log.info if exchange.api else self._log.debug
        level(
            "request",
            request_id=exchange.request_id,
            key_id=exchange.principal.key_id if exchange.principal else "",
            endpoint=exchange.endpoint,
            model=exchange.requested_model,
            status=exchange.status,
            reason=exchange.reason,
            **({"trace_id": exchange.trace_id} if exchange.trace_id else {}),
            duration_ms=round(duration * 1000, 1),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
        if exchange.api:
            self._request_log.put(_record(exchange, duration))


def to_response(error: HttpError) -> web.Response:
    """An error as a response."""
    return web.Response(status=error.status, body=error.body, content_type="application/json", headers=error.headers)


def _plain(exchange: Exchange, status: int, message: str, code: str | None = None) -> HttpError:
    return exchange.dialect.plain_error(status, message, code, exchange.request_id)


def _http_exception(request: web.Request, exchange: Exchange, error: web.HTTPException) -> HttpError:
    match error.status:
        case 404:
            message = f"Unknown request URL: {request.method} {request.path}."
            return _plain(exchange, 404, message, "unknown_url")
        case 405:
            allowed = error.headers.get("Allow", "")
            message = f"Method {request.method} is not allowed here; try {allowed}."
            answer = _plain(exchange, 405, message, "method_not_allowed")
            answer.headers["Allow"] = allowed
            return answer
        case _:
            return _plain(exchange, error.status, error.reason)


def _record(exchange: Exchange, duration: float) -> RequestRecord:
    return RequestRecord(
        event_id=exchange.progress.event_id,
        request_id=exchange.request_id,
        principal=exchange.principal,
        endpoint=exchange.endpoint,
        requested_model=exchange.requested_model,
        status=exchange.status,
        reason=exchange.reason,
        start_time=exchange.start_time,
        duration=duration,
        first_byte=exchange.first_byte,
        request_bytes=exchange.request_bytes,
        response_bytes=exchange.response_bytes,
        stream=exchange.stream,
        trace_id=exchange.trace_id,
        finish_reason=exchange.progress.finish_reason,
    )
