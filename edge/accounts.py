"""What the edge asks of accounting and what comes back, free of any transport.

What is made for every request is a `msgspec.Struct`: a frozen dataclass of as many fields costs several times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec

from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.pricing import UnitPrices


class LimitScope(StrEnum):
    """For whom a limit counts."""

    KEY = "key"
    USER = "user"
    WORKSPACE = "workspace"
    ADDRESS = "address"
    TIER = "tier"
    OTHER = "other"
    """One that this build does not know."""


class LimitKind(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    TOTAL_TOKENS = "total_tokens"
    COST = "cost"
    CONCURRENCY = "concurrency"


class LimitWindow(StrEnum):
    """Over which time a limit counts."""

    NONE = "none"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class LimitState(msgspec.Struct, frozen=True, gc=False):
    """Where a limit stands.

    Attributes:
        reset_delay: Seconds until all of it is free again; None: it never is.
        model: The served model that it counts; empty when it counts all together.
        shadow: Whether it only counts and never refuses.
    """

    scope: LimitScope
    kind: LimitKind
    window: LimitWindow
    limit: int
    remaining: int
    reset_delay: float | None
    model: str = ""
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key that a client gave a request; `body_digest` is the SHA-256 of all that decides about the answer."""

    key: str
    body_digest: bytes


class OutcomeFate(StrEnum):
    """What became of a request that has a key."""

    ANSWERED = "answered"
    TOO_LARGE = "too_large"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class KeptOutcome:
    """What became of an event that has a key; `outcome` is what to answer when it is asked for again."""

    event_id: str
    principal: Principal
    key: str
    fate: OutcomeFate
    outcome: bytes = b""


class EventRef(NamedTuple):
    """One attempt of one request."""

    event_id: str
    attempt: int


class Reservation(msgspec.Struct, frozen=True):
    """What one request wants to use, or are to, as `naru.api.accounting.v1.Reservation` documents it."""

    event_id: str
    attempt: int
    revision: int
    principal: Principal
    client_address: str
    requested_model: str
    served_model: str
    endpoint: str
    input_tokens: int
    output_tokens: int
    choices: int
    request_id: str
    idempotency: Idempotency | None = None
    spare_event_ids: tuple[str, ...] = ()

    @property
    def event(self) -> EventRef:
        """The attempt it is for."""
        return EventRef(self.event_id, self.attempt)


@dataclass(frozen=True, slots=True)
class HeldReservation:
    """A reservation that was granted at `reserve_time`, in seconds since the epoch; 0: it is not known when."""

    reservation: Reservation
    reserve_time: float


class ReserveResult(msgspec.Struct, frozen=True):
    """The decision on a reservation: granted when `refusal` and `replay` are None.

    Attributes:
        decided: Whether anybody did; else the request is admitted without accounting, and nobody knows what it will cost.
        replay: The outcome of the same request, which was made before.
        reserve_time: When it was granted, in seconds since the epoch; 0: nobody was asked.
        prices: What it will cost; None when nobody set a price for the model.
        limits: Tightest first.
        spares: How many spares were taken, where those were asked for.
    """

    refusal: NaruError | None = None
    replay: bytes | None = None
    output_token_cap: int | None = None
    prices: UnitPrices | None = None
    limits: tuple[LimitState, ...] = ()
    reserve_time: float = 0.0
    decided: bool = True
    spares: int = 0


class RequestRecord(msgspec.Struct, frozen=True):
    """What the edge saw of one HTTP request, as `naru.api.accounting.v1.RequestRecord` documents it. Times in seconds."""

    event_id: str
    request_id: str
    principal: Principal | None
    endpoint: str
    requested_model: str
    status: int
    reason: Reason | None
    start_time: float
    duration: float
    first_byte: float
    request_bytes: int
    response_bytes: int
    stream: bool
    trace_id: str
    finish_reason: str = ""
