"""Notices when Redis was emptied, and gives it back what SQL knows of its windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from zoneinfo import ZoneInfo

from accounting import calendar
from accounting.catalogue.catalogue import credit_limit
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.limiter.limiter import MICROS, Booked, Epoch, Limiter
from accounting.limits import LimitRule
from accounting.quota import BUCKETS, Limit, LimitKind, LimitWindow
from accounting.usage.recovery_store import BookedAttempt, BookedMoment, BookedUsage, RecoveryStore
from accounting.usage.store import UsageStore
from naru.errors import NaruError
from naru.logs import Logger

# So wide that all of time since the Unix epoch is in one bucket.
_AGES = 10**11
_PART = 1_000
_CLOCKS_APART_SECONDS = 60.0
_CALENDAR = (LimitWindow.DAY, LimitWindow.MONTH)
_REMEMBERED = (LimitWindow.HOUR, *_CALENDAR, LimitWindow.TOTAL)
"""Those that outlast a recovery."""
_ALL_TIME_EVERY = 6
"""Reconciliations, of which there is one in ten seconds: all of time takes the database longer to add up."""


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
        recovery_store: RecoveryStore,
        catalogue: CatalogueKeeper,
        logger: Logger,
        recovery_seconds: float,
        zone: ZoneInfo,
        new_id: Callable[[], str],
    ) -> None:
        self._limiter = limiter
        self._store = store
        self._recovery_store = recovery_store
        self._catalogue = catalogue
        self._logger = logger
        self._recovery_seconds = recovery_seconds
        self._zone = zone
        self._new_id = new_id
        self._noted: str | None = None
        self._loaded: str | None = None
        self._recovering = True
        self._rules: dict[LimitWindow, frozenset[tuple[str, str, LimitRule]]] = {}
        self._reconciled = 0
        self._now = 0

    @property
    def recovering(self) -> bool:
        """Whether what the limiter counts is not all there was yet, as far as this process knows."""
        return self._recovering

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
        self._now = epoch.now
        self._recovering = self._noted != epoch.epoch_id
        if self._recovering and (self._noted is None or await self._recover(epoch)):
            await self._store.note_epoch(epoch.epoch_id)
            self._noted, self._recovering = epoch.epoch_id, False

    async def reconcile(self) -> None:
        """Lets what is counted be no less than SQL knows of, unless a recovery sees to it.

        The limiter learns so of what was used before a limit was made and, of credit and of all time, of what it was never told
        because it had forgotten the reservation. Raises NaruError SERVICE_UNAVAILABLE when Redis or the database is away.
        """
        if self._recovering:
            return
        rules = self._current_rules()
        due = {
            window
            for window, found in rules.items()
            if found != self._rules.get(window, frozenset()) and not self._is_ending(window)
        }
        if self._reconciled % _ALL_TIME_EVERY == 0 and rules[LimitWindow.TOTAL]:
            due.add(LimitWindow.TOTAL)
        self._reconciled += 1
        failure: NaruError | None = None
        for window in (None, *sorted(due)):
            # Each by itself: one that takes the database too long keeps no other out.
            try:
                await self._load(window)
            except NaruError as error:
                failure = error
                continue
            if window is not None:
                self._rules[window] = rules[window]
        if failure is not None:
            raise failure

    async def _load(self, window: LimitWindow | None) -> None:
        """Lets the limiter count no less than SQL knows of a window; None: of credit."""
        async with self._recovery_store.moment() as moment:
            if window is None:
                booked = await self._credit(moment)
            else:
                booked = await self._used(moment, window, self._now)
        await _in_parts(self._limiter.load, booked)

    def _current_rules(self) -> dict[LimitWindow, frozenset[tuple[str, str, LimitRule]]]:
        return {window: self._catalogue.current.rules(window) for window in _REMEMBERED}

    def _is_ending(self, window: LimitWindow) -> bool:
        """Whether a period ends so soon that what was used in it might be taken for use of the next one."""
        if window not in _CALENDAR:
            return False
        _, _, ends, _ = calendar.periods(window, self._now, self._zone)
        return ends - self._now < _CLOCKS_APART_SECONDS * MICROS

    async def _recover(self, epoch: Epoch) -> bool:
        """Loads the windows when the recovery is first seen and again when it is over, and tells whether it is.

        What ran when Redis was emptied is restored or reported meanwhile. An epoch is noted only after that, so a replica that
        dies before is followed by another; that both load changes nothing.
        """
        over = epoch.now >= epoch.open_time
        rules = self._current_rules()
        if over or self._loaded != epoch.epoch_id:
            await _in_parts(self._limiter.recover, await self._booked(epoch))
            self._loaded = epoch.epoch_id
        if over:
            await self._limiter.recovered()
            # What they count is all there, and need not be looked at again before they change.
            self._rules = rules
        return over

    async def _booked(self, epoch: Epoch) -> list[Booked]:
        """What SQL alone knows of windows; those of a minute are over by the time that reservations are taken.

        What the limiter knows of as well counts there by what it holds, or has settled: it is left out here. That was
        restored, or reserved, since the epoch began, so it was not settled before.
        """
        began = epoch.open_time - round((self._recovery_seconds + _CLOCKS_APART_SECONDS) * MICROS)
        async with self._recovery_store.moment() as moment:
            known = await self._known(await moment.changed_since(began))
            booked = await self._credit(moment, known)
            for window in _REMEMBERED:
                booked += await self._used(moment, window, epoch.now, known)
            return booked

    async def _used(
        self, moment: BookedMoment, window: LimitWindow, now: int, known: Sequence[BookedAttempt] = ()
    ) -> list[Booked]:
        """What was used of a window, in its period or its buckets that count at a time."""
        if not self._catalogue.current.rules(window):
            return []
        if window is LimitWindow.HOUR:
            hour = window.bucket_seconds
            oldest = now // (hour * MICROS) - BUCKETS
            return await self._window(moment, window, oldest * hour * MICROS, hour, known)
        begin = calendar.periods(window, now, self._zone)[1] if window in _CALENDAR else 0
        return await self._window(moment, window, begin, _AGES, known)

    async def _known(self, attempts: Sequence[BookedAttempt]) -> list[BookedAttempt]:
        """Those of the attempts that the limiter knows of."""
        known: list[BookedAttempt] = []
        for start in range(0, len(attempts), _PART):
            part = attempts[start : start + _PART]
            found = await self._limiter.look_up([one.ref for one in part])
            known += [one for one, reservation in zip(part, found, strict=True) if reservation.at_all]
        return known

    async def _credit(self, moment: BookedMoment, known: Sequence[BookedAttempt] = ()) -> list[Booked]:
        counted = Counter[str]()
        for one in known:
            counted[one.principal.workspace_id] += one.cost if one.settled else 0
        return [
            Booked(credit_limit(one.workspace_id, 0), 0, one.counted - counted[one.workspace_id])
            for one in await moment.prepaid()
            if one.counted > 0
        ]

    async def _window(
        self,
        moment: BookedMoment,
        window: LimitWindow,
        since: int,
        bucket_seconds: int,
        known: Sequence[BookedAttempt] = (),
    ) -> list[Booked]:
        catalogue = self._catalogue.current
        amounts: Counter[tuple[Limit, int]] = Counter()
        less = [one.less(bucket_seconds) for one in known if one.reserve_time >= since]
        if window is LimitWindow.HOUR:
            used = await moment.since(since, bucket_seconds)
        else:
            # Single events may be too many, or gone; the sums of them know no tiers.
            used = await moment.summed_since(since)
            if catalogue.counts_tiers(window):
                used += await moment.of_tiers_since(since)
        for booked in [*used, *less]:
            for limit in catalogue.counted(booked.principal, booked.model, window):
                amounts[limit, booked.bucket] += _amount(limit.kind, booked)
        return [Booked(limit, bucket, amount) for (limit, bucket), amount in amounts.items()]


async def _in_parts(put: Callable[[Sequence[Booked]], Awaitable[None]], booked: Sequence[Booked]) -> None:
    """All buckets of a limit in one part: what it lacks is told by their sum."""
    limits: dict[Limit, list[Booked]] = {}
    for one in booked:
        limits.setdefault(one.limit, []).append(one)
    part: list[Booked] = []
    for buckets in limits.values():
        if part and len(part) + len(buckets) > _PART:
            await put(part)
            part = []
        part += buckets
    if part:
        await put(part)


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
