"""UsageService over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import grpc

from accounting import checks
from accounting.engines import EngineReport
from accounting.settlement import UsageEvent
from accounting.usage import convert
from accounting.usage.recording import Recorder
from accounting.usage.report_store import ReportStore
from accounting.usage.reporting import visible
from accounting.usage.request_store import RequestStore
from accounting.usage.retention import Pruner
from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.clock import Clock
from naru.context import current
from naru.errors import NaruError
from naru.identity import ServiceName
from naru.logs import Logger
from naru.turns import in_turns

_MAX_EVENTS = 1_024
_MAX_RECORDS = 4_096
_MICROS = 1_000_000


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """Keeps what was used and answers questions about it.

    Args:
        recorder: Keeps usage events, and what engines counted beside them.
        pruner: Knows which come too late.
        reports: Sums them.
        requests: Keeps the request log, and reads single events.
        logger: Hears of records that cannot be kept.
    """

    def __init__(
        self,
        *,
        recorder: Recorder,
        pruner: Pruner,
        reports: ReportStore,
        requests: RequestStore,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._recorder = recorder
        self._pruner = pruner
        self._reports = reports
        self._requests = requests
        self._clock = clock
        self._logger = logger

    async def RecordUsage(
        self,
        request: usage_service_pb2.RecordUsageRequest,
        context: grpc.aio.ServicerContext[usage_service_pb2.RecordUsageRequest, usage_service_pb2.RecordUsageResponse],
    ) -> usage_service_pb2.RecordUsageResponse:
        checks.batch("events", len(request.events), _MAX_EVENTS)
        service = current().caller.service
        read = await in_turns(lambda event: self._taken(convert.event_from_proto(event, service)), request.events)
        events = [one for one in read if not isinstance(one, NaruError)]
        statuses = iter(await self._recorder.record(events, self._counters(request, service)))
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
        read = await in_turns(convert.record_from_proto, request.records)
        kept = [record for record in read if record is not None]
        if len(kept) < len(read):
            self._logger.warning("dropped malformed request records", count=len(read) - len(kept))
        await self._requests.log_requests(kept)
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

    async def ListRequests(
        self,
        request: usage_service_pb2.ListRequestsRequest,
        context: grpc.aio.ServicerContext[
            usage_service_pb2.ListRequestsRequest, usage_service_pb2.ListRequestsResponse
        ],
    ) -> usage_service_pb2.ListRequestsResponse:
        asked = current()
        query = visible(convert.requests_asked_from_proto(request), asked.caller, asked.method)
        found, next_page_token = await self._requests.requests(query, request.page_size, request.page_token)
        return usage_service_pb2.ListRequestsResponse(
            requests=[convert.logged_to_proto(one) for one in found], next_page_token=next_page_token
        )

    async def ExportUsage(
        self,
        request: usage_service_pb2.ExportUsageRequest,
        context: grpc.aio.ServicerContext[usage_service_pb2.ExportUsageRequest, usage_service_pb2.ExportUsageResponse],
    ) -> AsyncIterator[usage_service_pb2.ExportUsageResponse]:
        asked = current()
        query = visible(convert.query_from_proto(request), asked.caller, asked.method)
        # What is booked while it runs would make it go on for ever.
        until = await self._requests.booked_until(round(self._clock.time() * _MICROS))
        query = replace(query, end_time=until if query.end_time is None else min(query.end_time, until))
        yield usage_service_pb2.ExportUsageResponse(total_records=await self._reports.about(query))
        async with aclosing(self._requests.export(query)) as chunks:
            async for records in chunks:
                yield usage_service_pb2.ExportUsageResponse(
                    records=[convert.exported_to_proto(record) for record in records]
                )

    def _counters(
        self, request: usage_service_pb2.RecordUsageRequest, service: ServiceName | None
    ) -> EngineReport | None:
        if not request.HasField("counters"):
            return None
        report = convert.engine_report_from_proto(request.counters, service)
        if report is None:
            self._logger.warning("dropped malformed counters of an engine", service=service)
        return report

    def _taken(self, event: UsageEvent | NaruError) -> UsageEvent | NaruError:
        return event if isinstance(event, NaruError) else self._pruner.refusal(event) or event
