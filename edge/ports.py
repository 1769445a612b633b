"""What the gateway asks of the world, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from edge.accounts import EventRef, HeldReservation, Idempotency, KeptOutcome, LimitState, Reservation, ReserveResult
from edge.generation import Endpoint, GenerationRequest, GenerationStream, ServedModel, Tokens
from edge.spares import Spare
from naru.errors import NaruError
from naru.identity import Principal
from naru.pricing import UnitPrices
from naru.usage import Usage


class Authenticator(Protocol):
    """Knows whose credential it is."""

    def known(self, credential: str, client_address: str = "", workspace_id: str = "") -> Principal | None:
        """Who it is, if that is known without asking."""

    async def authenticate(self, credential: str, client_address: str = "", workspace_id: str = "") -> Principal:
        """Who it is. Raises NaruError INVALID_API_KEY, PERMISSION_DENIED or SERVICE_UNAVAILABLE."""


class Revocations(Protocol):
    """Knows when credentials stop working."""

    def watched(
        self, credential: str, principal: Principal, end: Callable[[NaruError], None]
    ) -> AbstractContextManager[None]:
        """While the block runs, `end` is called, at most once, when `credential` is no longer that principal's."""


class Quota(Protocol):
    """Decides whether a request may be made."""

    async def reserve(self, reservation: Reservation) -> ReserveResult:
        """Takes capacity. Raises NaruError SERVICE_UNAVAILABLE when nobody can decide."""

    def spare(self, reservation: Reservation) -> Spare | None:
        """Capacity for a request's first reservation that was taken in advance, if there is any: then it need not be reserved."""

    def release(self, event: EventRef) -> None:
        """Gives back what an attempt reserved; does not wait."""

    def finish(self, event: EventRef) -> None:
        """Says that an attempt has ended by itself; does not wait. Its place in flight is free before the next `reserve`."""

    def keep(self, kept: KeptOutcome) -> None:
        """Tells what became of a request with an idempotency key; does not wait."""

    async def renew(self, events: Sequence[EventRef]) -> list[EventRef]:
        """Extends leases by 60 seconds; returns the events that nothing is known of. Raises NaruError."""

    async def restore(self, held: Sequence[HeldReservation]) -> None:
        """Says what requests hold that nothing is known of. Raises NaruError."""


class Replicas(Protocol):
    """Runs requests."""

    def models(self) -> tuple[ServedModel, ...]:
        """All models that can be asked for now. Raises NaruError SERVICE_UNAVAILABLE."""

    def check(self, model: str) -> None:
        """Raises NaruError MODEL_NOT_FOUND or SERVICE_UNAVAILABLE unless `model` can be served now."""

    def submit(self, request: GenerationRequest, without: Collection[str] = ()) -> GenerationStream:
        """Begins a request at a replica that is not in `without`. Raises NaruError SERVICE_UNAVAILABLE."""

    def has_other(self, model: str, without: Collection[str]) -> bool:
        """Whether a replica that is not in `without` can serve `model` now."""


class Tokenizers(Protocol):
    """Know tokens."""

    async def tokenize(self, model: str, body: bytes) -> Tokens:
        """The tokens of a body of /tokenize. Raises NaruError."""

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of tokens. Raises NaruError."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a client asks for.

    Attributes:
        input_tokens: Estimate of the prompt tokens, leaning upwards.
        output_tokens: Most tokens that can be generated; 0 when the request does not say.
        choices: How many choices it asks for, over all prompts.
        body: The client's JSON, untouched.
        idempotency: The key it came with; None: none.
        credential: What the principal was known by; a secret.
    """

    request_id: str
    principal: Principal
    client_address: str
    endpoint: Endpoint
    requested_model: str
    stream: bool
    input_tokens: int
    output_tokens: int
    choices: int
    traceparent: str
    body: bytes
    idempotency: Idempotency | None = None
    credential: str = field(default="", repr=False)


@dataclass(slots=True)
class Progress:
    """What is known of a request so far; filled in by the gateway for headers, log and metrics.

    Attributes:
        reserve_seconds: Time the reservation took.
        limits: Where the caller's limits stand, tightest first.
        decided: Whether accounting has admitted it, and so said what it costs.
        prices: What the model costs; None when nobody set a price for it.
        finish_reason: Why the choice that ended last did; empty: none did so far.
    """

    event_id: str = ""
    served_model: str = ""
    reserve_seconds: float = 0.0
    limits: tuple[LimitState, ...] = ()
    decided: bool = False
    prices: UnitPrices | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = ""

    @property
    def cost(self) -> int | None:
        """What the usage so far costs, in nano-units of the currency; None when nobody set a price, or it is not known."""
        return None if self.prices is None else self.prices.cost(self.usage)


@dataclass(frozen=True, slots=True)
class GatewayPolicy:
    """What an operator may choose.

    Attributes:
        model_aliases: Served model by the name a client may ask for instead.
        request_timeout: Seconds a request may take.
        timeout_margin: Seconds that inference gets to say that time is up before the edge says it.
        admit_without_accounting: Whether requests go on, unreserved and logged, while accounting is away.
    """

    model_aliases: Mapping[str, str] = field(default_factory=dict)
    request_timeout: float = 600.0
    timeout_margin: float = 5.0
    admit_without_accounting: bool = False
