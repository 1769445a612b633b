"""Notices when Redis was emptied, and gives it back what SQL knows of its windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from zoneinfo import ZoneInfo

from accounting import calendar
from accounting.catalogue.catalogue import credit_limit
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.limiter.limiter import MICROS, Booked, Epoch, Limiter
from accounting.limits import LimitRule
from accounting.quota import BUCKETS, Limit, LimitKind, LimitWindow
from accounting.usage.store import BookedUsage, UsageStore
from naru.logs import Logger

# So wide that all of time since the Unix epoch is in one bucket.
_AGES = 10**11


class EpochKeeper:
    """Keeps the epoch of what Redis holds.

    Args:
        recovery_seconds: How long an emptied Redis takes no reservations: until what ran before must have ended or been renewed,
            and no minute window can hold anything from before.
        zone: Whose days and months are counted.
        new_id: Makes the id of an epoch.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        store: UsageStore,
        catalogue: CatalogueKeeper,
        logger: Logger,
        recovery_seconds: float,
        zone: ZoneInfo,
        new_id: Callable[[], str],
    ) -> None:
        self._limiter = limiter
        self._store = store
        self._catalogue = catalogue
        self._logger = logger
        self._recovery_seconds = recovery_seconds
        self._zone = zone
        self._new_id = new_id
        self._noted: str | None = None
        self._loaded: str | None = None
        self._lifetimes: frozenset[tuple[str, str, LimitRule]] = frozenset()

    async def check(self) -> None:
        """Begins an epoch if there is none, and sees its recovery through.

        Raises NaruError SERVICE_UNAVAILABLE when Redis or the database is away.
        """
        if self._noted is None:
            self._noted = await self._store.epoch()
        recovery_seconds = self._recovery_seconds if self._noted is not None else 0.0
        epoch = await self._limiter.begin_epoch(self._new_id(), recovery_seconds)
        if epoch.began and self._noted is not None:
            self._logger.error("Redis was emptied: limits begin anew", recovery_seconds=recovery_seconds)
        if self._noted == epoch.epoch_id:
            return
        if self._noted is not None and not await self._recover(epoch):
            return
        await self._store.note_epoch(epoch.epoch_id)
        self._noted = epoch.epoch_id

    async def reconcile(self) -> None:
        """Lets what is counted for all time be no less than SQL knows of.

        The limiter learns so of what was used before such a limit was made, and of what it was never told because it had
        forgotten the reservation. Raises NaruError SERVICE_UNAVAILABLE when Redis or the database is away.
        """
        rules = self._catalogue.current.lifetime_rules()
        if rules != self._lifetimes:
            await self._load_window(LimitWindow.TOTAL, 0, _AGES)
            self._lifetimes = rules
        await self._load_credit()

    async def _load_credit(self) -> None:
        accounts = await self._store.prepaid()
        await self._load_all(
            [Booked(credit_limit(one.workspace_id, 0), 0, one.used) for one in accounts if one.used > 0]
        )

    async def _recover(self, epoch: Epoch) -> bool:
        """Loads the windows when the recovery is first seen and again when it is over, and tells whether it is.

        What ran when Redis was emptied is reported meanwhile. An epoch is noted only after that, so a replica that dies
        before is followed by another; that both load changes nothing.
        """
        over = epoch.now >= epoch.open_time
        if over or self._loaded != epoch.epoch_id:
            await self._load(epoch)
            self._loaded = epoch.epoch_id
        return over

    async def _load(self, epoch: Epoch) -> None:
        """Puts what SQL knows into the windows; those of a minute are over by the time that reservations are taken."""
        hour = LimitWindow.HOUR.bucket_seconds
        oldest = epoch.now // (hour * MICROS) - BUCKETS
        await self._load_window(LimitWindow.HOUR, oldest * hour * MICROS, hour)
        for window in (LimitWindow.DAY, LimitWindow.MONTH):
            _, begin, _, _ = calendar.periods(window, epoch.now, self._zone)
            await self._load_window(window, begin, _AGES)
        if self._catalogue.current.lifetime_rules():
            await self._load_window(LimitWindow.TOTAL, 0, _AGES)
        await self._load_credit()

    async def _load_window(self, window: LimitWindow, since: int, bucket_seconds: int) -> None:
        catalogue = self._catalogue.current
        amounts: Counter[tuple[Limit, int]] = Counter()
        for booked in await self._store.booked_since(since, bucket_seconds):
            # Neither height nor manner is part of what a limit counts: two limits on the same thing count together.
            counted = {
                Limit(limit.scope, limit.scope_id, limit.kind, window, 0, limit.model)
                for limit in catalogue.limits(booked.principal, model=booked.model)
                if limit.window is window
            }
            for limit in counted:
                amounts[limit, booked.bucket] += _amount(limit.kind, booked)
        await self._load_all(
            [Booked(limit, bucket, amount) for (limit, bucket), amount in amounts.items() if amount > 0]
        )

    async def _load_all(self, loaded: Sequence[Booked]) -> None:
        for start in range(0, len(loaded), 1_000):
            await self._limiter.load(loaded[start : start + 1_000])


def _amount(kind: LimitKind, booked: BookedUsage) -> int:
    match kind:
        case LimitKind.REQUESTS:
            return booked.requests
        case LimitKind.INPUT_TOKENS:
            return booked.usage.prompt_tokens
        case LimitKind.OUTPUT_TOKENS:
            return booked.usage.completion_tokens
        case LimitKind.TOTAL_TOKENS:
            return booked.usage.total_tokens
        case LimitKind.COST:
            return booked.cost
        case LimitKind.CONCURRENCY:
            return 0
