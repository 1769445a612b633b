"""The rules of evidence, pure: what a report is worth, and what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from accounting.quota import EventRef, Work
from naru.usage import Accuracy, Evidence, Outcome, Usage


class RecordStatus(StrEnum):
    """What became of a report."""

    RECORDED = "recorded"
    KNOWN = "known"


class UsageEvent(msgspec.Struct, frozen=True):
    """What one attempt of one request used. Times in microseconds since the Unix epoch, None when unknown."""

    ref: EventRef
    evidence: Evidence
    accuracy: Accuracy
    outcome: Outcome
    work: Work
    usage: Usage
    accept_time: int | None = None
    end_time: int | None = None
    replica: str = ""
    epoch: str = ""


class BookedEvent(msgspec.Struct, frozen=True):
    """An event, booked at `reserve_time` (microseconds since the Unix epoch).

    Attributes:
        cost: What its usage costs by the price in force then, in nano-units.
        price_id: That price; empty when nobody had set one.
    """

    event: UsageEvent
    reserve_time: int
    cost: int = 0
    price_id: str = ""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """What is kept of an event so far. `settled_time` None: its lease may go on."""

    evidence: Evidence
    usage: Usage
    cost: int
    reserve_time: int
    settled_time: int | None


@dataclass(frozen=True, slots=True)
class Correction:
    """What has to be added to figures that counted already; amounts may be negative."""

    usage: Usage
    cost: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a report changes.

    Attributes:
        settle: Whether the event counts from now on with these figures.
        correction: What to add to figures that counted before; None when none did.
    """

    settle: bool
    correction: Correction | None


def weigh(stored: StoredEvent | None, report: BookedEvent) -> Change | None:
    """What `report` changes; None when evidence as good or better is there."""
    evidence = report.event.evidence
    if stored is not None and evidence <= stored.evidence:
        return None
    if stored is not None and stored.settled_time is not None:
        correction = Correction(difference(report.event.usage, stored.usage), report.cost - stored.cost)
        return Change(settle=True, correction=correction)
    return Change(settle=evidence is Evidence.FINAL, correction=None)


def statuses(stored: Evidence | None, reports: Sequence[UsageEvent]) -> list[RecordStatus]:
    """What becomes of each of several reports of one attempt, in the order they came."""
    known = -1 if stored is None else stored
    found = []
    for report in reports:
        found.append(RecordStatus.RECORDED if report.evidence > known else RecordStatus.KNOWN)
        known = max(known, report.evidence)
    return found


def nothing_reported(ref: EventRef, work: Work) -> UsageEvent:
    """The outcome of a request that nobody reported anything about before its lease ended."""
    return UsageEvent(ref, Evidence.NONE, Accuracy.ESTIMATED, Outcome.FAILED, work, Usage())


def earlier_attempts(events: Sequence[BookedEvent]) -> list[BookedEvent]:
    """The attempts before these that are not among them, as if they had left nothing."""
    given = {booked.event.ref for booked in events}
    found: dict[EventRef, BookedEvent] = {}
    for booked in events:
        for attempt in range(booked.event.ref.attempt):
            ref = EventRef(booked.event.ref.event_id, attempt)
            if ref not in given:
                found[ref] = BookedEvent(nothing_reported(ref, booked.event.work), booked.reserve_time)
    return list(found.values())


def booking_time(event: UsageEvent, reserved: int, now: int) -> int:
    """When usage is booked: at the reservation; without one, at the earliest time known of the event."""
    return reserved or event.accept_time or event.end_time or now


def difference(new: Usage, old: Usage) -> Usage:
    """What has to be added to `old` to make it `new`."""
    return Usage(
        new.prompt_tokens - old.prompt_tokens,
        new.completion_tokens - old.completion_tokens,
        new.cached_prompt_tokens - old.cached_prompt_tokens,
        new.reasoning_tokens - old.reasoning_tokens,
    )


class Exact(msgspec.Struct, frozen=True):
    """What an attempt counts with from now on, by evidence of a rank: what the limiter has to be told."""

    ref: EventRef
    evidence: Evidence
    usage: Usage
    cost: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a batch of reports, in order, and what the limiter has to be told about it."""

    statuses: tuple[RecordStatus, ...]
    settled: tuple[Exact, ...]
