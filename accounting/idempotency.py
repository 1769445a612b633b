"""Idempotency keys, pure: a caller's name for a request that is to be made once, however often it is sent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from naru.errors import NaruError, Reason
from naru.identity import Principal

MAX_KEY = 255
"""Most characters of a key."""
MAX_OUTCOME_BYTES = 262_144
"""Most bytes of an outcome that are kept."""
_FIELD = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key that a caller gave a request; `digest` is the SHA-256 of all that decides about the answer."""

    key: str
    digest: bytes


class Fate(StrEnum):
    """What became of a request that has a key. What failed may be made again."""

    ANSWERED = "answered"
    TOO_LARGE = "too_large"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class KeptOutcome:
    """What became of an event that reserved with a key; `outcome` is what to answer when it is asked for again."""

    event_id: str
    principal: Principal
    key: str
    fate: Fate
    outcome: bytes = b""


class HeldState(StrEnum):
    """Where the request stands that had a key first. LOST: it is over, and nobody said what was answered."""

    CONFLICT = "conflict"
    RUNNING = "running"
    ANSWERED = "answered"
    TOO_LARGE = "too_large"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Held:
    """The request that had a key first. `sealed` is its encrypted outcome, empty when there is none."""

    event_id: str
    state: HeldState
    sealed: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """What is answered to a request that was made before."""

    outcome: bytes


def scope_of(principal: Principal) -> str:
    """Among whose requests keys are told apart: the API key's, else the user's, else the workspace's."""
    if principal.key_id:
        return f"key:{principal.key_id}"
    if principal.user_id:
        return f"user:{principal.user_id}"
    return f"workspace:{principal.workspace_id}"


def name_of(principal: Principal, key: str) -> str:
    """The one name of a key, whatever is in it."""
    return f"{scope_of(principal)}:{hashlib.sha256(key.encode()).hexdigest()}"


def held_error(held: Held) -> NaruError:
    """The error for a request whose key has another one that cannot be answered again, or not yet."""
    metadata = {"field": _FIELD, "event_id": held.event_id}
    match held.state:
        case HeldState.CONFLICT:
            return NaruError(
                Reason.IDEMPOTENCY_CONFLICT,
                f"This {_FIELD} was used for another request. A key belongs to one endpoint and one body.",
                metadata=metadata,
            )
        case HeldState.RUNNING:
            return NaruError(
                Reason.IDEMPOTENCY_IN_FLIGHT,
                f"The same request with this {_FIELD} is being answered. Ask again when it is done.",
                metadata=metadata,
                retry_after=1.0,
            )
        case HeldState.TOO_LARGE:
            why = f"its answer was larger than the {MAX_OUTCOME_BYTES // 1024} KiB that are kept"
        case _:
            why = "its answer is not there any more"
    return NaruError(
        Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT,
        f"The same request with this {_FIELD} was made before, but {why}. Take a new key to make it again.",
        metadata=metadata,
    )


def unsupported_error() -> NaruError:
    """The error for a key where nobody set what outcomes are encrypted with."""
    return NaruError(
        Reason.NOT_SUPPORTED,
        f"{_FIELD} is not available here: the operator has to set NARU_ACCOUNTING_OUTCOME_KEY.",
        metadata={"field": _FIELD},
    )
