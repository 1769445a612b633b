"""Calls that one service makes for a principal, over a real socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.client import ServiceClient
from naru.context import current
from naru.errors import NaruError, Reason, invalid_api_key
from naru.identity import Caller, Principal, Role, Scopes, ServiceName, ServiceTokens
from naru.interceptors import PRINCIPAL_METADATA, SERVICE_TOKEN_METADATA, CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer

TOKENS = ServiceTokens({name: os.urandom(32).hex() for name in ServiceName})
PRINCIPAL = Principal(
    workspace_id="ws1",
    role=Role.WORKSPACE_ADMIN,
    tier="team",
    key_id="abcdefABCDEF",
    user_id="u1",
    service_account="dev-team",
    scopes=Scopes(models=("smollm2-*",), source_cidrs=("10.0.0.0/8",)),
)


class Usage(usage_service_pb2_grpc.UsageServiceServicer):
    """Remembers who called."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    async def QueryUsage(self, request: Any, context: Any) -> usage_service_pb2.QueryUsageResponse:
        self.callers.append(current().caller)
        return usage_service_pb2.QueryUsageResponse()


class OneKey:
    """Knows the key "admin-key"."""

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        if credential != "admin-key":
            raise invalid_api_key()
        return Principal(workspace_id="ws0", role=Role.ADMIN)


class Service:
    """The server under test, and clients of it."""

    def __init__(self, port: int, usage: Usage) -> None:
        self.usage = usage
        self._address = f"127.0.0.1:{port}"

    async def call(self, on_behalf_of: Principal | None, **credentials: Any) -> None:
        """Asks for usage. Raises NaruError."""
        client = ServiceClient(self._address, name="usage", **credentials)
        try:
            stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
            request = usage_service_pb2.QueryUsageRequest()
            await client.call(stub.QueryUsage, request, timeout=5, on_behalf_of=on_behalf_of)
        finally:
            await client.close()

    async def send(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        """Asks for usage with this metadata. Raises NaruError."""
        client = ServiceClient(self._address, name="usage")
        try:
            stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)

            def method(request: Any, *, timeout: float, metadata: Any, add: Any = metadata) -> Any:
                return stub.QueryUsage(request, timeout=timeout, metadata=(*metadata, *add))

            await client.call(method, usage_service_pb2.QueryUsageRequest(), timeout=5)  # type: ignore[arg-type]
        finally:
            await client.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    usage = Usage()
    server = GrpcServer(CallerAuthenticator(TOKENS, OneKey()), metrics=Metrics())
    server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, usage, "usage")
    port = await server.start("127.0.0.1", 0)
    yield Service(port, usage)
    await server.stop(0)


async def refusal(call: Callable[[], Any]) -> NaruError:
    with pytest.raises(NaruError) as raised:
        await call()
    return raised.value


async def test_the_edge_calls_for_a_principal(service: Service) -> None:
    """The caller is then that principal, whole, and the edge no more."""
    await service.call(PRINCIPAL, service_token=TOKENS.of(ServiceName.EDGE))
    assert service.usage.callers == [Caller(principal=PRINCIPAL)]


async def test_the_edge_calls_for_itself(service: Service) -> None:
    """Without a principal the caller is the edge."""
    await service.call(None, service_token=TOKENS.of(ServiceName.EDGE))
    assert service.usage.callers == [Caller(service=ServiceName.EDGE)]


async def test_nobody_else_may(service: Service) -> None:
    """Another service and an admin's key are refused, although both may make the call for themselves."""
    admin = Principal(workspace_id="ws1", role=Role.ADMIN)
    credentials: tuple[dict[str, str], ...] = (
        {"service_token": TOKENS.of(ServiceName.OPERATOR)},
        {"credential": "admin-key"},
    )
    for credential in credentials:
        error = await refusal(lambda credential=credential: service.call(admin, **credential))  # type: ignore[misc]
        assert error.reason is Reason.PERMISSION_DENIED
        assert error.metadata == {"method": "/naru.api.accounting.v1.UsageService/QueryUsage"}
        assert service.usage.callers == []
        await service.call(None, **credential)
        service.usage.callers.clear()


async def test_a_principal_without_a_credential_is_nobody(service: Service) -> None:
    """Naming a principal is no credential."""
    assert (await refusal(lambda: service.call(PRINCIPAL))).reason is Reason.CREDENTIALS_MISSING
    wrong = await refusal(lambda: service.call(PRINCIPAL, service_token="x" * 40))
    assert wrong.reason is Reason.INVALID_API_KEY


@pytest.mark.parametrize("serialised", [b"\xff\xff\xff", b""])
async def test_what_names_nobody_is_refused(service: Service, serialised: bytes) -> None:
    """Bytes that are no principal, or one without a workspace, are never taken for the edge's own call."""
    metadata = ((SERVICE_TOKEN_METADATA, TOKENS.of(ServiceName.EDGE)), (PRINCIPAL_METADATA, serialised))
    error = await refusal(lambda: service.send(metadata))
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.metadata == {"field": PRINCIPAL_METADATA}
    assert service.usage.callers == []
