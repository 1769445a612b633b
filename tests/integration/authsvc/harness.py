"""A running authsvc and the ways into it: as a service, and as the owner of a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from authsvc.config import AuthsvcConfig
from naru.api.auth.v1 import (
    api_key_pb2,
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    auth_service_pb2,
    auth_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.errors import NaruError, Reason
from naru.identity import ServiceName, ServiceTokens
from naru.lifecycle import Running

_TIMEOUT = 5.0


@dataclass(frozen=True)
class KeyOwner:
    """Calls ApiKeyService with a key."""

    client: ServiceClient

    async def create(self, **fields: Any) -> api_key_service_pb2.CreateApiKeyResponse:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self.client.channel)
        request = api_key_service_pb2.CreateApiKeyRequest(**fields)
        return await self.client.call(stub.CreateApiKey, request, timeout=_TIMEOUT)

    async def list(self, **fields: Any) -> api_key_service_pb2.ListApiKeysResponse:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self.client.channel)
        request = api_key_service_pb2.ListApiKeysRequest(**fields)
        return await self.client.call(stub.ListApiKeys, request, timeout=_TIMEOUT)

    async def revoke(self, **fields: Any) -> api_key_pb2.ApiKey:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self.client.channel)
        request = api_key_service_pb2.RevokeApiKeyRequest(**fields)
        return (await self.client.call(stub.RevokeApiKey, request, timeout=_TIMEOUT)).api_key


class AuthService:
    """A running authsvc."""

    def __init__(self, up: Running, tokens: ServiceTokens, stack: AsyncExitStack) -> None:
        self.ops_port = up.ops_port
        self.address = f"127.0.0.1:{up.port}"
        self._tokens = tokens
        self._stack = stack

    def as_service(self, name: ServiceName) -> ServiceClient:
        return self._closed_at_the_end(ServiceClient(self.address, name="authsvc", service_token=self._tokens.of(name)))

    def as_owner(self, key: str) -> KeyOwner:
        return KeyOwner(self._closed_at_the_end(ServiceClient(self.address, name="authsvc", credential=key)))

    async def bootstrap(self, **fields: Any) -> auth_service_pb2.BootstrapResponse:
        client = self.as_service(ServiceName.OPERATOR)
        stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        return await client.call(stub.Bootstrap, auth_service_pb2.BootstrapRequest(**fields), timeout=_TIMEOUT)

    async def admin(self) -> KeyOwner:
        return self.as_owner((await self.bootstrap()).api_key)

    async def authenticate(
        self, credential: str, client_address: str = "", caller: ServiceName = ServiceName.EDGE
    ) -> auth_service_pb2.AuthenticateResponse:
        client = self.as_service(caller)
        stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        request = auth_service_pb2.AuthenticateRequest(credential=credential, client_address=client_address)
        return await client.call(stub.Authenticate, request, timeout=_TIMEOUT)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[auth_service_pb2.WatchInvalidationsResponse]]:
        client = self.as_service(ServiceName.EDGE)
        stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        request = auth_service_pb2.WatchInvalidationsRequest()
        async with client.stream(stub.WatchInvalidations, request, timeout=None) as messages:
            yield messages

    def _closed_at_the_end(self, client: ServiceClient) -> ServiceClient:
        self._stack.push_async_callback(client.close)
        return client


@asynccontextmanager
async def serving(config: AuthsvcConfig, up: Running) -> AsyncIterator[AuthService]:
    """The ways into a service that is up; closes every client at the end."""
    async with AsyncExitStack() as stack:
        yield AuthService(up, ServiceTokens.read(config.service_tokens_dir), stack)


async def refused(call: Awaitable[Any]) -> NaruError:
    """The error that `call` fails with."""
    with pytest.raises(NaruError) as failure:
        await call
    return failure.value


async def refused_field(call: Awaitable[Any]) -> str:
    """The field for which `call` is refused as an invalid argument."""
    error = await refused(call)
    assert error.reason is Reason.INVALID_ARGUMENT, error
    return error.metadata["field"]


async def eventually(condition: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    """Returns when `condition` holds. Raises TimeoutError when it does not within `within` seconds."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)
