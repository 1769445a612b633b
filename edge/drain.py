"""Lets running requests end when the edge stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from naru.errors import NaruError, unavailable


class Drain:
    """Knows which requests run.

    Args:
        stopping: Set when the edge is to stop.
    """

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return not self._stopping.is_set()

    @web.middleware
    async def count(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Middleware that counts running requests."""
        self._running += 1
        self._idle.clear()
        try:
            return await handler(request)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def close_connection(self, _request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Makes an answer the last one of its connection once the edge stops; hears of every response."""
        if self._stopping.is_set():
            response.force_close()
            response.headers["Connection"] = "close"

    async def finish(self, interrupt_all: Callable[[NaruError], None], grace: float) -> None:
        """Waits for running requests, and ends those that outlast `grace` seconds with an error."""
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            interrupt_all(unavailable("edge", "The server is stopping."))
