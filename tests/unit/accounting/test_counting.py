"""What changes sums, and what a span of time has beside whole hours."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from accounting.quota import EventRef
from accounting.usage.counting import HOUR_MICROS, Bucket, Figures, Share, changes, days_within, hours_within, rests

TIMES = st.none() | st.integers(0, 30).map(lambda quarters: quarters * HOUR_MICROS // 4)
SMALL = Bucket(1, "ws", "key", "user", "", "small", "/v1")
LARGE = SMALL._replace(model="large")


def share(attempt: int, tokens: int, *, settled: bool = True, bucket: Bucket = SMALL) -> Share:
    return Share(EventRef("event", attempt), settled, bucket, figures(tokens))


def figures(tokens: int, requests: int = 1) -> Figures:
    return Figures(requests, 0, tokens * 2, tokens, 0, 0, 0)


def test_the_highest_attempt_counts_once_it_is_settled() -> None:
    """A lower one that counted is taken off again, also while the higher one is not settled."""
    first, second = share(0, 5), share(1, 7)
    assert changes([], [first]) == {SMALL: figures(5)}
    assert changes([], [share(0, 5, settled=False)]) == {}
    assert changes([first], [first, share(1, 7, settled=False)]) == {SMALL: figures(-5, -1)}
    assert changes([first], [first, second]) == {SMALL: figures(2, 0)}
    assert changes([first, second], [first, second]) == {}
    assert changes([second], [second, first]) == {}


def test_better_figures_may_be_of_something_else() -> None:
    """What an event counted with is taken off where it counted, and added where it belongs."""
    moved = share(0, 8, bucket=LARGE)
    assert changes([share(0, 5)], [moved]) == {SMALL: figures(-5, -1), LARGE: figures(8)}


def test_events_of_one_kind_are_one_change() -> None:
    """What many events add to the same sum is added up first."""
    shares = [Share(EventRef(str(number), 0), True, SMALL, figures(number)) for number in range(4)]
    assert changes([], shares) == {SMALL: figures(6, 4)}


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
