"""Between the messages of `naru.api.accounting.v1` and accounting's own types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from accounting import checks
from accounting.catalogue_convert import KINDS_TO_PROTO, SCOPES_TO_PROTO, WINDOWS_TO_PROTO, unit_prices_to_proto
from accounting.quota import (
    Decision,
    EventRef,
    Grant,
    LimitOverview,
    LimitState,
    Reservation,
    Work,
)
from accounting.reporting import Dimension, RequestRecord, UsageQuery, UsageRow
from accounting.settlement import Accuracy, Evidence, Outcome, RecordStatus, UsageEvent
from naru.api.accounting.v1 import limit_pb2, quota_service_pb2, usage_event_pb2, usage_service_pb2
from naru.api.common.v1 import principal_pb2, usage_pb2
from naru.context import RequestContext
from naru.convert import (
    duration_to_proto,
    error_to_proto,
    principal_from_proto,
    reason_from_proto,
    usage_from_proto,
    usage_to_proto,
)
from naru.errors import NaruError, invalid_argument
from naru.identity import Principal, ServiceName
from naru.usage import Usage

_MICROS = 1_000_000
_SECONDS_MAX = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second of google.protobuf.Timestamp
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

_EVIDENCE = {
    usage_event_pb2.EVIDENCE_ACCEPTED: Evidence.ACCEPTED,
    usage_event_pb2.EVIDENCE_DELIVERED: Evidence.DELIVERED,
    usage_event_pb2.EVIDENCE_FINAL: Evidence.FINAL,
}
_ACCURACY = {
    usage_event_pb2.ACCURACY_EXACT: Accuracy.EXACT,
    usage_event_pb2.ACCURACY_REPORTED: Accuracy.REPORTED,
    usage_event_pb2.ACCURACY_ESTIMATED: Accuracy.ESTIMATED,
}
_OUTCOMES = {
    usage_event_pb2.OUTCOME_COMPLETED: Outcome.COMPLETED,
    usage_event_pb2.OUTCOME_ABORTED: Outcome.ABORTED,
    usage_event_pb2.OUTCOME_FAILED: Outcome.FAILED,
}
_STATUSES = {
    RecordStatus.RECORDED: usage_service_pb2.RECORD_USAGE_STATUS_RECORDED,
    RecordStatus.KNOWN: usage_service_pb2.RECORD_USAGE_STATUS_KNOWN,
}
_DIMENSIONS = {
    usage_service_pb2.USAGE_DIMENSION_KEY: Dimension.KEY,
    usage_service_pb2.USAGE_DIMENSION_MODEL: Dimension.MODEL,
    usage_service_pb2.USAGE_DIMENSION_DAY: Dimension.DAY,
    usage_service_pb2.USAGE_DIMENSION_WORKSPACE: Dimension.WORKSPACE,
}


def reservation_from_proto(message: quota_service_pb2.Reservation) -> Reservation | NaruError:
    """What one request wants to take, or why it cannot be read."""
    try:
        if message.revision < 0:
            raise invalid_argument("revision", "revision must be at least 0.")
        return Reservation(
            ref=checks.event_ref(message.event_id, message.attempt),
            revision=message.revision,
            work=_work(message, message.principal),
            input_tokens=checks.tokens("input_tokens", message.input_tokens),
            output_tokens=checks.tokens("output_tokens", message.output_tokens),
            choices=checks.choices(message.choices),
            client_address=checks.address(message.client_address),
        )
    except NaruError as error:
        return error


def refused_to_proto(message: quota_service_pb2.Reservation, error: NaruError) -> quota_service_pb2.ReserveResult:
    """The answer to a reservation that cannot be read."""
    return quota_service_pb2.ReserveResult(
        event_id=message.event_id, attempt=message.attempt, refusal=error_to_proto(error)
    )


def decision_to_proto(decision: Decision) -> quota_service_pb2.ReserveResult:
    """The answer to a reservation."""
    result = quota_service_pb2.ReserveResult(
        event_id=decision.ref.event_id,
        attempt=decision.ref.attempt,
        limits=[_limit_to_proto(state) for state in decision.limits],
    )
    match decision.outcome:
        case Grant() as grant:
            result.grant.lease_expire_time.CopyFrom(time_to_proto(grant.lease_expire_time))
            result.grant.reserve_time.CopyFrom(time_to_proto(grant.reserve_time))
            if grant.output_token_cap is not None:
                result.grant.output_token_cap = grant.output_token_cap
            if grant.prices is not None:
                result.grant.prices.CopyFrom(unit_prices_to_proto(grant.prices))
        case NaruError() as error:
            result.refusal.CopyFrom(error_to_proto(error))
    return result


def ref_from_proto(message: quota_service_pb2.EventRef) -> EventRef | None:
    """Which attempt it is; None for one that cannot exist."""
    try:
        return checks.event_ref(message.event_id, message.attempt)
    except NaruError:
        return None


def renewal_to_proto(lease_expire_time: int | None) -> quota_service_pb2.RenewResult:
    """The answer to a renewal."""
    if lease_expire_time is None:
        return quota_service_pb2.RenewResult(renewed=False)
    return quota_service_pb2.RenewResult(renewed=True, lease_expire_time=time_to_proto(lease_expire_time))


def event_from_proto(message: usage_event_pb2.UsageEvent, service: ServiceName | None) -> UsageEvent | NaruError:
    """A report by `service`, or why it can never be recorded."""
    try:
        evidence = _EVIDENCE.get(message.evidence)
        accuracy = _ACCURACY.get(message.accuracy)
        outcome = _OUTCOMES.get(message.outcome)
        if evidence is None or accuracy is None or outcome is None:
            field = "evidence" if evidence is None else "accuracy" if accuracy is None else "outcome"
            raise invalid_argument(field, f"{field} must be set to a known value.")
        checks.reporter(evidence, service)
        return UsageEvent(
            ref=checks.event_ref(message.event_id, message.attempt),
            evidence=evidence,
            accuracy=accuracy,
            outcome=outcome,
            work=_work(message, message.principal),
            usage=_usage(message.usage),
            accept_time=_time("accept_time", message.accept_time) if message.HasField("accept_time") else None,
            end_time=_time("end_time", message.end_time) if message.HasField("end_time") else None,
            replica=checks.clipped(message.replica, checks.MAX_REQUEST_ID),
            epoch=checks.clipped(message.epoch, checks.MAX_REQUEST_ID),
        )
    except NaruError as error:
        return error


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
        )
    except NaruError:
        return None


def query_from_proto(request: usage_service_pb2.QueryUsageRequest) -> UsageQuery:
    """What is asked. Raises NaruError INVALID_ARGUMENT."""
    group_by = tuple(_dimension(value) for value in request.group_by)
    if len(set(group_by)) != len(group_by):
        raise invalid_argument("group_by", "group_by must not name a dimension twice.")
    return UsageQuery(
        group_by=group_by,
        start_time=_time("start_time", request.start_time) if request.HasField("start_time") else None,
        end_time=_time("end_time", request.end_time) if request.HasField("end_time") else None,
        key_id=checks.text("key_id", request.key_id),
        model=checks.text("model", request.model, checks.MAX_MODEL),
        workspace_id=checks.text("workspace_id", request.workspace_id),
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
    return message


def time_to_proto(micros: int) -> Timestamp:
    """A moment, from microseconds since the Unix epoch."""
    seconds, rest = divmod(micros, _MICROS)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def limits_asked_from_proto(
    request: quota_service_pb2.GetLimitsRequest, asked: RequestContext
) -> tuple[Principal, str, str]:
    """Whose limits are asked for, from which address, and for which model."""
    model = checks.clipped(request.model, checks.MAX_MODEL)
    if asked.caller.principal is not None:
        return asked.caller.principal, asked.client_address, model
    who = checks.principal(principal_from_proto(request.principal))
    return who, checks.address(request.client_address), model


def overview_to_proto(overview: LimitOverview) -> quota_service_pb2.GetLimitsResponse:
    """Where somebody's limits stand."""
    return quota_service_pb2.GetLimitsResponse(
        limits=[_limit_to_proto(state) for state in overview.limits], tier=overview.tier
    )


def _limit_to_proto(state: LimitState) -> limit_pb2.LimitState:
    return limit_pb2.LimitState(
        scope=SCOPES_TO_PROTO[state.limit.scope],
        kind=KINDS_TO_PROTO[state.limit.kind],
        window=WINDOWS_TO_PROTO[state.limit.window],
        limit=state.limit.limit,
        remaining=state.remaining,
        reset_delay=duration_to_proto(state.reset_seconds),
        model=state.limit.model,
        shadow=state.limit.shadow,
    )


def _work(
    message: quota_service_pb2.Reservation | usage_event_pb2.UsageEvent, principal: principal_pb2.Principal
) -> Work:
    return Work(
        principal=checks.principal(principal_from_proto(principal)),
        requested_model=checks.clipped(message.requested_model, checks.MAX_MODEL),
        served_model=checks.clipped(message.served_model, checks.MAX_MODEL),
        endpoint=checks.clipped(message.endpoint, checks.MAX_ENDPOINT),
        request_id=checks.clipped(message.request_id, checks.MAX_REQUEST_ID),
    )


def _usage(message: usage_pb2.Usage) -> Usage:
    usage = usage_from_proto(message)
    for name in ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens"):
        checks.tokens(f"usage.{name}", getattr(usage, name))
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
