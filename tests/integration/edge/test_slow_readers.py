"""Clients that read an answer that is no stream slowly, or not at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from edge.listener import Listener
from tests.support.edge_harness import until

LENGTH = 16 << 20


@asynccontextmanager
async def asked(stall_seconds: float) -> AsyncIterator[tuple[Listener, asyncio.StreamReader]]:
    """A server that was asked for a long answer, and what its client reads of that."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(LENGTH))

    app = web.Application()
    app.router.add_get("/", answer)
    listener = Listener(app, max_header_bytes=8190, stall_seconds=stall_seconds, shutdown_timeout=1)
    await listener.setup()
    try:
        await web.TCPSite(listener, "127.0.0.1", 0).start()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.addresses[0])
        reader, writer = await asyncio.open_connection(sock=sock, limit=65_536)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        yield listener, reader
        writer.close()
    finally:
        await listener.cleanup()


async def test_a_client_that_does_not_read_is_cut() -> None:
    """It is hung up on when its time is over, so that neither the connection nor the answer is kept for it."""
    async with asked(0.2) as (listener, _reader):
        assert listener.server is not None
        await until(lambda: listener.server.connections)
        await until(lambda: not listener.server.connections)


async def test_a_client_that_reads_slowly_gets_all() -> None:
    """Whoever goes on reading may take longer than that, also while the kernel takes nothing more."""
    async with asked(1.0) as (_listener, reader):
        began = asyncio.get_running_loop().time()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        read = 0
        while chunk := await reader.read(1 << 20):
            read += len(chunk)
            await asyncio.sleep(0.03)
        assert read == LENGTH
        assert asyncio.get_running_loop().time() - began > 1.0
