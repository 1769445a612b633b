"""Between the messages of `naru.api.accounting.v1.UsageService` and accounting's own types."""

from __future__ import annotations

from dataclasses import astuple
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from accounting import checks
from accounting.engines import EngineFigures, EngineReport
from accounting.limiter.convert import time_to_proto, work_of
from accounting.settlement import RecordStatus, UsageEvent
from accounting.usage.reporting import Dimension, UsageQuery, UsageRecord, UsageRow
from accounting.usage.request_log import LoggedRequest, RequestQuery, RequestRecord
from naru.api.accounting.v1 import usage_event_pb2, usage_service_pb2
from naru.api.common.v1 import usage_pb2
from naru.convert import (
    accuracy_from_proto,
    accuracy_to_proto,
    error_to_proto,
    evidence_from_proto,
    outcome_from_proto,
    outcome_to_proto,
    principal_from_proto,
    reason_from_proto,
    reason_to_proto,
    usage_from_proto,
    usage_to_proto,
)
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Principal, ServiceName
from naru.usage import Usage

_STATUSES = {
    RecordStatus.RECORDED: usage_service_pb2.RECORD_USAGE_STATUS_RECORDED,
    RecordStatus.KNOWN: usage_service_pb2.RECORD_USAGE_STATUS_KNOWN,
}
_DIMENSIONS = {
    usage_service_pb2.USAGE_DIMENSION_KEY: Dimension.KEY,
    usage_service_pb2.USAGE_DIMENSION_MODEL: Dimension.MODEL,
    usage_service_pb2.USAGE_DIMENSION_DAY: Dimension.DAY,
    usage_service_pb2.USAGE_DIMENSION_WORKSPACE: Dimension.WORKSPACE,
    usage_service_pb2.USAGE_DIMENSION_USER: Dimension.USER,
    usage_service_pb2.USAGE_DIMENSION_ENDPOINT: Dimension.ENDPOINT,
    usage_service_pb2.USAGE_DIMENSION_HOUR: Dimension.HOUR,
    usage_service_pb2.USAGE_DIMENSION_SERVICE_ACCOUNT: Dimension.SERVICE_ACCOUNT,
}
_MICROS = 1_000_000
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MAX = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second of google.protobuf.Timestamp


def event_from_proto(message: usage_event_pb2.UsageEvent, service: ServiceName | None) -> UsageEvent | NaruError:
    """A report by `service`, or why it can never be recorded."""
    try:
        evidence = evidence_from_proto(message.evidence)
        accuracy = accuracy_from_proto(message.accuracy)
        outcome = outcome_from_proto(message.outcome)
        if evidence is None or accuracy is None or outcome is None:
            field = "evidence" if evidence is None else "accuracy" if accuracy is None else "outcome"
            raise invalid_argument(field, f"{field} must be set to a known value.")
        checks.reporter(evidence, service)
        return UsageEvent(
            ref=checks.event_ref(message.event_id, message.attempt),
            evidence=evidence,
            accuracy=accuracy,
            outcome=outcome,
            work=work_of(message, checks.principal(principal_from_proto(message.principal))),
            usage=_usage(message.usage),
            accept_time=_time("accept_time", message.accept_time) if message.HasField("accept_time") else None,
            end_time=_time("end_time", message.end_time) if message.HasField("end_time") else None,
            replica=checks.clipped(message.replica, checks.MAX_REQUEST_ID),
            epoch=checks.clipped(message.epoch, checks.MAX_REQUEST_ID),
        )
    except NaruError as error:
        return error


def engine_report_from_proto(
    message: usage_service_pb2.EngineCounters, service: ServiceName | None
) -> EngineReport | None:
    """What an engine counted; None when it cannot be kept. It must not keep the events beside it from being recorded."""
    if service is not ServiceName.INFERENCE:
        return None
    counted = EngineFigures(
        message.requests, message.prompt_tokens, message.cached_prompt_tokens, message.completion_tokens
    )
    try:
        return EngineReport(
            _required("counters.replica", message.replica),
            _required("counters.epoch", message.epoch),
            EngineFigures(*(_counted(figure) for figure in astuple(counted))),
            message.closed,
        )
    except NaruError:
        return None


