"""Between the messages of the API and the edge's own types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge.accounts import (
    EventRef,
    HeldReservation,
    KeptOutcome,
    LimitKind,
    LimitScope,
    LimitState,
    LimitWindow,
    OutcomeFate,
    RequestRecord,
    Reservation,
    ReserveResult,
)
from edge.generation import (
    Accepted,
    BrokenGeneration,
    Candidate,
    Delta,
    Endpoint,
    Event,
    Finished,
    FinishOutcome,
    GenerationRequest,
    Logprob,
    PromptOutput,
    Refused,
    ServedModel,
    ToolCallDelta,
)
from edge.limits import TOKEN_KINDS
from naru.api.accounting.v1 import limit_pb2, price_pb2, quota_service_pb2, usage_event_pb2
from naru.api.inference.v1 import generation_pb2, inference_service_pb2, model_service_pb2
from naru.convert import (
    duration_from_proto,
    duration_to_proto,
    error_from_proto,
    principal_to_proto,
    reason_to_proto,
    timestamp_from_proto,
    timestamp_to_proto,
    usage_from_proto,
    usage_to_proto,
)
from naru.pricing import UnitPrices
from naru.usage import Usage

_ENDPOINTS = {
    Endpoint.CHAT_COMPLETIONS: generation_pb2.ENDPOINT_CHAT_COMPLETIONS,
    Endpoint.COMPLETIONS: generation_pb2.ENDPOINT_COMPLETIONS,
    Endpoint.MESSAGES: generation_pb2.ENDPOINT_MESSAGES,
    Endpoint.RESPONSES: generation_pb2.ENDPOINT_RESPONSES,
    Endpoint.EMBEDDINGS: generation_pb2.ENDPOINT_EMBEDDINGS,
    Endpoint.RERANK: generation_pb2.ENDPOINT_RERANK,
    Endpoint.SCORE: generation_pb2.ENDPOINT_SCORE,
}
_OUTCOMES = {
    generation_pb2.FINISH_OUTCOME_COMPLETED: FinishOutcome.COMPLETED,
    generation_pb2.FINISH_OUTCOME_ABORTED: FinishOutcome.ABORTED,
}
_SCOPES = {
    limit_pb2.LIMIT_SCOPE_KEY: LimitScope.KEY,
    limit_pb2.LIMIT_SCOPE_USER: LimitScope.USER,
    limit_pb2.LIMIT_SCOPE_WORKSPACE: LimitScope.WORKSPACE,
    limit_pb2.LIMIT_SCOPE_ADDRESS: LimitScope.ADDRESS,
    limit_pb2.LIMIT_SCOPE_TIER: LimitScope.TIER,
}
_KINDS = {
    limit_pb2.LIMIT_KIND_REQUESTS: LimitKind.REQUESTS,
    limit_pb2.LIMIT_KIND_INPUT_TOKENS: LimitKind.INPUT_TOKENS,
    limit_pb2.LIMIT_KIND_OUTPUT_TOKENS: LimitKind.OUTPUT_TOKENS,
    limit_pb2.LIMIT_KIND_TOTAL_TOKENS: LimitKind.TOTAL_TOKENS,
    limit_pb2.LIMIT_KIND_COST: LimitKind.COST,
    limit_pb2.LIMIT_KIND_CONCURRENCY: LimitKind.CONCURRENCY,
}
KINDS_WITH_HEADERS = tuple(number for number, kind in _KINDS.items() if kind in (LimitKind.REQUESTS, *TOKEN_KINDS))
"""Kinds of limits that answers tell of."""
_WINDOWS = {
    limit_pb2.LIMIT_WINDOW_MINUTE: LimitWindow.MINUTE,
    limit_pb2.LIMIT_WINDOW_HOUR: LimitWindow.HOUR,
    limit_pb2.LIMIT_WINDOW_DAY: LimitWindow.DAY,
    limit_pb2.LIMIT_WINDOW_MONTH: LimitWindow.MONTH,
    limit_pb2.LIMIT_WINDOW_TOTAL: LimitWindow.TOTAL,
}
_FATES = {
    OutcomeFate.ANSWERED: quota_service_pb2.OUTCOME_FATE_ANSWERED,
    OutcomeFate.TOO_LARGE: quota_service_pb2.OUTCOME_FATE_TOO_LARGE,
    OutcomeFate.FAILED: quota_service_pb2.OUTCOME_FATE_FAILED,
}


def generation_to_proto(request: GenerationRequest) -> generation_pb2.Generation:
    """The request on the wire."""
    return generation_pb2.Generation(
        event_id=request.event_id,
        attempt=request.attempt,
        principal=principal_to_proto(request.principal),
        reserved_prompt_tokens=request.reserved_prompt_tokens,
        output_token_cap=request.output_token_cap,
        timeout=duration_to_proto(request.timeout),
        traceparent=request.traceparent,
        request_id=request.request_id,
        model=request.model,
        requested_model=request.requested_model,
        stream=request.stream,
        openai=generation_pb2.OpenAiInput(endpoint=_ENDPOINTS[request.endpoint], json=request.body),
    )


def events_from_proto(message: inference_service_pb2.GenerateSessionResponse) -> Iterator[tuple[int, Event]]:
    """What happened, and to which stream, without what this build does not know."""
    plain = message.plain_deltas
    for stream_id, text, completion_tokens in zip(plain.stream_ids, plain.texts, plain.completion_tokens, strict=False):
        yield stream_id, Delta(0, text, completion_tokens)
    for frame in message.frames:
        event = event_from_proto(frame)
        if event is not None:
            yield frame.stream_id, event


def event_from_proto(
    message: inference_service_pb2.Frame | inference_service_pb2.GenerateResponse,
) -> Event | None:
    """What happened; None for an event that this build does not know."""
    match message.WhichOneof("event"):
        case "delta":
            return _delta(message.delta)
        case "finished":
            finished = message.finished
            return Finished(
                outcome=_OUTCOMES.get(finished.outcome, FinishOutcome.FAILED),
                usage=usage_from_proto(finished.usage),
                error=error_from_proto(finished.error) if finished.HasField("error") else None,
            )
        case "accepted":
            accepted = message.accepted
            return Accepted(
                model=accepted.model,
                prompt_tokens=accepted.prompt_tokens,
                choices=accepted.choices,
                accept_time=timestamp_from_proto(accepted.accept_time),
            )
        case "refused":
            refused = message.refused
            return Refused(
                error=error_from_proto(refused.error),
                prompt_tokens=refused.prompt_tokens if refused.HasField("prompt_tokens") else None,
            )
        case _:
            return None


def _delta(delta: generation_pb2.Delta) -> Delta:
    if not delta.detailed:
        # Nearly all deltas of nearly all streams are this one.
        return Delta(delta.choice_index, delta.text, delta.completion_tokens)
    return Delta(
        choice_index=delta.choice_index,
        text=delta.text,
        completion_tokens=delta.completion_tokens,
        finish_reason=delta.finish_reason,
        stop_text=delta.stop_text,
        stop_token_id=delta.stop_token_id if delta.HasField("stop_token_id") else None,
        logprobs=_logprobs(delta.logprobs),
        token_ids=tuple(delta.token_ids),
        reasoning=delta.reasoning,
        tool_calls=tuple(ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in delta.tool_calls),
        prompt=_prompt(delta.prompt) if delta.HasField("prompt") else None,
        embedding=delta.embedding,
        score=delta.score if delta.HasField("score") else None,
    )


def _prompt(message: generation_pb2.PromptOutput) -> PromptOutput:
    return PromptOutput(tuple(message.token_ids), _logprobs(message.logprobs))


def _logprobs(messages: Iterable[generation_pb2.TokenLogprob]) -> tuple[Logprob, ...]:
    return tuple(
        Logprob(_candidate(message.chosen), tuple(map(_candidate, message.top)), message.unknown)
        for message in messages
    )


def _candidate(message: generation_pb2.TokenCandidate) -> Candidate:
    return Candidate(message.token, message.logprob, message.token_id, message.rank)


def model_from_proto(message: model_service_pb2.Model) -> ServedModel:
    """A served model."""
    return ServedModel(
        name=message.name,
        owned_by=message.owned_by,
        create_time=timestamp_from_proto(message.create_time),
        context_tokens=message.context_tokens,
        root=message.name.removeprefix(f"{message.parent}:") if message.parent else "",
        parent=message.parent,
    )


def reservation_to_proto(reservation: Reservation) -> quota_service_pb2.Reservation:
    """A reservation on the wire."""
    given = reservation.idempotency
    return quota_service_pb2.Reservation(
        event_id=reservation.event_id,
        attempt=reservation.attempt,
        revision=reservation.revision,
        principal=principal_to_proto(reservation.principal),
        client_address=reservation.client_address,
        requested_model=reservation.requested_model,
        served_model=reservation.served_model,
        endpoint=reservation.endpoint,
        input_tokens=reservation.input_tokens,
        output_tokens=reservation.output_tokens,
        choices=reservation.choices,
        request_id=reservation.request_id,
        idempotency=None
        if given is None
        else quota_service_pb2.Idempotency(key=given.key, body_digest=given.body_digest),
        spare_event_ids=reservation.spare_event_ids,
    )


def held_to_proto(held: HeldReservation) -> quota_service_pb2.RunningRequest:
    """What a request holds, on the wire."""
    return quota_service_pb2.RunningRequest(
        reservation=reservation_to_proto(held.reservation),
        reserve_time=timestamp_to_proto(held.reserve_time) if held.reserve_time else None,
    )


def reserve_result_from_proto(message: quota_service_pb2.ReserveResult) -> ReserveResult:
    """The decision on a reservation."""
    grant = message.grant
    return ReserveResult(
        refusal=error_from_proto(message.refusal) if message.HasField("refusal") else None,
        replay=message.replay.outcome if message.HasField("replay") else None,
        output_token_cap=grant.output_token_cap if grant.HasField("output_token_cap") else None,
        prices=_prices(grant.prices) if grant.HasField("prices") else None,
        # A kind this build does not know has no header either.
        limits=tuple(_limit_state(state) for state in message.limits if state.kind in _KINDS),
        reserve_time=timestamp_from_proto(grant.reserve_time) if grant.HasField("reserve_time") else 0.0,
        spares=grant.spares,
    )


def _limit_state(message: limit_pb2.LimitState) -> LimitState:
    return LimitState(
        scope=_SCOPES.get(message.scope, LimitScope.OTHER),
        kind=_KINDS[message.kind],
        window=_WINDOWS.get(message.window, LimitWindow.NONE),
        limit=message.limit,
        remaining=message.remaining,
        reset_delay=duration_from_proto(message.reset_delay) if message.HasField("reset_delay") else None,
        model=message.model,
        shadow=message.shadow,
    )


def _prices(message: price_pb2.UnitPrices) -> UnitPrices:
    return UnitPrices(
        input_million=message.input_million,
        cached_input_million=message.cached_input_million,
        output_million=message.output_million,
        request=message.request,
    )


def outcome_to_proto(kept: KeptOutcome) -> quota_service_pb2.KeepOutcomeRequest:
    """What became of a request with a key on the wire."""
    return quota_service_pb2.KeepOutcomeRequest(
        event_id=kept.event_id,
        principal=principal_to_proto(kept.principal),
        key=kept.key,
        fate=_FATES[kept.fate],
        outcome=kept.outcome,
    )


def event_ref_to_proto(event: EventRef) -> quota_service_pb2.EventRef:
    """Names an attempt on the wire."""
    return quota_service_pb2.EventRef(event_id=event.event_id, attempt=event.attempt)


def broken_to_usage_event(broken: BrokenGeneration) -> usage_event_pb2.UsageEvent:
    """The edge's report of what it delivered before a session broke."""
    request = broken.request
    return usage_event_pb2.UsageEvent(
        event_id=request.event_id,
        attempt=request.attempt,
        evidence=usage_event_pb2.EVIDENCE_DELIVERED,
        accuracy=usage_event_pb2.ACCURACY_ESTIMATED,
        principal=principal_to_proto(request.principal),
        requested_model=request.requested_model,
        served_model=request.model,
        endpoint=request.endpoint,
        usage=usage_to_proto(
            Usage(prompt_tokens=broken.accepted.prompt_tokens, completion_tokens=broken.completion_tokens)
        ),
        outcome=usage_event_pb2.OUTCOME_FAILED,
        accept_time=timestamp_to_proto(broken.accepted.accept_time),
        end_time=timestamp_to_proto(broken.break_time),
        request_id=request.request_id,
    )


def record_to_proto(record: RequestRecord) -> usage_event_pb2.RequestRecord:
    """A line of the request log on the wire."""
    message = usage_event_pb2.RequestRecord(
        event_id=record.event_id,
        request_id=record.request_id,
        endpoint=record.endpoint,
        requested_model=record.requested_model,
        status=record.status,
        start_time=timestamp_to_proto(record.start_time),
        duration_us=round(record.duration * 1_000_000),
        first_byte_us=round(record.first_byte * 1_000_000),
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        stream=record.stream,
        trace_id=record.trace_id,
        finish_reason=record.finish_reason,
    )
    if record.principal is not None:
        message.principal.CopyFrom(principal_to_proto(record.principal))
    if record.reason is not None:
        message.reason = reason_to_proto(record.reason)
    return message
