"""Between the messages of `naru.api.accounting.v1.QuotaService` and accounting's own types."""

from __future__ import annotations

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from accounting import checks
from accounting.catalogue.convert import (
    KINDS_TO_PROTO,
    SCOPES_TO_PROTO,
    WINDOWS_TO_PROTO,
    time_from_proto,
    unit_prices_to_proto,
)
from accounting.idempotency import Replay
from accounting.limiter.outcome_convert import idempotency_from_proto
from accounting.quota import (
    Decision,
    EventRef,
    Grant,
    LimitKind,
    LimitOverview,
    LimitState,
    Renewal,
    Reservation,
    RunningRequest,
    Work,
)
from naru.api.accounting.v1 import limit_pb2, quota_service_pb2, usage_event_pb2
from naru.context import RequestContext
from naru.convert import (
    duration_to_proto,
    error_to_proto,
    principal_from_proto,
)
from naru.errors import NaruError, invalid_argument
from naru.identity import Principal

_ALL_KINDS = frozenset(LimitKind)
_MICROS = 1_000_000
_MAX_SPARES = 256


def reservation_from_proto(message: quota_service_pb2.Reservation) -> Reservation | NaruError:
    """What one request wants to take, or why it cannot be read."""
    try:
        if message.revision < 0:
            raise invalid_argument("revision", "revision must be at least 0.")
        return Reservation(
            ref=checks.event_ref(message.event_id, message.attempt),
            revision=message.revision,
            work=work_of(message, checks.principal(principal_from_proto(message.principal))),
            input_tokens=checks.tokens("input_tokens", message.input_tokens),
            output_tokens=checks.tokens("output_tokens", message.output_tokens),
            choices=checks.choices(message.choices),
            client_address=checks.address(message.client_address),
            idempotency=None if message.spare_event_ids else idempotency_from_proto(message),
            spares=_spares(message),
        )
    except NaruError as error:
        return error


def _spares(message: quota_service_pb2.Reservation) -> tuple[str, ...]:
    if not message.spare_event_ids:
        return ()
    checks.batch("spare_event_ids", len(message.spare_event_ids), _MAX_SPARES)
    spares = tuple(checks.event_ref(event_id, 0).event_id for event_id in message.spare_event_ids)
    if spares[0] != message.event_id:
        raise invalid_argument("spare_event_ids", "spare_event_ids must begin with event_id.")
    return spares


def running_from_proto(message: quota_service_pb2.RunningRequest) -> RunningRequest | None:
    """A request that runs, without its idempotency key; None for one that cannot."""
    reservation = reservation_from_proto(message.reservation)
    if isinstance(reservation, NaruError):
        return None
    try:
        since = time_from_proto("reserve_time", message.reserve_time) if message.HasField("reserve_time") else 0
    except NaruError:
        return None
    return RunningRequest(msgspec.structs.replace(reservation, idempotency=None, spares=()), since)


def refused_to_proto(message: quota_service_pb2.Reservation, error: NaruError) -> quota_service_pb2.ReserveResult:
    """The answer to a reservation that cannot be read."""
    return quota_service_pb2.ReserveResult(
        event_id=message.event_id, attempt=message.attempt, refusal=error_to_proto(error)
    )


def kinds_from_proto(request: quota_service_pb2.ReserveRequest) -> frozenset[LimitKind]:
    """The kinds of limits that the answers are to tell of."""
    if not request.limit_kinds:
        return _ALL_KINDS
    return frozenset(kind for kind, number in KINDS_TO_PROTO.items() if number in request.limit_kinds)


def decision_to_proto(decision: Decision, kinds: frozenset[LimitKind]) -> quota_service_pb2.ReserveResult:
    """The answer to a reservation, with where limits of these kinds stand."""
    result = quota_service_pb2.ReserveResult(
        event_id=decision.ref.event_id,
        attempt=decision.ref.attempt,
        limits=[_limit_to_proto(state) for state in decision.limits if state.limit.kind in kinds],
    )
    match decision.outcome:
        case Grant() as grant:
            result.grant.lease_expire_time.CopyFrom(time_to_proto(grant.lease_expire_time))
            result.grant.reserve_time.CopyFrom(time_to_proto(grant.reserve_time))
            if grant.output_token_cap is not None:
                result.grant.output_token_cap = grant.output_token_cap
            result.grant.spares = grant.spares
            if grant.prices is not None:
                result.grant.prices.CopyFrom(unit_prices_to_proto(grant.prices))
        case Replay() as replay:
            result.replay.outcome = replay.outcome
        case NaruError() as error:
            result.refusal.CopyFrom(error_to_proto(error))
    return result


def ref_from_proto(message: quota_service_pb2.EventRef) -> EventRef | None:
    """Which attempt it is; None for one that cannot exist."""
    try:
        return checks.event_ref(message.event_id, message.attempt)
    except NaruError:
        return None


def renewal_to_proto(renewal: Renewal) -> quota_service_pb2.RenewResult:
    """The answer to a renewal."""
    lease = renewal.lease_expire_time
    return quota_service_pb2.RenewResult(
        renewed=lease is not None,
        lease_expire_time=None if lease is None else time_to_proto(lease),
        unknown=renewal.unknown,
    )


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
        reset_delay=None if state.reset_seconds is None else duration_to_proto(state.reset_seconds),
        model=state.limit.model,
        shadow=state.limit.shadow,
    )


def work_of(message: quota_service_pb2.Reservation | usage_event_pb2.UsageEvent, principal: Principal) -> Work:
    """Who used what, as a checked principal."""
    return Work(
        principal=principal,
        requested_model=checks.clipped(message.requested_model, checks.MAX_MODEL),
        served_model=checks.clipped(message.served_model, checks.MAX_MODEL),
        endpoint=checks.clipped(message.endpoint, checks.MAX_ENDPOINT),
        request_id=checks.clipped(message.request_id, checks.MAX_REQUEST_ID),
    )
