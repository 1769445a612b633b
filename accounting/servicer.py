"""QuotaService and UsageService over gRPC."""

from __future__ import annotations

import grpc

from accounting import checks, convert
from accounting.recording import Recorder
from accounting.report_store import ReportStore
from accounting.reporting import visible
from accounting.reservations import Reservations
from naru.api.accounting.v1 import (
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.context import current
from naru.errors import NaruError
from naru.logs import Logger

_MAX_RESERVATIONS = 256
_MAX_RELEASES = 256
_MAX_RENEWALS = 4_096
_MAX_EVENTS = 1_024
_MAX_RECORDS = 4_096


class QuotaServicer(quota_service_pb2_grpc.QuotaServiceServicer):
    """Decides whether requests may be made.

    Args:
        reservations: Decides.
    """

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations

    async def Reserve(
        self,
        request: quota_service_pb2.ReserveRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.ReserveRequest, quota_service_pb2.ReserveResponse],
    ) -> quota_service_pb2.ReserveResponse:
        checks.batch("items", len(request.items), _MAX_RESERVATIONS)
        read = [convert.reservation_from_proto(item) for item in request.items]
        decisions = iter(await self._reservations.reserve([one for one in read if not isinstance(one, NaruError)]))
        results = [
            convert.refused_to_proto(item, one)
            if isinstance(one, NaruError)
            else convert.decision_to_proto(next(decisions))
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
        released = iter(await self._reservations.release([ref for ref in refs if ref is not None]))
        return quota_service_pb2.ReleaseResponse(
            results=[quota_service_pb2.ReleaseResult(released=ref is not None and next(released)) for ref in refs]
        )

    async def Renew(
        self,
        request: quota_service_pb2.RenewRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.RenewRequest, quota_service_pb2.RenewResponse],
    ) -> quota_service_pb2.RenewResponse:
        checks.batch("items", len(request.items), _MAX_RENEWALS)
        refs = [convert.ref_from_proto(item) for item in request.items]
        leases = iter(await self._reservations.renew([ref for ref in refs if ref is not None]))
        return quota_service_pb2.RenewResponse(
            results=[convert.renewal_to_proto(None if ref is None else next(leases)) for ref in refs]
        )

    async def GetLimits(
        self,
        request: quota_service_pb2.GetLimitsRequest,
        context: grpc.aio.ServicerContext[quota_service_pb2.GetLimitsRequest, quota_service_pb2.GetLimitsResponse],
    ) -> quota_service_pb2.GetLimitsResponse:
        whose = convert.limits_asked_from_proto(request, current())
        return convert.overview_to_proto(await self._reservations.overview(*whose))


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """Keeps what was used and answers questions about it.

    Args:
        recorder: Keeps usage events.
        reports: Sums them, and keeps the request log.
        logger: Hears of records that cannot be kept.
    """

    def __init__(self, recorder: Recorder, reports: ReportStore, logger: Logger) -> None:
        self._recorder = recorder
        self._reports = reports
        self._logger = logger

    async def RecordUsage(
        self,
        request: usage_service_pb2.RecordUsageRequest,
        context: grpc.aio.ServicerContext[usage_service_pb2.RecordUsageRequest, usage_service_pb2.RecordUsageResponse],
    ) -> usage_service_pb2.RecordUsageResponse:
        checks.batch("events", len(request.events), _MAX_EVENTS)
        service = current().caller.service
        read = [convert.event_from_proto(event, service) for event in request.events]
        statuses = iter(await self._recorder.record([one for one in read if not isinstance(one, NaruError)]))
        return usage_service_pb2.RecordUsageResponse(
            results=[convert.recorded_to_proto(one if isinstance(one, NaruError) else next(statuses)) for one in read]
        )

    async def RecordRequests(
        self,
        request: usage_service_pb2.RecordRequestsRequest,
        context: grpc.aio.ServicerContext[
            usage_service_pb2.RecordRequestsRequest, usage_service_pb2.RecordRequestsResponse
        ],
    ) -> usage_service_pb2.RecordRequestsResponse:
        checks.batch("records", len(request.records), _MAX_RECORDS)
        read = [convert.record_from_proto(record) for record in request.records]
        kept = [record for record in read if record is not None]
        if len(kept) < len(read):
            self._logger.warning("dropped malformed request records", count=len(read) - len(kept))
        await self._reports.log_requests(kept)
        return usage_service_pb2.RecordRequestsResponse()

    async def QueryUsage(
        self,
        request: usage_service_pb2.QueryUsageRequest,
        context: grpc.aio.ServicerContext[usage_service_pb2.QueryUsageRequest, usage_service_pb2.QueryUsageResponse],
    ) -> usage_service_pb2.QueryUsageResponse:
        asked = current()
        query = visible(convert.query_from_proto(request), asked.caller, asked.method)
        rows, next_page_token = await self._reports.page(query, request.page_size, request.page_token)
        return usage_service_pb2.QueryUsageResponse(
            rows=[convert.row_to_proto(query, row) for row in rows], next_page_token=next_page_token
        )
