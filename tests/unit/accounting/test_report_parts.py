"""Parts of an answer: they are all of it, and grow with what is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.usage.counting import HOUR_MICROS
from accounting.usage.report_parts import between_times, first_size, is_parted, next_size, times_within
from accounting.usage.reporting import Dimension, UsageQuery

KEY, MODEL, WORKSPACE, DAY, HOUR = (
    Dimension.KEY,
    Dimension.MODEL,
    Dimension.WORKSPACE,
    Dimension.DAY,
    Dimension.HOUR,
)
TIMES = st.none() | st.integers(0, 96 * 4).map(lambda quarters: quarters * HOUR_MICROS // 4)


@pytest.mark.parametrize(
    ("query", "parted"),
    [
        (UsageQuery(), False),
        (UsageQuery((HOUR,)), True),
        (UsageQuery((DAY, KEY), workspace_id="ws"), True),
        (UsageQuery((KEY,)), False),
        (UsageQuery((KEY, DAY)), True),
        (UsageQuery((KEY, DAY), workspace_id="ws"), False),
        (UsageQuery((MODEL, DAY)), False),
        (UsageQuery((MODEL, KEY, DAY)), True),
    ],
)
def test_long_answers_are_read_in_parts(query: UsageQuery, parted: bool) -> None:
    """Short ones are not: to look for the values of a part would be the most of the work."""
    assert is_parted(query) is parted


@given(start=TIMES, end=TIMES, dimension=st.sampled_from([DAY, HOUR]), size=st.integers(1, 30))
def test_parts_are_the_whole(start: int | None, end: int | None, dimension: Dimension, size: int) -> None:
    """Each moment of which there is usage, days 1 to 3, is in one part just if it is asked for."""
    query = UsageQuery((dimension,), start_time=start, end_time=end)
    first, last = times_within(query, 1, 3)
    parts = [between_times(query, one, min(one + size - 1, last)) for one in range(first, last + 1, size)]
    for quarter in range(24 * 4, 96 * 4):
        time = quarter * HOUR_MICROS // 4
        asked = (start is None or time >= start) and (end is None or time < end)
        within = sum(
            part.start_time is not None and part.end_time is not None and part.start_time <= time < part.end_time
            for part in parts
        )
        assert within == int(asked)


def test_parts_grow_with_what_is_missing() -> None:
    """By what was found, and by leaps where little was."""
    assert first_size(UsageQuery((HOUR,)), 101) == 101
    assert first_size(UsageQuery((HOUR, KEY)), 101) == 1
    assert next_size(1, 30, 71) == 3
    assert next_size(2, 0, 101) == 16
    assert next_size(4, 200, 1) == 1
