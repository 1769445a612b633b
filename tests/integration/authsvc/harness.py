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
    audit_service_pb2,
    audit_service_pb2_grpc,
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
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
        return await self._call("Create", **fields)

    async def list(self, **fields: Any) -> api_key_service_pb2.ListApiKeysResponse:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self.client.channel)
        request = api_key_service_pb2.ListApiKeysRequest(**fields)
        return await self.client.call(stub.ListApiKeys, request, timeout=_TIMEOUT)

    async def get(self, **fields: Any) -> api_key_pb2.ApiKey:
        return (await self._call("Get", **fields)).api_key

    async def update(self, **fields: Any) -> api_key_pb2.ApiKey:
        return (await self._call("Update", **fields)).api_key

    async def rotate(self, **fields: Any) -> api_key_service_pb2.RotateApiKeyResponse:
        return await self._call("Rotate", **fields)

    async def block(self, **fields: Any) -> api_key_pb2.ApiKey:
        return (await self._call("Block", **fields)).api_key

    async def unblock(self, **fields: Any) -> api_key_pb2.ApiKey:
        return (await self._call("Unblock", **fields)).api_key

    async def revoke(self, **fields: Any) -> api_key_pb2.ApiKey:
        return (await self._call("Revoke", **fields)).api_key

    async def new_user(self, email: str = "ann@example.com", **fields: Any) -> str:
        """The id of a user who belongs to the owner's workspace."""
        stub = user_service_pb2_grpc.UserServiceStub(self.client.channel)
        request = user_service_pb2.CreateUserRequest(user=user_pb2.User(email=email, **fields))
        return (await self.client.call(stub.CreateUser, request, timeout=_TIMEOUT)).user.user_id

    async def audit(self, **fields: Any) -> audit_service_pb2.ListAuditEntriesResponse:
        stub = audit_service_pb2_grpc.AuditServiceStub(self.client.channel)
        request = audit_service_pb2.ListAuditEntriesRequest(**fields)
        return await self.client.call(stub.ListAuditEntries, request, timeout=_TIMEOUT)

    async def exported(self, **fields: Any) -> tuple[audit_service_pb2.AuditEntry, ...]:
        stub = audit_service_pb2_grpc.AuditServiceStub(self.client.channel)
        request = audit_service_pb2.ExportAuditEntriesRequest(**fields)
        async with self.client.stream(stub.ExportAuditEntries, request, timeout=_TIMEOUT) as pages:
            return tuple([entry async for page in pages for entry in page.entries])

    async def _call(self, verb: str, **fields: Any) -> Any:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self.client.channel)
        request = getattr(api_key_service_pb2, f"{verb}ApiKeyRequest")(**fields)
        return await self.client.call(getattr(stub, f"{verb}ApiKey"), request, timeout=_TIMEOUT)


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

    async def authenticate_together(self, *credentials: str) -> list[auth_service_pb2.AuthenticateResult]:
        client = self.as_service(ServiceName.EDGE)
        stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        requests = [auth_service_pb2.AuthenticateRequest(credential=credential) for credential in credentials]
        request = auth_service_pb2.BatchAuthenticateRequest(requests=requests)
        return list((await client.call(stub.BatchAuthenticate, request, timeout=_TIMEOUT)).results)

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


async def eventually(condition: Callable[[], Awaitable[bool]], within: float = 20.0) -> None:
    """Returns when `condition` holds. Raises TimeoutError when it does not within `within` seconds."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)
