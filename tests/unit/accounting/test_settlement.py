"""The rules of evidence."""

from __future__ import annotations

import itertools

import pytest

from accounting.quota import EventRef, Work
from accounting.settlement import (
    BookedEvent,
    Change,
    Correction,
    RecordStatus,
    StoredEvent,
    UsageEvent,
    booking_time,
    nothing_reported,
    statuses,
    weigh,
)
from naru.identity import Principal
from naru.usage import Accuracy, Evidence, Outcome, Usage

REF = EventRef("01a1fc78-57d5-7d8d-abf1-890f064f920d", 0)
WORK = Work(Principal("ws"))


def report(
    evidence: Evidence, tokens: int = 0, accept_time: int | None = None, end_time: int | None = None
) -> UsageEvent:
    """A report with this many prompt tokens."""
    return UsageEvent(
        REF,
        evidence,
        Accuracy.EXACT,
        Outcome.COMPLETED,
        WORK,
        Usage(tokens),
        accept_time=accept_time,
        end_time=end_time,
    )


def booked(evidence: Evidence, tokens: int = 0) -> BookedEvent:
    """The report, at ten nano-units for a token."""
    return BookedEvent(report(evidence, tokens), 1, tokens * 10, "price")


@pytest.mark.parametrize("evidence", list(Evidence))
def test_first_evidence(evidence: Evidence) -> None:
    """Only the engine's final report settles before the lease has ended."""
    assert weigh(None, booked(evidence)) == Change(settle=evidence is Evidence.FINAL, correction=None)


@pytest.mark.parametrize(("stored", "new"), list(itertools.product(Evidence, Evidence)))
def test_later_evidence(stored: Evidence, new: Evidence) -> None:
    """Better evidence replaces; once figures have counted, it does so at once, and the difference is kept."""
    waiting, settled = StoredEvent(stored, Usage(5), 50, 1, None), StoredEvent(stored, Usage(5), 50, 1, 2)
    if new <= stored:
        assert weigh(waiting, booked(new, 7)) is None
        assert weigh(settled, booked(new, 7)) is None
    else:
        assert weigh(waiting, booked(new, 7)) == Change(settle=new is Evidence.FINAL, correction=None)
        assert weigh(settled, booked(new, 3)) == Change(settle=True, correction=Correction(Usage(-2), -20))


def test_reports_of_one_batch_are_answered_in_order() -> None:
    """As if they had come one by one."""
    batch = [report(Evidence.DELIVERED), report(Evidence.ACCEPTED), report(Evidence.FINAL), report(Evidence.FINAL)]
    recorded, known = RecordStatus.RECORDED, RecordStatus.KNOWN
    assert statuses(None, batch) == [recorded, known, recorded, known]
    assert statuses(Evidence.DELIVERED, batch) == [known, known, recorded, known]
    assert statuses(Evidence.FINAL, batch) == [known] * 4


@pytest.mark.parametrize(
    ("reserved", "accepted", "ended", "expected"), [(1, 2, 3, 1), (0, 2, 3, 2), (0, None, 3, 3), (0, None, None, 4)]
)
def test_when_usage_is_booked(reserved: int, accepted: int | None, ended: int | None, expected: int) -> None:
    """When it was reserved, else the earliest time that is known."""
    assert booking_time(report(Evidence.FINAL, 0, accepted, ended), reserved, 4) == expected


def test_nothing_reported() -> None:
    """A request nobody said anything about has failed and used nothing."""
    event = nothing_reported(REF, WORK)
    assert (event.evidence, event.outcome, event.usage) == (Evidence.NONE, Outcome.FAILED, Usage())
