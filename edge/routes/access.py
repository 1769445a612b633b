"""What every API route does first: find out who asks, and read what they sent."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

from aiohttp import web

from edge.attribution import HEADER as USER_TOKEN
from edge.attribution import Attribution
from edge.exchange import EXCHANGE
from edge.gateway import Gateway
from edge.routes.cookies import read_cookie
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.identity import Principal


class Access:
    """Reads credentials and bodies.

    Args:
        attribution: Knows which keys may name the user they ask for.
        cookie_origins: Origins whose pages may send a cookie as their credential; none: cookies are not read.
        max_body_bytes: Most bytes of a body.
        body_timeout: Seconds a client may take to send it.
    """

    def __init__(
        self,
        gateway: Gateway,
        clock: Clock,
        *,
        attribution: Attribution,
        cookie_origins: tuple[str, ...] = (),
        max_body_bytes: int,
        body_timeout: float,
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._attribution = attribution
        self._cookie_origins = cookie_origins
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout

    async def authenticate(self, request: web.Request) -> Principal:
        """Who asks. Raises NaruError as `Gateway.authenticate`, `Attribution.attribute` and `read_cookie`."""
        exchange = request[EXCHANGE]
        started = self._clock.monotonic()
        try:
            credential = _credential(request) or read_cookie(request, self._cookie_origins)
            principal = await self._gateway.authenticate(
                credential, exchange.client_address, request.headers.get("OpenAI-Project", "")
            )
            principal = await self._attribution.attribute(principal, request.headers.getall(USER_TOKEN, ()))
        finally:
            exchange.auth_seconds = self._clock.monotonic() - started
        exchange.credential, exchange.principal = credential, principal
        return principal

    async def read_body(self, request: web.Request) -> bytes:
        """The body. Raises NaruError PAYLOAD_TOO_LARGE, and HTTPRequestTimeout when it comes too slowly."""
        if (request.content_length or 0) > self._max_body_bytes:
            raise self._too_large()
        try:
            # Most bodies came with their head: nothing is waited for, and a timer costs more than reading them.
            async with nullcontext() if request.content.is_eof() else asyncio.timeout(self._body_timeout):
                body = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(reason="The request's body did not come in time.") from None
        except web.HTTPRequestEntityTooLarge:
            raise self._too_large() from None
        except web.RequestPayloadError:
            raise NaruError(Reason.INVALID_ARGUMENT, "The request's body is malformed.") from None
        request[EXCHANGE].request_bytes = len(body)
        return body

    def _too_large(self) -> NaruError:
        return NaruError(
            Reason.PAYLOAD_TOO_LARGE,
            f"The request's body is larger than {self._max_body_bytes} bytes.",
            metadata={"limit_bytes": str(self._max_body_bytes)},
        )


def _credential(request: web.Request) -> str:
    """The credential, from whichever header clients put it in; empty when there is none."""
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    return request.headers.get("X-Api-Key", "").strip() or request.headers.get("Api-Key", "").strip()
