"""Notices when Redis was emptied, and gives it back what SQL knows of its windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from accounting.limiter import MICROS, Booked, Epoch, Limiter
from accounting.quota import BUCKETS, Limit, LimitKind, LimitWindow
from accounting.store import UsageStore
from accounting.tiers import Tiers
from naru.logs import Logger
from naru.usage import Usage


class EpochKeeper:
    """Keeps the epoch of what Redis holds.

    Args:
        recovery_seconds: How long an emptied Redis takes no reservations: until what ran before must have ended or been renewed,
            and no minute window can hold anything from before.
        new_id: Makes the id of an epoch.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        store: UsageStore,
        tiers: Tiers,
        logger: Logger,
        recovery_seconds: float,
        new_id: Callable[[], str],
    ) -> None:
        self._limiter = limiter
        self._store = store
        self._tiers = tiers
        self._logger = logger
        self._recovery_seconds = recovery_seconds
        self._new_id = new_id
        self._noted: str | None = None
        self._loaded: str | None = None

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
        width = LimitWindow.HOUR.bucket_seconds
        oldest = epoch.now // (width * MICROS) - BUCKETS
        amounts: Counter[tuple[Limit, int]] = Counter()
        for booked in await self._store.booked_since(oldest * width * MICROS, width):
            for limit in self._tiers.limits(booked.principal):
                if limit.window is LimitWindow.HOUR:
                    # A limit's height is not part of what it counts: two tiers of one key count together.
                    counted = Limit(limit.scope, limit.scope_id, limit.kind, limit.window, 0)
                    amounts[counted, booked.bucket] += _amount(limit.kind, booked.requests, booked.usage)
        loaded = [Booked(limit, bucket, amount) for (limit, bucket), amount in amounts.items() if amount > 0]
        for start in range(0, len(loaded), 1_000):
            await self._limiter.load(loaded[start : start + 1_000])


def _amount(kind: LimitKind, requests: int, usage: Usage) -> int:
    match kind:
        case LimitKind.REQUESTS:
            return requests
        case LimitKind.INPUT_TOKENS:
            return usage.prompt_tokens
        case LimitKind.OUTPUT_TOKENS:
            return usage.completion_tokens
        case LimitKind.TOTAL_TOKENS:
            return usage.total_tokens
        case LimitKind.CONCURRENCY:
            return 0
