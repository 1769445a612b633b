"""What keeps the sums by the hour up to date, in the background."""

from __future__ import annotations

import asyncio

from accounting.usage.rollup_store import RollupStore
from naru.errors import NaruError, Reason
from naru.logs import Logger
from naru.metrics import Metrics

BATCH = 5_000


class Roller:
    """Rolls usage events up. Several may run at once, in as many replicas: one rolls, the others pass.

    Args:
        interval: Seconds between two rounds.
    """

    def __init__(self, store: RollupStore, *, logger: Logger, metrics: Metrics, interval: float = 2.0) -> None:
        self._store = store
        self._logger = logger
        self._interval = interval
        self._rolled = metrics.counter(
            "naru_usage_rolled_total", "Changes of usage events that were summed by the hour."
        )
        self._failed = metrics.counter("naru_usage_rolls_failed_total", "Rounds of summing that failed.")

    async def run(self) -> None:
        """Rolls for ever."""
        while True:
            await self.roll()
            await asyncio.sleep(self._interval)

    async def roll(self) -> None:
        """One round: everything that waits. What fails because the database is away is tried again in the next."""
        try:
            # Asked without a lock: most rounds of a quiet installation find nothing.
            while await self._store.waiting():
                rolled = await self._store.roll(BATCH)
                self._rolled.inc(rolled)
                if rolled < BATCH:
                    return
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            self._failed.inc()
            self._logger.warning("summing usage has to wait", error=error.message)
