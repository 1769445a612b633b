"""What happens every second: leases that ended are closed, what waits is settled, what the limiter missed is told again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from accounting.epoch import EpochKeeper
from accounting.ledger.balance_keeper import BalanceKeeper
from accounting.limiter.limiter import MICROS, Limiter
from accounting.settlement import nothing_reported
from accounting.usage.recording import Recorder
from accounting.usage.store import UsageStore
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.logs import Logger
from naru.metrics import Metrics

_BATCH = 256
_UNSETTLED_BATCH = 1_024
_HOLD_SECONDS = 30.0
_RECONCILE_SECONDS = 10.0


class Sweeper:
    """Gives every reservation an outcome. Several may run at once, in as many replicas.

    Args:
        lease_seconds: Nothing expires for as long after a start, or after Redis was away: whoever runs a request could not
            renew its lease meanwhile.
        interval: Seconds between two rounds.
    """

    def __init__(
        self,
        *,
        store: UsageStore,
        limiter: Limiter,
        recorder: Recorder,
        epochs: EpochKeeper,
        balances: BalanceKeeper,
        clock: Clock,
        logger: Logger,
        metrics: Metrics,
        lease_seconds: float,
        interval: float = 1.0,
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._recorder = recorder
        self._epochs = epochs
        self._balances = balances
        self._clock = clock
        self._logger = logger
        self._lease_seconds = lease_seconds
        self._interval = interval
        self._patient_since = clock.monotonic()
        self._reconciled: float | None = None
        self._expired = metrics.counter("naru_leases_expired_total", "Leases that ended without being settled.")
        self._failed = metrics.counter("naru_sweeps_failed_total", "Steps of a round that failed.", ("step",))

    async def run(self) -> None:
        """Sweeps for ever."""
        # Renewals get through from now on: those that were missed while the service was away are waited for.
        self._patient_since = self._clock.monotonic()
        while True:
            await self.sweep()
            await asyncio.sleep(self._interval)

    async def sweep(self) -> None:
        """One round. Steps that fail because something is away are tried again in the next."""
        await self._attempt("backlog", self._recorder.measure_outbox)
        if not await self._attempt("epoch", self._epochs.check):
            # Renewals do not get through either, unless it is the database that is away.
            self._patient_since = self._clock.monotonic()
            return
        if self._clock.monotonic() - self._patient_since >= self._lease_seconds:
            await self._attempt("leases", self._expire_leases)
            await self._attempt("unsettled", self._settle_old)
        await self._attempt("outbox", self._recorder.deliver_outbox)
        now = self._clock.monotonic()
        if self._reconciled is None or now - self._reconciled >= _RECONCILE_SECONDS:
            self._reconciled = now
            await self._attempt("lifetimes", self._epochs.reconcile)
            if not self._epochs.recovering:
                await self._attempt("balances", self._balances.reconcile)

    async def _expire_leases(self) -> None:
        while True:
            claimed = await self._limiter.claim_expired(_BATCH, _HOLD_SECONDS)
            leases = [self._recorder.book(nothing_reported(one.ref, one.work), one.reserve_time) for one in claimed]
            await self._recorder.tell(await self._store.expire(leases, self._now()))
            self._expired.inc(len(claimed))
            if len(claimed) < _BATCH:
                return

    async def _settle_old(self) -> None:
        """Settles reports whose reservation is gone: released, lost with Redis, or never known to it."""
        before = self._now() - round(self._lease_seconds * MICROS)
        refs = await self._store.unsettled(before, _UNSETTLED_BATCH)
        known = await self._limiter.look_up(refs)
        gone = [ref for ref, reservation in zip(refs, known, strict=True) if not reservation.running]
        await self._recorder.tell(await self._store.settle(gone, self._now()))

    async def _attempt(self, step: str, run: Callable[[], Awaitable[None]]) -> bool:
        try:
            await run()
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            self._failed.labels(step).inc()
            self._logger.warning("a step of the sweep has to wait", step=step, error=error.message)
            return False
        return True

    def _now(self) -> int:
        return round(self._clock.time() * MICROS)
