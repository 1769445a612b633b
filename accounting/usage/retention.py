"""How long what is kept of single requests: usage events once the sums by the hour have them, and the request log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from accounting.settlement import UsageEvent
from accounting.usage.counting import HOUR_MICROS
from accounting.usage.retention_store import RetentionStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument
from naru.logs import Logger
from naru.metrics import Metrics

BATCH = 1_000
_MICROS = 1_000_000
_DAY_MICROS = 86_400 * _MICROS
_PAUSE_SECONDS = 0.02


class Pruner:
    """Forgets what is old enough, and refuses reports of it: nobody could tell any more whether they were counted.

    Every replica runs one. What is to go is announced a round before it goes, so that all of them refuse it by then.

    Args:
        usage_days: Days that single usage events are kept.
        request_log_days: Days that lines of the request log are kept.
        lifetime_seconds: Most seconds between the reservation of a request and its end.
        interval: Seconds between two rounds; at most half an hour.
    """

    def __init__(
        self,
        store: RetentionStore,
        *,
        clock: Clock,
        logger: Logger,
        metrics: Metrics,
        usage_days: int,
        request_log_days: int,
        lifetime_seconds: float,
        interval: float = 60.0,
    ) -> None:
        self._store = store
        self._clock = clock
        self._logger = logger
        self._usage_days = usage_days
        self._request_log_days = request_log_days
        self._lifetime = round(lifetime_seconds * _MICROS)
        self._interval = interval
        self._announced = 0
        self._pruned = metrics.counter("naru_rows_pruned_total", "Rows deleted because they were old.", ("table",))
        self._failed = metrics.counter("naru_prunes_failed_total", "Rounds of deleting old rows that failed.")

    async def load(self) -> None:
        """Finds out what was announced before. Raises NaruError SERVICE_UNAVAILABLE."""
        self._announced = await self._store.pruned_before()

    def refusal(self, event: UsageEvent) -> NaruError | None:
        """Why a report comes too late to be taken; None when it does not."""
        if not self._announced:
            return None
        times = (_id_time(event.ref.event_id), event.accept_time, event.end_time)
        known = [time for time in times if time is not None]
        # Whatever was booked before the announced time ended within a lifetime of it. The hour is for clocks that differ, and
        # for what was announced since we last asked.
        if not known or max(known) >= self._announced + self._lifetime + HOUR_MICROS:
            return None
        return invalid_argument(
            "event_id", f"This event is older than the {self._usage_days} days for which single usage events are kept."
        )

    async def run(self) -> None:
        """Prunes for ever."""
        while True:
            await self.prune()
            await asyncio.sleep(self._interval)

    async def prune(self) -> None:
        """One round. What fails because the database is away is tried again in the next."""
        try:
            await self._prune_usage()
            await self._prune_requests()
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            self._failed.inc()
            self._logger.warning("deleting old rows has to wait", error=error.message)

    async def _prune_usage(self) -> None:
        before = self._announced
        await self._repeat("usage_events", lambda: self._store.prune_usage(before, BATCH))
        limit = self._before(await self._store.newest_event(), self._usage_days)
        if limit is not None:
            await self._store.announce(limit)
        await self.load()

    async def _prune_requests(self) -> None:
        before = self._before(await self._store.newest_request(), self._request_log_days)
        if before is not None:
            await self._repeat("request_log", lambda: self._store.prune_requests(before, BATCH))

    async def _repeat(self, table: str, prune: Callable[[], Awaitable[int]]) -> None:
        while True:
            pruned = await prune()
            self._pruned.labels(table).inc(pruned)
            if pruned < BATCH:
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    def _before(self, newest: int | None, days: int) -> int | None:
        """What came in before this may go; None while nothing may."""
        if newest is None:
            return None
        # A clock that jumped ahead must not empty the tables: nothing is older than it looks beside the newest.
        now = min(round(self._clock.time() * _MICROS), newest)
        return max(now - days * _DAY_MICROS, 0)


def _id_time(event_id: str) -> int | None:
    """When an event was given its id, in microseconds since the Unix epoch; None when the id does not tell."""
    return int(event_id[:8] + event_id[9:13], 16) * 1_000 if event_id[14] == "7" and event_id[19] in "89ab" else None
