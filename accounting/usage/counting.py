"""Which attempts the sums by the hour have to take in and which they have to give back, pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from accounting.quota import EventRef

HOUR_MICROS = 3_600_000_000


class RollState(IntEnum):
    """What the sums by the hour have of an attempt.

    PENDING: it is new or changed, and nobody looked at it since. COUNTED: its figures, as they are. PASSED: nothing, because it
    is not settled yet or a later attempt counts instead.
    """

    PENDING = 0
    COUNTED = 1
    PASSED = 2


@dataclass(frozen=True, slots=True)
class Attempt:
    """What has to be known of an attempt."""

    ref: EventRef
    state: RollState
    settled: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of attempts: added to the sums, taken off again, or passed over."""

    add: tuple[EventRef, ...]
    subtract: tuple[EventRef, ...]
    passed: tuple[EventRef, ...]


def plan(attempts: Sequence[Attempt]) -> Plan:
    """What has to happen so that events count with their highest attempt once it is settled; all attempts must be given."""
    highest: dict[str, int] = {}
    for attempt in attempts:
        event_id = attempt.ref.event_id
        highest[event_id] = max(attempt.ref.attempt, highest.get(event_id, 0))
    add, subtract, passed = [], [], []
    for attempt in attempts:
        counts = attempt.settled and attempt.ref.attempt == highest[attempt.ref.event_id]
        if counts and attempt.state is not RollState.COUNTED:
            add.append(attempt.ref)
        elif not counts and attempt.state is RollState.COUNTED:
            subtract.append(attempt.ref)
        elif attempt.state is RollState.PENDING:
            passed.append(attempt.ref)
    return Plan(tuple(add), tuple(subtract), tuple(passed))


def hours_within(start_time: int | None, end_time: int | None) -> tuple[int | None, int | None]:
    """The first whole hour in a span of time and the one after its last, by their numbers since the Unix epoch.

    The second is at most the first where there is none. Times are microseconds; None is open.
    """
    first = None if start_time is None else -(-start_time // HOUR_MICROS)
    last = None if end_time is None else end_time // HOUR_MICROS
    return first, last


def days_within(
    first: int | None, last: int | None
) -> tuple[tuple[int | None, int | None] | None, list[tuple[int, int]]]:
    """The whole days between two hours, None where there is none, and the spans of hours beside them.

    By their numbers since the Unix epoch, in UTC; the second of each two is the one after the last. None is open.
    """
    first_day = None if first is None else -(-first // 24)
    last_day = None if last is None else last // 24
    if (
        first is not None
        and last is not None
        and first_day is not None
        and last_day is not None
        and first_day >= last_day
    ):
        return None, [(first, last)] if first < last else []
    spans = []
    if first is not None and first_day is not None and first < first_day * 24:
        spans.append((first, first_day * 24))
    if last is not None and last_day is not None and last_day * 24 < last:
        spans.append((last_day * 24, last))
    return (first_day, last_day), spans


def rests(start_time: int | None, end_time: int | None) -> list[tuple[int, int]]:
    """What a span of time has beside whole hours: no, one or two spans, each within an hour."""
    first, last = hours_within(start_time, end_time)
    if start_time is not None and end_time is not None and first is not None and last is not None and first > last:
        return [(start_time, end_time)] if start_time < end_time else []
    found = []
    if start_time is not None and first is not None and start_time < first * HOUR_MICROS:
        found.append((start_time, first * HOUR_MICROS))
    if end_time is not None and last is not None and last * HOUR_MICROS < end_time:
        found.append((last * HOUR_MICROS, end_time))
    return found
