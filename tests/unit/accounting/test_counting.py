"""Which attempts sums take in or give back, and what a span of time has beside whole hours."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from accounting.quota import EventRef
from accounting.usage.counting import HOUR_MICROS, Attempt, Plan, RollState, days_within, hours_within, plan, rests

TIMES = st.none() | st.integers(0, 30).map(lambda quarters: quarters * HOUR_MICROS // 4)


def attempt(number: int, state: RollState, *, settled: bool = True) -> Attempt:
    return Attempt(EventRef("event", number), state, settled)


def test_the_highest_attempt_counts_once_it_is_settled() -> None:
    """A lower one that the sums have is given back, also while the higher one is not settled."""
    first, second = EventRef("event", 0), EventRef("event", 1)
    counted, pending = attempt(0, RollState.COUNTED), attempt(1, RollState.PENDING)
    assert plan([attempt(0, RollState.PENDING)]) == Plan((first,), (), ())
    assert plan([attempt(0, RollState.PENDING, settled=False)]) == Plan((), (), (first,))
    assert plan([counted, pending]) == Plan((second,), (first,), ())
    assert plan([counted, attempt(1, RollState.PENDING, settled=False)]) == Plan((), (first,), (second,))
    assert plan([attempt(0, RollState.PENDING), attempt(1, RollState.COUNTED)]) == Plan((), (), (first,))
    assert plan([attempt(0, RollState.PASSED), attempt(1, RollState.COUNTED)]) == Plan((), (), ())


HOURS = st.none() | st.integers(0, 80)


@given(first=HOURS, last=HOURS)
def test_days_and_hours_beside_them_are_all_hours(first: int | None, last: int | None) -> None:
    """Each hour is in a whole day or in a span beside them, never in both or in two."""
    whole, spans = days_within(first, last)
    for hour in range(-24, 104):
        inside = (first is None or hour >= first) and (last is None or hour < last)
        in_days = whole is not None and all(
            (whole[0] is None or hour // 24 >= whole[0], whole[1] is None or hour // 24 < whole[1])
        )
        assert int(in_days) + sum(begin <= hour < end for begin, end in spans) == int(inside)


@given(start=TIMES, end=TIMES)
def test_hours_and_rests_are_the_whole_span(start: int | None, end: int | None) -> None:
    """Each quarter of an hour is in the span just if it is in a whole hour or a rest, never in both or in two rests."""
    first, last = hours_within(start, end)
    for quarter in range(-4, 36):
        time = quarter * HOUR_MICROS // 4
        hour = time // HOUR_MICROS
        inside = (start is None or time >= start) and (end is None or time < end)
        in_hours = (first is None or hour >= first) and (last is None or hour < last)
        in_rests = sum(begin <= time < finish for begin, finish in rests(start, end))
        assert int(in_hours) + in_rests == int(inside)
