"""Days and months of a zone, pure."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from accounting.quota import LimitWindow

MICROS = 1_000_000


def periods(window: LimitWindow, now: int, zone: ZoneInfo) -> tuple[int, int, int, int]:
    """When the period before, the one of `now`, the next one and the one after it begin; the third ends the second.

    In microseconds since the Unix epoch. A day begins when its date does: it has 23 or 25 hours where a clock is changed.
    """
    today = datetime.fromtimestamp(now // MICROS, zone).date()
    if window is LimitWindow.DAY:
        days = [today + timedelta(days=offset) for offset in (-1, 0, 1, 2)]
    else:
        days = [_month(today, offset) for offset in (-1, 0, 1, 2)]
    first, second, third, fourth = (_beginning(day, zone) for day in days)
    return first, second, third, fourth


def _month(day: date, offset: int) -> date:
    months = day.year * 12 + day.month - 1 + offset
    return date(months // 12, months % 12 + 1, 1)


def _beginning(day: date, zone: ZoneInfo) -> int:
    # Midnight where there is none, because a clock is put forward, is the moment that it is put forward at.
    return int(datetime.combine(day, time(), zone).timestamp()) * MICROS
