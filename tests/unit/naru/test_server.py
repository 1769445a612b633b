"""Where a gRPC server listens."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from naru.errors import invalid_api_key
from naru.identity import Principal, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer


class Nobody:
    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        raise invalid_api_key()


@pytest.mark.parametrize(("host", "target"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")])
async def test_it_listens_on_names_and_on_addresses_of_both_families(host: str, target: str) -> None:
    """An IPv6 address is given as `::1`, as it is for the HTTP listeners."""
    server = GrpcServer(CallerAuthenticator(ServiceTokens({}), Nobody()), metrics=Metrics())
    port = await server.start(host, 0)
    try:
        async with grpc.aio.insecure_channel(f"{target}:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        await server.stop(0)
