"""Days and months of a zone."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.calendar import periods
from accounting.quota import LimitWindow

SECOND = 1_000_000


def at(text: str) -> int:
    """A moment in microseconds, from ISO 8601 with an offset."""
    return int(datetime.fromisoformat(text).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("zone", "window", "now", "begin", "end"),
    [
        ("UTC", "day", "2026-11-21T23:59:59+00:00", "2026-11-21T00:00:00+00:00", "2026-11-22T00:00:00+00:00"),
        ("Asia/Seoul", "day", "2026-11-21T15:00:00+00:00", "2026-11-22T00:00:00+09:00", "2026-11-23T00:00:00+09:00"),
        ("Asia/Seoul", "month", "2026-12-31T14:59:59+00:00", "2026-12-01T00:00:00+09:00", "2027-01-01T00:00:00+09:00"),
        # Days of 23 and 25 hours.
        ("Europe/Berlin", "day", "2026-03-29T12:00:00+02:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"),
        ("Europe/Berlin", "day", "2026-10-25T12:00:00+01:00", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"),
        # A day that begins at one o'clock, and one whose midnight comes twice.
        ("Asia/Beirut", "day", "2021-03-28T05:00:00+03:00", "2021-03-28T01:00:00+03:00", "2021-03-29T00:00:00+03:00"),
        (
            "America/Havana",
            "day",
            "2024-11-03T00:30:00-05:00",
            "2024-11-03T00:00:00-04:00",
            "2024-11-04T00:00:00-05:00",
        ),
        ("UTC", "month", "2028-02-29T12:00:00+00:00", "2028-02-01T00:00:00+00:00", "2028-03-01T00:00:00+00:00"),
    ],
)
def test_where_periods_begin(zone: str, window: str, now: str, begin: str, end: str) -> None:
    """A period begins when its date does, whatever the clocks do."""
    found = periods(LimitWindow(window), at(now), ZoneInfo(zone))
    assert found[1:3] == (at(begin), at(end))


@given(
    now=st.integers(0, 4_000_000_000),
    zone=st.sampled_from(["UTC", "Asia/Seoul", "America/New_York", "Australia/Lord_Howe", "America/Havana"]),
    window=st.sampled_from([LimitWindow.DAY, LimitWindow.MONTH]),
)
def test_every_moment_is_in_one_period(now: int, zone: str, window: LimitWindow) -> None:
    """The period holds the moment, has one date or month, and the periods around it follow on."""
    before, begin, end, after = periods(window, now * SECOND, ZoneInfo(zone))
    assert before < begin <= now * SECOND < end < after

    def named(time: int) -> tuple[int, ...]:
        local = datetime.fromtimestamp(time / SECOND, UTC).astimezone(ZoneInfo(zone))
        return (local.year, local.month) if window is LimitWindow.MONTH else (local.year, local.month, local.day)

    assert named(begin) == named(now * SECOND) == named(end - SECOND)
    assert named(begin - SECOND) != named(begin) != named(end)
    assert periods(window, end, ZoneInfo(zone))[:2] == (begin, end)
