"""Accounting and authsvc as the other services see them, in one server that remembers what it was asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from naru import api_key
from naru.api.accounting.v1 import (
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.api.common.v1 import error_pb2
from naru.convert import principal_to_proto
from naru.errors import invalid_api_key
from naru.identity import Principal, ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer
from tests.support import authenticating, reserving

Context = grpc.aio.ServicerContext[Any, Any]


class RecordingAccounting(quota_service_pb2_grpc.QuotaServiceServicer, usage_service_pb2_grpc.UsageServiceServicer):
    """Grants everything, until a test sets `refusal`."""

    def __init__(self) -> None:
        self.reservations: list[quota_service_pb2.Reservation] = []
        self.released: list[quota_service_pb2.EventRef] = []
        self.renewed: list[quota_service_pb2.EventRef] = []
        self.finished: list[quota_service_pb2.EventRef] = []
        self.events: list[usage_event_pb2.UsageEvent] = []
        self.counters: list[usage_service_pb2.EngineCounters] = []
        self.refusal: error_pb2.Error | None = None
        self.output_token_cap: int | None = None

    def ReserveSession(self, request_iterator: Any, context: Context) -> AsyncIterator[Any]:
        return reserving.answered(self.Reserve, request_iterator, context)

    async def Reserve(
        self, request: quota_service_pb2.ReserveRequest, context: Context
    ) -> quota_service_pb2.ReserveResponse:
        self.reservations += request.items
        grant = None
        if self.refusal is None:
            grant = quota_service_pb2.Grant(output_token_cap=self.output_token_cap)
        return quota_service_pb2.ReserveResponse(
            results=[
                quota_service_pb2.ReserveResult(
                    event_id=item.event_id, attempt=item.attempt, grant=grant, refusal=self.refusal
                )
                for item in request.items
            ]
        )

    async def Release(
        self, request: quota_service_pb2.ReleaseRequest, context: Context
    ) -> quota_service_pb2.ReleaseResponse:
        self.released += request.items
        return quota_service_pb2.ReleaseResponse(
            results=[quota_service_pb2.ReleaseResult(released=True) for _ in request.items]
        )

    async def Renew(self, request: quota_service_pb2.RenewRequest, context: Context) -> quota_service_pb2.RenewResponse:
        self.renewed += request.items
        return quota_service_pb2.RenewResponse(
            results=[quota_service_pb2.RenewResult(renewed=True) for _ in request.items]
        )

    async def Finish(
        self, request: quota_service_pb2.FinishRequest, context: Context
    ) -> quota_service_pb2.FinishResponse:
        self.finished += request.items
        return quota_service_pb2.FinishResponse()

    async def RecordUsage(
        self, request: usage_service_pb2.RecordUsageRequest, context: Context
    ) -> usage_service_pb2.RecordUsageResponse:
        self.events += request.events
        if request.HasField("counters"):
            self.counters.append(request.counters)
        recorded = usage_service_pb2.RecordUsageResult(status=usage_service_pb2.RECORD_USAGE_STATUS_RECORDED)
        return usage_service_pb2.RecordUsageResponse(results=[recorded] * len(request.events))

    async def RecordRequests(
        self, request: usage_service_pb2.RecordRequestsRequest, context: Context
    ) -> usage_service_pb2.RecordRequestsResponse:
        return usage_service_pb2.RecordRequestsResponse()

    async def QueryUsage(
        self, request: usage_service_pb2.QueryUsageRequest, context: Context
    ) -> usage_service_pb2.QueryUsageResponse:
        return usage_service_pb2.QueryUsageResponse()


class KeyRing(auth_service_pb2_grpc.AuthServiceServicer):
    """Knows the keys that a test made.

    Attributes:
        noting: Hears of uses of keys.
    """

    def __init__(self) -> None:
        self.noting: Callable[[auth_service_pb2.NoteKeyUsesRequest], Awaitable[None]] = _forget
        self._principals: dict[str, Principal] = {}

    def new_key(self, make: Callable[[str], Principal]) -> str:
        """A key whose owner `make` says, given the key's id."""
        key = api_key.generate(os.urandom)
        self._principals[key] = make(api_key.parse(key).key_id)
        return key

    async def Authenticate(
        self, request: auth_service_pb2.AuthenticateRequest, context: Context
    ) -> auth_service_pb2.AuthenticateResponse:
        if request.credential not in self._principals:
            raise invalid_api_key()
        principal = principal_to_proto(self._principals[request.credential])
        return auth_service_pb2.AuthenticateResponse(principal=principal, epoch="test")

    async def BatchAuthenticate(
        self, request: auth_service_pb2.BatchAuthenticateRequest, context: Context
    ) -> auth_service_pb2.BatchAuthenticateResponse:
        return await authenticating.answered(self.Authenticate, request, context)

    async def NoteKeyUses(
        self, request: auth_service_pb2.NoteKeyUsesRequest, context: Context
    ) -> auth_service_pb2.NoteKeyUsesResponse:
        await self.noting(request)
        return auth_service_pb2.NoteKeyUsesResponse()

    async def WatchInvalidations(
        self, request: auth_service_pb2.WatchInvalidationsRequest, context: Context
    ) -> AsyncIterator[auth_service_pb2.WatchInvalidationsResponse]:
        while True:
            yield auth_service_pb2.WatchInvalidationsResponse(epoch="test")
            await asyncio.sleep(2)

    async def Bootstrap(
        self, request: auth_service_pb2.BootstrapRequest, context: Context
    ) -> auth_service_pb2.BootstrapResponse:
        return auth_service_pb2.BootstrapResponse()


async def _forget(_request: auth_service_pb2.NoteKeyUsesRequest) -> None:
    pass


class _Nobody:
    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        raise invalid_api_key()


def write_service_tokens(directory: Path) -> ServiceTokens:
    """A token for every service, in the files that services read; those that are there stay."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ServiceName:
        file = directory / f"service-token-{name}"
        if not file.exists():
            file.write_text(os.urandom(32).hex())
    return ServiceTokens.read(directory)


@asynccontextmanager
async def peers(tokens: ServiceTokens, accounting: RecordingAccounting, keys: KeyRing) -> AsyncIterator[str]:
    """Serves them, behind the same gate as the real ones; gives the address."""
    server = GrpcServer(CallerAuthenticator(tokens, _Nobody()), metrics=Metrics())
    server.add(
        quota_service_pb2_grpc.add_QuotaServiceServicer_to_server, accounting, "naru.api.accounting.v1.QuotaService"
    )
    server.add(
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server, accounting, "naru.api.accounting.v1.UsageService"
    )
    server.add(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, keys, "naru.api.auth.v1.AuthService")
    port = await server.start("127.0.0.1", 0)
    await server.set_serving(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
