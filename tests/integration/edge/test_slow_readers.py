"""Clients that read an answer slowly, not at all, or not to its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from edge.listener import Listener
from tests.support.edge_harness import until

LENGTH = 16 << 20
SMALL = 4_096
"""A buffer of the kernel's that leaves most of an answer in the process."""
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def long_answer(_request: web.Request) -> web.Response:
    return web.Response(body=bytes(LENGTH))


@asynccontextmanager
async def asked(
    stall_seconds: float, answer: Answer = long_answer, *, receive_buffer: int = 65_536
) -> AsyncIterator[tuple[Listener, socket.socket]]:
    """A server that was asked, and its client's end of the connection."""
    app = web.Application()
    app.router.add_get("/", answer)
    listener = Listener(app, max_header_bytes=8190, stall_seconds=stall_seconds, shutdown_timeout=1)
    await listener.setup()
    try:
        await web.TCPSite(listener, "127.0.0.1", 0).start()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, listener.addresses[0])
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            yield listener, client
    finally:
        await listener.cleanup()


async def hung_up_on(listener: Listener) -> None:
    """Returns when the server keeps nothing for its client any more."""
    assert listener.server is not None
    await until(lambda: listener.server.requests_count)
    await until(lambda: not listener.server.connections)


async def read_until_end(client: socket.socket) -> int:
    """How many bytes there are still to read."""
    count = 0
    while chunk := await asyncio.get_running_loop().sock_recv(client, 65_536):
        count += len(chunk)
    return count


async def test_a_client_that_does_not_read_is_cut() -> None:
    """It is hung up on when its time is over, so that neither the connection nor the answer is kept for it."""
    async with asked(0.2) as (listener, _client):
        await hung_up_on(listener)


async def test_a_client_that_does_not_read_the_end_is_cut() -> None:
    """Also when so little is left that the server waits no longer before it closes the connection."""
    transports: list[asyncio.Transport] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        transports.append(request.transport)
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        return web.Response(body=bytes(LENGTH))

    async with asked(0.2, answer, receive_buffer=SMALL) as (listener, client):
        await until(lambda: transports and transports[0].get_write_buffer_size())
        read = 0
        while transports[0].get_write_buffer_size() > 16_384:
            read += len(await asyncio.get_running_loop().sock_recv(client, 1_000))
        await hung_up_on(listener)
        assert read + await read_until_end(client) < LENGTH


async def test_a_client_that_does_not_read_a_short_rest_is_cut() -> None:
    """Also when what the kernel did not take was never so much that the server waited."""
    written: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        response = web.StreamResponse()
        await response.prepare(request)
        while request.transport.get_write_buffer_size() < 32_768:
            await response.write(bytes(1_000))
            written.append(1_000)
        return response

    async with asked(0.2, answer, receive_buffer=SMALL) as (listener, client):
        await hung_up_on(listener)
        assert await read_until_end(client) < sum(written)


async def test_a_client_that_reads_slowly_gets_all() -> None:
    """Whoever goes on reading may take longer than that, also while the kernel takes nothing more."""
    async with asked(1.0) as (_listener, client):
        began = asyncio.get_running_loop().time()
        reader, writer = await asyncio.open_connection(sock=client, limit=65_536)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        read = 0
        while chunk := await reader.read(1 << 20):
            read += len(chunk)
            await asyncio.sleep(0.03)
        writer.close()
        assert read == LENGTH
        assert asyncio.get_running_loop().time() - began > 1.0
