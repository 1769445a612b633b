"""QuotaService over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc

from accounting import checks
from accounting.limiter import convert
from accounting.limiter.outcome_convert import outcome_from_proto
from accounting.limiter.outcomes import Outcomes
from accounting.limiter.reservations import Reservations
from accounting.limiter.reserve_sessions import ReserveSessions
from accounting.quota import EventRef, Renewal, RunningRequest
from naru.api.accounting.v1 import quota_service_pb2, quota_service_pb2_grpc
from naru.context import current
from naru.errors import NaruError
from naru.tracing import Tracing

_MAX_RESERVATIONS = 256
_MAX_RELEASES = 256
_MAX_RENEWALS = 4_096
_CLOSED = Renewal(None)


class QuotaServicer(quota_service_pb2_grpc.QuotaServiceServicer):
    """Decides whether requests may be made.

    Args:
        reservations: Decides.
        outcomes: Keeps what became of requests with an idempotency key.
        restore: Takes what running requests hold that is unknown.
        tracing: For requests that come by a session.
    """

    def __init__(
        self,
        reservations: Reservations,
        outcomes: Outcomes,
        restore: Callable[[Sequence[RunningRequest]], Awaitable[list[Renewal]]],
        tracing: Tracing,
    ) -> None:
        self._reservations = reservations
        self._outcomes = outcomes
        self._restore = restore
        self.sessions = ReserveSessions(self._reserve, tracing)

    async def Reserve(
        self,
        request: quota_service_pb2.ReserveRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.ReserveRequest, quota_service_pb2.ReserveResponse],
    ) -> quota_service_pb2.ReserveResponse:
        return await self._reserve(request, ())

    def ReserveSession(
        self,
        request_iterator: AsyncIterator[quota_service_pb2.ReserveSessionRequest],
        context: grpc.aio.ServicerContext[
            quota_service_pb2.ReserveSessionRequest, quota_service_pb2.ReserveSessionResponse
        ],
    ) -> AsyncIterator[quota_service_pb2.ReserveSessionResponse]:
        return self.sessions.serve(request_iterator)

    async def _reserve(
        self, request: quota_service_pb2.ReserveRequest, finished: Sequence[quota_service_pb2.EventRef]
    ) -> quota_service_pb2.ReserveResponse:
        checks.batch("items", len(request.items), _MAX_RESERVATIONS)
        ended = _refs("finished", finished)
        read = [convert.reservation_from_proto(item) for item in request.items]
        asked = [one for one in read if not isinstance(one, NaruError)]
        decisions = iter(await self._reservations.reserve(asked, ended))
        kinds = convert.kinds_from_proto(request)
        results = [
            convert.refused_to_proto(item, one)
            if isinstance(one, NaruError)
            else convert.decision_to_proto(next(decisions), kinds)
            for item, one in zip(request.items, read, strict=True)
        ]
        return quota_service_pb2.ReserveResponse(results=results)

    async def Release(
        self,
        request: quota_service_pb2.ReleaseRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.ReleaseRequest, quota_service_pb2.ReleaseResponse],
    ) -> quota_service_pb2.ReleaseResponse:
        checks.batch("items", len(request.items), _MAX_RELEASES)
        refs = [convert.ref_from_proto(item) for item in request.items]
        known = [ref for ref in refs if ref is not None]
        released = iter(await self._reservations.release(known, unused_spares=request.unused_spares))
        return quota_service_pb2.ReleaseResponse(
            results=[quota_service_pb2.ReleaseResult(released=ref is not None and next(released)) for ref in refs]
        )

    async def Finish(
        self,
        request: quota_service_pb2.FinishRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.FinishRequest, quota_service_pb2.FinishResponse],
    ) -> quota_service_pb2.FinishResponse:
        await self._reservations.finish(_refs("items", request.items))
        return quota_service_pb2.FinishResponse()

    async def Renew(
        self,
        request: quota_service_pb2.RenewRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.RenewRequest, quota_service_pb2.RenewResponse],
    ) -> quota_service_pb2.RenewResponse:
        checks.batch("items", len(request.items), _MAX_RENEWALS)
        refs = [convert.ref_from_proto(item) for item in request.items]
        leases = iter(await self._reservations.renew([ref for ref in refs if ref is not None]))
        return quota_service_pb2.RenewResponse(
            results=[convert.renewal_to_proto(_CLOSED if ref is None else next(leases)) for ref in refs]
        )

    async def Restore(
        self,
        request: quota_service_pb2.RestoreRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.RestoreRequest, quota_service_pb2.RestoreResponse],
    ) -> quota_service_pb2.RestoreResponse:
        checks.batch("items", len(request.items), _MAX_RESERVATIONS)
        read = [convert.running_from_proto(item) for item in request.items]
        leases = iter(await self._restore([one for one in read if one is not None]))
        return quota_service_pb2.RestoreResponse(
            results=[convert.renewal_to_proto(_CLOSED if one is None else next(leases)) for one in read]
        )

    async def KeepOutcome(
        self,
        request: quota_service_pb2.KeepOutcomeRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.KeepOutcomeRequest, quota_service_pb2.KeepOutcomeResponse],
    ) -> quota_service_pb2.KeepOutcomeResponse:
        kept = await self._outcomes.keep(outcome_from_proto(request))
        return quota_service_pb2.KeepOutcomeResponse(kept=kept)

    async def GetLimits(
        self,
        request: quota_service_pb2.GetLimitsRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.GetLimitsRequest, quota_service_pb2.GetLimitsResponse],
    ) -> quota_service_pb2.GetLimitsResponse:
        whose = convert.limits_asked_from_proto(request, current())
        return convert.overview_to_proto(await self._reservations.overview(*whose))


def _refs(field: str, items: Sequence[quota_service_pb2.EventRef]) -> list[EventRef]:
    """The attempts that can exist. Raises NaruError INVALID_ARGUMENT when there are too many."""
    checks.batch(field, len(items), _MAX_RENEWALS)
    refs = (convert.ref_from_proto(item) for item in items)
    return [ref for ref in refs if ref is not None]