def _counted(figure: int) -> int:
    if figure < 0:
        raise invalid_argument("counters", "counters must be at least 0.")
    return figure


def recorded_to_proto(outcome: RecordStatus | NaruError) -> usage_service_pb2.RecordUsageResult:
    """What became of a report."""
    if isinstance(outcome, NaruError):
        return usage_service_pb2.RecordUsageResult(
            status=usage_service_pb2.RECORD_USAGE_STATUS_REFUSED, error=error_to_proto(outcome)
        )
    return usage_service_pb2.RecordUsageResult(status=_STATUSES[outcome])


def record_from_proto(message: usage_event_pb2.RequestRecord) -> RequestRecord | None:
    """A line of the request log; None when it cannot be kept."""
    try:
        return RequestRecord(
            request_id=_required("request_id", message.request_id),
            start_time=_time("start_time", message.start_time),
            event_id=checks.text("event_id", message.event_id, 36),
            principal=_logged_principal(message),
            endpoint=checks.clipped(message.endpoint, checks.MAX_ENDPOINT),
            requested_model=checks.clipped(message.requested_model, checks.MAX_MODEL),
            status=message.status,
            reason="" if message.reason == 0 else reason_from_proto(message.reason).value,
            duration_us=message.duration_us,
            first_byte_us=message.first_byte_us,
            request_bytes=message.request_bytes,
            response_bytes=message.response_bytes,
            stream=message.stream,
            trace_id=checks.text("trace_id", message.trace_id, 32),
            finish_reason=checks.clipped(message.finish_reason, checks.MAX_FINISH_REASON),
        )
    except NaruError:
        return None


def query_from_proto(
    request: usage_service_pb2.QueryUsageRequest | usage_service_pb2.ExportUsageRequest,
) -> UsageQuery:
    """What is asked. Raises NaruError INVALID_ARGUMENT."""
    asked = request.group_by if isinstance(request, usage_service_pb2.QueryUsageRequest) else ()
    group_by = tuple(_dimension(value) for value in asked)
    if len(set(group_by)) != len(group_by):
        raise invalid_argument("group_by", "group_by must not name a dimension twice.")
    return UsageQuery(
        group_by=group_by,
        start_time=_time("start_time", request.start_time) if request.HasField("start_time") else None,
        end_time=_time("end_time", request.end_time) if request.HasField("end_time") else None,
        key_id=checks.text("key_id", request.key_id),
        user_id=checks.text("user_id", request.user_id),
        model=checks.text("model", request.model, checks.MAX_MODEL),
        workspace_id=checks.text("workspace_id", request.workspace_id),
        endpoint=checks.text("endpoint", request.endpoint, checks.MAX_ENDPOINT),
    )


def row_to_proto(query: UsageQuery, row: UsageRow) -> usage_service_pb2.UsageRow:
    """One row of an answer."""
    message = usage_service_pb2.UsageRow(
        requests=row.requests,
        usage=usage_to_proto(row.usage),
        cost=row.cost,
        unpriced_requests=row.unpriced_requests,
    )
    for dimension, value in zip(query.group_by, row.group, strict=True):
        match dimension:
            case Dimension.KEY:
                message.key_id = str(value)
            case Dimension.MODEL:
                message.model = str(value)
            case Dimension.DAY:
                message.day = (_BEGINNING + timedelta(days=int(value))).date().isoformat()
            case Dimension.WORKSPACE:
                message.workspace_id = str(value)
            case Dimension.USER:
                message.user_id = str(value)
            case Dimension.ENDPOINT:
                message.endpoint = str(value)
            case Dimension.HOUR:
                message.hour = f"{_BEGINNING + timedelta(hours=int(value)):%Y-%m-%dT%H:%M:%SZ}"
            case Dimension.SERVICE_ACCOUNT:
                message.service_account = str(value)
    return message


def requests_asked_from_proto(request: usage_service_pb2.ListRequestsRequest) -> RequestQuery:
    """Which requests are asked for. Raises NaruError INVALID_ARGUMENT."""
    query = RequestQuery(
        key_id=checks.text("key_id", request.key_id),
        user_id=checks.text("user_id", request.user_id),
        workspace_id=checks.text("workspace_id", request.workspace_id),
        model=checks.text("model", request.model, checks.MAX_MODEL),
        endpoint=checks.text("endpoint", request.endpoint, checks.MAX_ENDPOINT),
        status=request.status,
        status_class=request.status_class,
        start_time=_time("start_time", request.start_time) if request.HasField("start_time") else None,
        end_time=_time("end_time", request.end_time) if request.HasField("end_time") else None,
        request_id=checks.text("request_id", request.request_id, checks.MAX_REQUEST_ID),
        trace_id=request.trace_id,
    )
    query.check()
    return query


