"""An accounting service that decides as a test tells it, and records what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from naru.api.accounting.v1 import (
    limit_pb2,
    price_pb2,
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.convert import error_to_proto
from naru.errors import NaruError
from naru.identity import ServiceName, ServiceTokens
from naru.interceptors import Authenticator, CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer
from tests.support import reserving
from tests.support.recorded_rpcs import RecordedRpcs
from tests.support.service_tokens import NobodyKnown

Decide = Callable[[quota_service_pb2.Reservation], quota_service_pb2.ReserveResult]


def grant(
    reservation: quota_service_pb2.Reservation,
    *,
    cap: int | None = None,
    limits: tuple[limit_pb2.LimitState, ...] = (),
    prices: price_pb2.UnitPrices | None = None,
) -> quota_service_pb2.ReserveResult:
    """Leave to run it."""
    return quota_service_pb2.ReserveResult(
        event_id=reservation.event_id,
        attempt=reservation.attempt,
        grant=quota_service_pb2.Grant(output_token_cap=cap, prices=prices),
        limits=limits,
    )


def refuse(
    reservation: quota_service_pb2.Reservation,
    error: NaruError,
    limits: tuple[limit_pb2.LimitState, ...] = (),
) -> quota_service_pb2.ReserveResult:
    """No leave."""
    return quota_service_pb2.ReserveResult(
        event_id=reservation.event_id, attempt=reservation.attempt, refusal=error_to_proto(error), limits=limits
    )


class FakeAccounting:
    """The service.

    Attributes:
        decide: Decides on reservations; grants everything by default.
        answering: While it is not set, reservations are decided and their answers wait.
        keeping: Hears of fates first, and may raise.
        reserved, released, renewed, kept: What it was asked, in order.
        usage: Events that were reported.
        batches: Batches of request records.
        rpcs: All other calls.
        export: What exports go on with after their first answer.
    """

    def __init__(self) -> None:
        self.decide: Decide = grant
        self.answering = asyncio.Event()
        self.answering.set()
        self.keeping: Callable[[quota_service_pb2.KeepOutcomeRequest], None] = lambda _: None
        self.reserved: list[quota_service_pb2.Reservation] = []
        self.released: list[tuple[str, int]] = []
        self.renewed: list[tuple[str, int]] = []
        self.kept: list[quota_service_pb2.KeepOutcomeRequest] = []
        self.usage: list[usage_event_pb2.UsageEvent] = []
        self.batches: list[list[usage_event_pb2.RequestRecord]] = []
        self.failing_usage_calls = 0
        self.rpcs = RecordedRpcs()
        self.export: list[usage_service_pb2.ExportUsageResponse | NaruError] = []
        self.port = 0
        self._server: GrpcServer | None = None

    @property
    def records(self) -> list[usage_event_pb2.RequestRecord]:
        """All request records."""
        return [record for batch in self.batches for record in batch]

    async def start(self, tokens: dict[ServiceName, str], principals: Authenticator | None = None) -> None:
        """Listens. `principals` knows the callers that are no service; nobody by default."""
        callers = CallerAuthenticator(ServiceTokens(tokens), principals or NobodyKnown())
        self._server = GrpcServer(callers, metrics=Metrics())
        self._server.add(quota_service_pb2_grpc.add_QuotaServiceServicer_to_server, _Quota(self), "quota")
        self._server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, _Usage(self), "usage")
        self._server.add(self.rpcs.add_to_server, None, "catalogue")
        self.port = await self._server.start("127.0.0.1", 0)
        await self._server.set_serving(True)

    async def kill(self) -> None:
        """Goes away."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)


class _Quota(quota_service_pb2_grpc.QuotaServiceServicer):
    def __init__(self, fake: FakeAccounting) -> None:
        self._fake = fake

    def ReserveSession(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        return reserving.answered(self.Reserve, requests, context)

    async def Reserve(self, request: Any, context: Any) -> quota_service_pb2.ReserveResponse:
        self._fake.reserved.extend(request.items)
        results = [self._fake.decide(item) for item in request.items]
        await self._fake.answering.wait()
        return quota_service_pb2.ReserveResponse(results=results)

    async def Release(self, request: Any, context: Any) -> quota_service_pb2.ReleaseResponse:
        self._fake.released.extend((item.event_id, item.attempt) for item in request.items)
        results = [quota_service_pb2.ReleaseResult(released=True) for _ in request.items]
        return quota_service_pb2.ReleaseResponse(results=results)

    async def Renew(self, request: Any, context: Any) -> quota_service_pb2.RenewResponse:
        self._fake.renewed.extend((item.event_id, item.attempt) for item in request.items)
        results = [quota_service_pb2.RenewResult(renewed=True) for _ in request.items]
        return quota_service_pb2.RenewResponse(results=results)

    async def KeepOutcome(self, request: Any, context: Any) -> quota_service_pb2.KeepOutcomeResponse:
        self._fake.keeping(request)
        self._fake.kept.append(request)
        return quota_service_pb2.KeepOutcomeResponse(kept=True)

    async def GetLimits(self, request: Any, context: Any) -> Any:
        return self._fake.rpcs.answer("QuotaService/GetLimits", request, quota_service_pb2.GetLimitsResponse)


class _Usage(usage_service_pb2_grpc.UsageServiceServicer):
    def __init__(self, fake: FakeAccounting) -> None:
        self._fake = fake

    async def RecordUsage(self, request: Any, context: Any) -> usage_service_pb2.RecordUsageResponse:
        if self._fake.failing_usage_calls:
            self._fake.failing_usage_calls -= 1
            raise RuntimeError("told to fail")
        self._fake.usage.extend(request.events)
        result = usage_service_pb2.RecordUsageResult(status=usage_service_pb2.RECORD_USAGE_STATUS_RECORDED)
        return usage_service_pb2.RecordUsageResponse(results=[result for _ in request.events])

    async def RecordRequests(self, request: Any, context: Any) -> usage_service_pb2.RecordRequestsResponse:
        self._fake.batches.append(list(request.records))
        return usage_service_pb2.RecordRequestsResponse()

    async def QueryUsage(self, request: Any, context: Any) -> Any:
        return self._fake.rpcs.answer("UsageService/QueryUsage", request, usage_service_pb2.QueryUsageResponse)

    async def ListRequests(self, request: Any, context: Any) -> Any:
        return self._fake.rpcs.answer("UsageService/ListRequests", request, usage_service_pb2.ListRequestsResponse)

    async def ExportUsage(self, request: Any, context: Any) -> Any:
        first = self._fake.rpcs.answer("UsageService/ExportUsage", request, usage_service_pb2.ExportUsageResponse)
        yield first
        for answer in self._fake.export:
            if isinstance(answer, NaruError):
                raise answer
            yield answer
