"""How services reach each other."""

from __future__ import annotations

import asyncio
import os
import sys

from naru.errors import invalid_api_key
from naru.identity import Principal, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer

CLIENT = """
import asyncio, sys
from grpc_health.v1 import health_pb2, health_pb2_grpc
from naru.client import ServiceClient

async def main(address):
    client = ServiceClient(address, name="service")
    stub = health_pb2_grpc.HealthStub(client.channel)
    await client.call(stub.Check, health_pb2.HealthCheckRequest(), timeout=10)
    await client.close()

asyncio.run(main(sys.argv[1]))
"""


class Nobody:
    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        raise invalid_api_key()


async def test_no_call_goes_through_a_proxy() -> None:
    """Whatever variables name one: it is for what is outside, and a call carries the service's token."""
    server = GrpcServer(CallerAuthenticator(ServiceTokens({}), Nobody()), metrics=Metrics())
    port = await server.start("127.0.0.1", 0)
    heard = 0

    async def hear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += 1
        writer.close()

    try:
        async with await asyncio.start_server(hear, "127.0.0.1", 0) as proxy:
            url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
            client = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                CLIENT,
                f"localhost:{port}",
                env=clean | {"http_proxy": url, "https_proxy": url, "grpc_proxy": url},
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await client.communicate()
    finally:
        await server.stop(0)
    assert client.returncode == 0, said.decode()
    assert heard == 0
