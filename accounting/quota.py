"""Limits and decisions, pure. The limiter's script decides; here is what it is asked and what its answers mean.

What is made for every request is a `msgspec.Struct`: a frozen dataclass of as many fields costs several times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from accounting.idempotency import Idempotency, Replay
from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.pricing import UnitPrices

MAX_ATTEMPT = 63
"""Highest attempt of one event; a new attempt looks at all the ones before it."""
MAX_TOKENS = 1 << 40
"""Most tokens that one reservation or event may name: far above any engine, and exact in every store."""
BUCKETS = 60
"""Buckets before the current one that a window looks at."""


class LimitScope(StrEnum):
    """For whom a limit counts. CALLER, in the rules of tiers: the API key, else the user, else the workspace."""

    CALLER = "caller"
    KEY = "key"
    USER = "user"
    WORKSPACE = "workspace"
    ADDRESS = "address"
    TIER = "tier"


class LimitKind(StrEnum):
    """What a limit counts; COST in nano-units of the installation's currency."""

    REQUESTS = "requests"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    TOTAL_TOKENS = "total_tokens"
    COST = "cost"
    CONCURRENCY = "concurrency"


class LimitWindow(StrEnum):
    """Over which time a limit counts. NONE: what is in flight. DAY and MONTH are those of the calendar. TOTAL: all time."""

    NONE = ""
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"

    @property
    def bucket_seconds(self) -> int:
        """Width of one of the buckets a window slides over; 0 for a window that does not slide."""
        return {LimitWindow.MINUTE: 1, LimitWindow.HOUR: 60}.get(self, 0)


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit that applies to a request.

    Attributes:
        scope_id: Whose.
        limit: The most that may be taken.
        model: Of which served model; empty is all of them together.
        shadow: Counts and tells, but never refuses.
        soft_thresholds: Percentages whose crossing is told once per window.
        credit: What a workspace has paid in advance: debits count there too, and not in a budget over the same.
    """

    scope: LimitScope
    scope_id: str
    kind: LimitKind
    window: LimitWindow
    limit: int
    model: str = ""
    shadow: bool = False
    soft_thresholds: tuple[int, ...] = ()
    credit: bool = False


class EventRef(msgspec.Struct, frozen=True, order=True, gc=False):
    """One attempt of one request."""

    event_id: str
    attempt: int


class Work(msgspec.Struct, frozen=True):
    """Who wants to use which model how, as a later settlement needs to know it."""

    principal: Principal
    requested_model: str = ""
    served_model: str = ""
    endpoint: str = ""
    request_id: str = ""


class Reservation(msgspec.Struct, frozen=True):
    """What one request wants to take. `output_tokens` 0 means unknown; `cost` in nano-units, 0 where no price is set.

    With `spares`, which are ids of events, it is none's yet, but taken for as many of these as there is plenty of room for.
    """

    ref: EventRef
    revision: int
    work: Work
    input_tokens: int
    output_tokens: int
    choices: int = 1
    client_address: str = ""
    cost: int = 0
    idempotency: Idempotency | None = None
    spares: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request that runs already, with what it reserved since a time (microseconds since the Unix epoch; 0: unknown)."""

    reservation: Reservation
    reserve_time: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """When a lease ends now (microseconds); None when it does not go on, since it is `unknown`, or closed."""

    lease_expire_time: int | None
    unknown: bool = False


class LimitState(msgspec.Struct, frozen=True):
    """Where a limit stands; `reset_seconds` bounds the time until all of it is free if nothing more is taken; None: never."""

    limit: Limit
    remaining: int
    reset_seconds: float | None


@dataclass(frozen=True, slots=True)
class LimitOverview:
    """Where the limits of somebody stand, tightest first, and the tier that most of them come from."""

    tier: str
    limits: tuple[LimitState, ...]


@dataclass(frozen=True, slots=True)
class LimitNotice:
    """Something an operator wants to know of a limit: it is used to `percent`; None: in force, it would have refused."""

    limit: Limit
    percent: int | None


