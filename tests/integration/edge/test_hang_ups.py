"""What the log says of answers that end before they are whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from edge.listener import Listener


@asynccontextmanager
async def ending_with(error: Exception) -> AsyncIterator[str]:
    """A server whose answers end with it after a few bytes; gives its address."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a few bytes")
        raise error

    app = web.Application()
    app.router.add_get("/", answer)
    listener = Listener(app, max_header_bytes=8190, stall_seconds=30, shutdown_timeout=1)
    await listener.setup()
    try:
        site = web.TCPSite(listener, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{listener.addresses[0][1]}/"
    finally:
        await listener.cleanup()


async def errors_told(error: Exception, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error while a client saw its answer break off."""
    caplog.clear()
    async with ending_with(error) as url, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with http.get(url) as answer:
                async with asyncio.timeout(20):
                    await answer.read()
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_hangs_up_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """The request's own line in the log says that it went away; there is no traceback of it."""
    assert await errors_told(ConnectionResetError("Cannot write to closing transport"), caplog) == []


async def test_an_answer_that_is_broken_off_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """What has a cause on this side is told, and so is what nobody expected."""
    cut = ConnectionResetError("the export broke off")
    cut.__cause__ = TimeoutError()
    for error in (cut, RuntimeError("unexpected")):
        assert len(await errors_told(error, caplog)) == 1
