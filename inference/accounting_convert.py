"""Between the messages of accounting's services and inference's own types."""

from __future__ import annotations

from inference.admission import Need, Renewal, RunningRequest
from inference.events import EngineReport, EventKey, GenerationOrder, UsageEvent
from naru.api.accounting.v1 import quota_service_pb2, usage_event_pb2, usage_service_pb2
from naru.convert import (
    accuracy_to_proto,
    error_from_proto,
    evidence_to_proto,
    outcome_to_proto,
    principal_to_proto,
    timestamp_to_proto,
    usage_to_proto,
)
from naru.errors import NaruError, Reason


def key_to_proto(key: EventKey) -> quota_service_pb2.EventRef:
    """Names one attempt of one request."""
    return quota_service_pb2.EventRef(event_id=key.event_id, attempt=key.attempt)


def reservation_to_proto(
    order: GenerationOrder, need: Need, revision: int, served_model: str
) -> quota_service_pb2.Reservation:
    """What one request wants to use."""
    return quota_service_pb2.Reservation(
        event_id=order.event_id,
        attempt=order.attempt,
        revision=revision,
        principal=principal_to_proto(order.principal),
        requested_model=order.requested_model or served_model,
        served_model=served_model,
        endpoint=order.endpoint,
        input_tokens=need.input_tokens,
        output_tokens=need.output_tokens,
        choices=need.choices,
        client_address=order.client_address,
        request_id=order.request_id,
    )


def running_to_proto(running: RunningRequest) -> quota_service_pb2.RunningRequest:
    """What a running request holds."""
    return quota_service_pb2.RunningRequest(
        reservation=reservation_to_proto(running.order, running.need(), 0, running.served_model),
        reserve_time=timestamp_to_proto(running.accept_time),
    )


def renewal_from_proto(result: quota_service_pb2.RenewResult) -> Renewal:
    """What became of a lease."""
    if result.renewed:
        return Renewal.RENEWED
    return Renewal.UNKNOWN if result.unknown else Renewal.CLOSED


def usage_event_to_proto(event: UsageEvent) -> usage_event_pb2.UsageEvent:
    """What one attempt used."""
    return usage_event_pb2.UsageEvent(
        event_id=event.event_id,
        attempt=event.attempt,
        evidence=evidence_to_proto(event.evidence),
        accuracy=accuracy_to_proto(event.accuracy),
        principal=principal_to_proto(event.principal),
        requested_model=event.requested_model,
        served_model=event.served_model,
        endpoint=event.endpoint,
        usage=usage_to_proto(event.usage),
        outcome=outcome_to_proto(event.outcome),
        accept_time=timestamp_to_proto(event.accept_time),
        end_time=None if event.end_time is None else timestamp_to_proto(event.end_time),
        request_id=event.request_id,
        replica=event.replica,
        epoch=event.epoch,
    )


def engine_report_to_proto(report: EngineReport) -> usage_service_pb2.EngineCounters:
    """What an engine counted."""
    counters = report.counters
    return usage_service_pb2.EngineCounters(
        replica=report.replica,
        epoch=report.epoch,
        requests=counters.requests,
        prompt_tokens=counters.prompt_tokens,
        cached_prompt_tokens=counters.cached_prompt_tokens,
        completion_tokens=counters.completion_tokens,
        closed=report.closed,
    )


def refusal_from_proto(result: usage_service_pb2.RecordUsageResult) -> NaruError | None:
    """Why an event was refused for good; None when accounting has it. Raises NaruError INTERNAL for no answer."""
    match result.status:
        case usage_service_pb2.RECORD_USAGE_STATUS_RECORDED | usage_service_pb2.RECORD_USAGE_STATUS_KNOWN:
            return None
        case usage_service_pb2.RECORD_USAGE_STATUS_REFUSED:
            return error_from_proto(result.error)
        case _:
            raise NaruError(Reason.INTERNAL, "The accounting service did not say what became of an event.")
