"""What goes into a generation and what comes out of it, free of transport. Made of structs, as `inference.engine` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from inference.engine import ChoiceOutput, EngineCounters, EngineRequest
from naru.errors import NaruError
from naru.identity import Principal
from naru.usage import Accuracy, Evidence, Outcome, Usage

MAX_TIMEOUT = 3600.0
"""Hard lifetime of a request, in seconds; accounting closes its reservation after it."""


class EventKey(NamedTuple):
    """Names one attempt of one request."""

    event_id: str
    attempt: int


class UsageEvent(msgspec.Struct, frozen=True):
    """What one attempt used, as `naru.api.accounting.v1.UsageEvent` documents it. Times are seconds since the epoch."""

    event_id: str
    attempt: int
    evidence: Evidence
    accuracy: Accuracy
    principal: Principal
    requested_model: str
    served_model: str
    endpoint: str
    usage: Usage
    outcome: Outcome
    accept_time: float
    end_time: float | None
    request_id: str
    replica: str
    epoch: str

    @property
    def key(self) -> EventKey:
        """The attempt it is about."""
        return EventKey(self.event_id, self.attempt)


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What the engine of a replica's run has counted until now; `closed` when the run is over."""

    replica: str
    epoch: str
    counters: EngineCounters
    closed: bool = False


class GenerationOrder(msgspec.Struct, frozen=True):
    """One request, converted and attributed.

    Attributes:
        request: What the engine is asked; its `model` is the served model, or empty for the base model.
        principal: Who pays.
        endpoint: Such as "/v1/chat/completions".
        requested_model: The model as the caller named it; empty for the same as the served one.
        timeout: Seconds from now; at most `MAX_TIMEOUT`.
        reserved_prompt_tokens: What the edge has reserved. None: nobody reserved, inference does it.
        client_address: Of a caller that came without an edge; may be empty.
    """

    event_id: str
    attempt: int
    request_id: str
    request: EngineRequest
    principal: Principal
    endpoint: str
    requested_model: str = ""
    timeout: float = MAX_TIMEOUT
    traceparent: str = ""
    reserved_prompt_tokens: int | None = None
    client_address: str = ""

    @property
    def key(self) -> EventKey:
        """The attempt it is."""
        return EventKey(self.event_id, self.attempt)


class Accepted(msgspec.Struct, frozen=True):
    """The engine has the request; `accept_time` is in seconds since the epoch."""

    event_id: str
    request_id: str
    model: str
    prompt_tokens: int
    choices: int
    accept_time: float


class Refused(msgspec.Struct, frozen=True):
    """The request was not taken. `prompt_tokens` is set when more than was reserved is needed: exactly these."""

    error: NaruError
    prompt_tokens: int | None = None


class Finished(msgspec.Struct, frozen=True):
    """The last event of a request that was accepted."""

    outcome: Outcome
    usage: Usage
    error: NaruError | None = None


Event = Accepted | Refused | ChoiceOutput | Finished
"""In this order: Refused alone, or Accepted, any number of outputs of choices, Finished."""

Listener = Callable[[Event], None]
"""Is called on the event loop, and must not block it."""
