"""What sums by the hour are made of, pure: how what counts changes them, and which of them a span of time has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from accounting.quota import EventRef

HOUR_MICROS = 3_600_000_000


class Bucket(NamedTuple):
    """What sums are kept by. The hour is its number since the Unix epoch, in UTC."""

    hour: int
    workspace_id: str
    key_id: str
    user_id: str
    service_account: str
    model: str
    endpoint: str


class Figures(NamedTuple):
    """What is summed; `cost` in nano-units. A change of sums may be negative."""

    requests: int
    unpriced_requests: int
    cost: int
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int


class Share(NamedTuple):
    """What an attempt adds to sums once it is settled, unless a later attempt counts in its place."""

    ref: EventRef
    settled: bool
    bucket: Bucket
    figures: Figures


def changes(before: Iterable[Share], after: Iterable[Share]) -> dict[Bucket, Figures]:
    """What has to be added to sums after events changed. Takes all of their attempts, as they were and as they are."""
    sums: dict[Bucket, list[int]] = {}
    for sign, shares in ((-1, before), (1, after)):
        for share in _counting(shares):
            figures = sums.setdefault(share.bucket, [0] * len(share.figures))
            for index, figure in enumerate(share.figures):
                figures[index] += sign * figure
    return {bucket: Figures(*sums[bucket]) for bucket in sorted(sums) if any(sums[bucket])}


def _counting(shares: Iterable[Share]) -> list[Share]:
    highest: dict[str, Share] = {}
    for share in shares:
        event_id = share.ref.event_id
        if event_id not in highest or share.ref.attempt > highest[event_id].ref.attempt:
            highest[event_id] = share
    return [share for share in highest.values() if share.settled]


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