class Grant(msgspec.Struct, frozen=True):
    """Leave to run. Times in microseconds since the Unix epoch.

    Attributes:
        output_token_cap: What the engine may generate per choice; None: it needs no cap.
        prices: What it costs per unit; None: nobody set a price.
        spares: How many spares were taken, where those were asked for.
    """

    reserve_time: int
    lease_expire_time: int
    output_token_cap: int | None = None
    prices: UnitPrices | None = None
    spares: int = 0


class Decision(msgspec.Struct, frozen=True):
    """The answer to one reservation: a grant, what was answered before, or why not; and the limits, tightest first."""

    ref: EventRef
    outcome: Grant | Replay | NaruError
    limits: tuple[LimitState, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit said no. `retry_seconds` None: no waiting helps, for the request is larger than what the limit ever allows."""

    scope: LimitScope
    kind: LimitKind
    window: LimitWindow
    limit: int
    requested: int
    retry_seconds: float | None


def refusal_error(refusal: Refusal) -> NaruError:
    """The error a caller sees for a refusal."""
    kind, limit = refusal.kind, str(refusal.limit)
    what = kind.value.replace("_", " ")
    if refusal.window is LimitWindow.TOTAL and (kind is LimitKind.COST or refusal.requested <= refusal.limit):
        spent = "credit" if kind is LimitKind.COST else f"lifetime limit of {limit} {what}"
        return NaruError(
            Reason.INSUFFICIENT_QUOTA,
            f"The {refusal.scope}'s {spent} is used up, or too little of it is left for this request.",
            metadata={"scope": refusal.scope, "window": refusal.window},
        )
    if kind is LimitKind.COST:
        return NaruError(
            Reason.INSUFFICIENT_QUOTA,
            f"The {refusal.scope}'s budget per {refusal.window} is spent, or too little of it is left for this request.",
            metadata={"scope": refusal.scope, "window": refusal.window},
            retry_after=refusal.retry_seconds,
        )
    if refusal.retry_seconds is None:
        return NaruError(
            Reason.REQUEST_EXCEEDS_LIMIT,
            f"This request alone is larger than the {refusal.scope}'s limit of {limit} {what}.",
            metadata={"scope": refusal.scope, "kind": kind, "limit": limit, "requested": str(refusal.requested)},
        )
    if kind is LimitKind.CONCURRENCY:
        return NaruError(
            Reason.CONCURRENCY_LIMIT_EXCEEDED,
            f"The {refusal.scope} has {limit} requests in flight, which is its limit.",
            metadata={"scope": refusal.scope, "limit": limit},
            retry_after=refusal.retry_seconds,
        )
    return NaruError(
        Reason.RATE_LIMIT_EXCEEDED,
        f"The {refusal.scope}'s limit of {limit} {what} per {refusal.window} is used up.",
        metadata={"scope": refusal.scope, "kind": kind, "window": refusal.window, "limit": limit},
        retry_after=refusal.retry_seconds,
    )


def unpriced_error(model: str) -> NaruError:
    """The error for a model without a price where such models are refused."""
    return NaruError(
        Reason.FAILED_PRECONDITION,
        f"The model {model!r} has no price yet, and models without one are refused here.",
        metadata={"model": model},
    )


def closed_error(ref: EventRef) -> NaruError:
    """The error for reserving an attempt that was released, settled or has expired."""
    return NaruError(
        Reason.FAILED_PRECONDITION,
        "This attempt of the request was closed before; it cannot reserve again.",
        metadata={"event_id": ref.event_id},
    )


def tightest_first(states: list[LimitState]) -> tuple[LimitState, ...]:
    """Ordered by the share that is left of each."""
    return tuple(
        sorted(
            states, key=lambda state: (state.remaining / max(state.limit.limit, 1), state.remaining, state.limit.limit)
        )
    )
