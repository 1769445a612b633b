"""Reports of usage: kept in SQL first, told to the limiter after, and told again until it knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from accounting.catalogue.keeper import CatalogueKeeper
from accounting.engines import EngineReport
from accounting.limiter.limiter import MICROS, Limiter
from accounting.quota import EventRef
from accounting.settlement import BookedEvent, Exact, RecordStatus, UsageEvent, booking_time
from accounting.usage.store import UsageStore
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.logs import Logger
from naru.metrics import Metrics
from naru.usage import Evidence

_BATCH = 512
# What was written this recently is about to be told by whoever wrote it.
_OUTBOX_AGE_SECONDS = 1.0


class Recorder:
    """Records usage, exactly once per attempt, whatever comes twice or late."""

    def __init__(
        self,
        *,
        store: UsageStore,
        limiter: Limiter,
        catalogue: CatalogueKeeper,
        clock: Clock,
        logger: Logger,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._catalogue = catalogue
        self._clock = clock
        self._logger = logger
        self._waiting = metrics.gauge("naru_settlements_waiting", "Settlements that the limiter was not told of yet.")
        self._reported = metrics.counter("naru_usage_events_total", "Reports of usage.", ("status",))

    async def record(
        self, events: Sequence[UsageEvent], counters: EngineReport | None = None
    ) -> tuple[RecordStatus, ...]:
        """Keeps each if it is the best evidence so far, and what an engine has counted that these and earlier ones are of.

        Raises NaruError SERVICE_UNAVAILABLE when the database is away.
        """
        now = self._now()
        times = await self._reserve_times([event.ref for event in events])
        # A price that another replica was told of counts here as well: it begins later than it can be missed.
        await self._catalogue.refresh()
        booked = [self.book(event, booking_time(event, times[event.ref], now)) for event in events]
        recorded = await self._store.record(booked, now, counters)
        for status, count in Counter(recorded.statuses).items():
            self._reported.labels(status).inc(count)
        await self.tell(recorded.settled)
        return recorded.statuses

    def book(self, event: UsageEvent, reserve_time: int) -> BookedEvent:
        """The event with its cost, by the price in force when it was reserved."""
        work = event.work
        price = self._catalogue.current.price(work.served_model, work.principal.workspace_id, reserve_time)
        if price is None:
            return BookedEvent(event, reserve_time)
        # What nobody reported anything about was never accepted, as far as anybody knows.
        cost = 0 if event.evidence is Evidence.NONE else price.unit_prices.cost(event.usage)
        return BookedEvent(event, reserve_time, cost, price.price_id)

    async def tell(self, settled: Sequence[Exact]) -> None:
        """Tells the limiter what counts now. What it cannot be told stays in the outbox."""
        try:
            await self._deliver(settled)
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            self._logger.warning("settlements wait in the outbox", count=len(settled), error=error.message)

    async def measure_outbox(self) -> None:
        """Says in the metrics what the limiter was not told. Raises NaruError SERVICE_UNAVAILABLE."""
        self._waiting.set(await self._store.backlog(self._before()))

    async def deliver_outbox(self) -> None:
        """Tells the limiter what it was not told when it happened. Raises NaruError SERVICE_UNAVAILABLE."""
        while True:
            waiting = await self._store.outbox(self._before(), _BATCH)
            await self._deliver(waiting)
            if len(waiting) < _BATCH:
                return

    async def _deliver(self, settled: Sequence[Exact]) -> None:
        await self._limiter.settle(settled)
        await self._store.delivered(settled)

    async def _reserve_times(self, refs: Sequence[EventRef]) -> dict[EventRef, int]:
        """When each was reserved, by the limiter, or else by what was recorded of it before; 0: nobody knows."""
        try:
            known = await self._limiter.look_up(refs)
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            known = []
        times = dict.fromkeys(refs, 0) | {ref: one.reserve_time for ref, one in zip(refs, known, strict=False)}
        return times | await self._store.reserve_times([ref for ref, time in times.items() if not time])

    def _before(self) -> int:
        return self._now() - round(_OUTBOX_AGE_SECONDS * MICROS)

    def _now(self) -> int:
        return round(self._clock.time() * MICROS)