def logged_to_proto(logged: LoggedRequest) -> usage_event_pb2.LoggedRequest:
    """A line of the request log, with what the request used."""
    record, who = logged.record, logged.record.principal
    message = usage_event_pb2.LoggedRequest(
        request_id=record.request_id,
        start_time=time_to_proto(record.start_time),
        event_id=record.event_id,
        endpoint=record.endpoint,
        requested_model=record.requested_model,
        status=record.status,
        duration_us=record.duration_us,
        first_byte_us=record.first_byte_us,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        stream=record.stream,
        trace_id=record.trace_id,
        finish_reason=record.finish_reason,
    )
    if record.reason:
        message.reason = reason_to_proto(Reason(record.reason))
    if who is not None:
        message.key_id, message.user_id = who.key_id, who.user_id
        message.service_account, message.workspace_id = who.service_account, who.workspace_id
    if logged.usage is not None:
        message.served_model = logged.usage.served_model
        message.usage.CopyFrom(usage_to_proto(logged.usage.usage))
        message.cost = logged.usage.cost
        message.outcome = outcome_to_proto(logged.usage.outcome)
        message.accuracy = accuracy_to_proto(logged.usage.accuracy)
    return message


def exported_to_proto(record: UsageRecord) -> usage_event_pb2.UsageRecord:
    """A line of an export."""
    who, work = record.work.principal, record.work
    message = usage_event_pb2.UsageRecord(
        event_id=record.ref.event_id,
        attempt=record.ref.attempt,
        reserve_time=time_to_proto(record.reserve_time),
        request_id=work.request_id,
        workspace_id=who.workspace_id,
        key_id=who.key_id,
        user_id=who.user_id,
        service_account=who.service_account,
        tier=who.tier,
        endpoint=work.endpoint,
        requested_model=work.requested_model,
        served_model=work.served_model,
        outcome=outcome_to_proto(record.outcome),
        accuracy=accuracy_to_proto(record.accuracy),
        usage=usage_to_proto(record.usage),
        cost=record.cost,
        price_id=record.price_id,
    )
    if record.end_time is not None:
        message.end_time.CopyFrom(time_to_proto(record.end_time))
    return message


def _usage(message: usage_pb2.Usage) -> Usage:
    usage = usage_from_proto(message)
    checks.tokens("usage.prompt_tokens", usage.prompt_tokens)
    checks.tokens("usage.completion_tokens", usage.completion_tokens)
    checks.tokens("usage.cached_prompt_tokens", usage.cached_prompt_tokens)
    checks.tokens("usage.reasoning_tokens", usage.reasoning_tokens)
    if usage.cached_prompt_tokens > usage.prompt_tokens:
        raise invalid_argument(
            "usage.cached_prompt_tokens", "usage.cached_prompt_tokens must be part of prompt_tokens."
        )
    return usage


def _logged_principal(message: usage_event_pb2.RequestRecord) -> Principal | None:
    if not message.HasField("principal"):
        return None
    return checks.principal(principal_from_proto(message.principal))


def _required(field: str, value: str) -> str:
    if not value:
        raise invalid_argument(field, f"{field} must be set.")
    return checks.text(field, value, checks.MAX_REQUEST_ID)


def _dimension(value: usage_service_pb2.UsageDimension.ValueType) -> Dimension:
    dimension = _DIMENSIONS.get(value)
    if dimension is None:
        raise invalid_argument("group_by", "group_by must name known dimensions.")
    return dimension


def _time(field: str, message: Timestamp) -> int:
    """Microseconds since the Unix epoch."""
    if not 0 <= message.seconds <= _SECONDS_MAX or not 0 <= message.nanos < 1_000_000_000:
        raise invalid_argument(field, f"{field} must be a time from the year 1970 to 9999.")
    return message.seconds * _MICROS + message.nanos // 1_000
