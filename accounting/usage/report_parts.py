"""Parts of an answer, pure: how much of the first dimension is read at a time, so that a page costs what it shows."""

from __future__ import annotations

from dataclasses import replace

from accounting.usage.counting import HOUR_MICROS
from accounting.usage.reporting import Dimension, UsageQuery

_FOUND_FAST = (Dimension.KEY, Dimension.WORKSPACE)
_GROWTH = 8


def is_parted(query: UsageQuery) -> bool:
    """Whether an answer is read in parts: where it may have many rows, and the values of its first dimension are found fast."""
    dimensions = query.group_by
    if not dimensions:
        return False
    if dimensions[0].is_time:
        return True
    # What is narrowed to a key or a workspace is little, and lies in no order of another text.
    narrow = query.key_id or query.workspace_id
    return not narrow and len(dimensions) > (1 if dimensions[0] in _FOUND_FAST else 2)


def times_within(query: UsageQuery, first_day: int, last_day: int) -> tuple[int, int]:
    """The first and the last value that the first dimension, one of time, may have; the last is below where there is none.

    The days are the first and the last of which there is any usage, by their numbers since the Unix epoch.
    """
    width = _width(query)
    days = HOUR_MICROS * 24 // width
    first, last = first_day * days, (last_day + 1) * days - 1
    if query.start_time is not None:
        first = max(first, query.start_time // width)
    if query.end_time is not None:
        last = min(last, -(-query.end_time // width) - 1)
    return first, last


def between_times(query: UsageQuery, first: int, last: int) -> UsageQuery:
    """The part of a question from a value of its first dimension, which is one of time, up to another."""
    width = _width(query)
    start, end = first * width, (last + 1) * width
    return replace(
        query,
        start_time=start if query.start_time is None else max(start, query.start_time),
        end_time=end if query.end_time is None else min(end, query.end_time),
    )


def first_size(query: UsageQuery, most: int) -> int:
    """How many values of the first dimension the first part takes, for so many rows at most."""
    return most if len(query.group_by) == 1 else 1


def next_size(size: int, found: int, missing: int) -> int:
    """How many values the next part takes, after one of `size` values had so many rows, and so many are missing still."""
    return min(-(-missing * size // max(found, 1)), size * _GROWTH)


def _width(query: UsageQuery) -> int:
    """Microseconds of a value of the first dimension."""
    return HOUR_MICROS * (24 if query.group_by[0] is Dimension.DAY else 1)
