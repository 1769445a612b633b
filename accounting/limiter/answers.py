"""What the limiter's script answers, in accounting's own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from accounting.idempotency import Held, HeldState
from accounting.quota import (
    EventRef,
    Grant,
    Limit,
    LimitKind,
    LimitNotice,
    LimitScope,
    LimitState,
    LimitWindow,
    Refusal,
    closed_error,
    refusal_error,
    tightest_first,
)
from naru.errors import NaruError

_MICROS = 1_000_000


class Taken(msgspec.Struct, frozen=True):
    """The answer to one reservation, before anything is added to a grant, or read of what was kept."""

    outcome: Grant | Held | NaruError
    limits: tuple[LimitState, ...]
    notices: tuple[LimitNotice, ...] = ()


def taken_of(ref: EventRef, limits: Sequence[Limit], answer: Sequence[Any]) -> Taken:
    """The answer to one reservation."""
    decision, reserve_time, lease_time, refusal, flat, notices, *spares = answer
    match decision:
        case "granted":
            outcome: Grant | Held | NaruError = Grant(reserve_time, lease_time, spares=sum(spares))
        case "held":
            outcome = Held(refusal["event"], HeldState(refusal["state"]), refusal["sealed"])
        case "refused":
            outcome = refusal_error(_decode_refusal(refusal))
        case _:
            outcome = closed_error(ref)
    return Taken(outcome, tightest_first(states_of(limits, flat)), notices_of(limits, notices))


def notices_of(limits: Sequence[Limit], flat: Sequence[int]) -> tuple[LimitNotice, ...]:
    """What is to be told of limits, which came flat."""
    return tuple(
        LimitNotice(limits[index - 1], percent or None) for index, percent in zip(flat[::2], flat[1::2], strict=True)
    )


def states_of(limits: Sequence[Limit], flat: Sequence[Any]) -> list[LimitState]:
    """The states that came flat; none when the script did not look at the limits."""
    return [
        LimitState(
            limit,
            max(limit.limit - int(found), 0) if limit.window is LimitWindow.TOTAL else found,
            None if reset < 0 else reset / _MICROS,
        )
        for limit, found, reset in zip(limits, flat[::2], flat[1::2], strict=False)
    ]


def _decode_refusal(found: Mapping[str, Any]) -> Refusal:
    return Refusal(
        LimitScope(found["scope"]),
        LimitKind(found["kind"]),
        LimitWindow(found["window"]),
        int(found["limit"]),
        int(found["requested"]),
        int(found["retry"]) / _MICROS if "retry" in found else None,
    )
