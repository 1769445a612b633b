"""What happens when Redis loses everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from accounting.limiter.limiter import Booked, Limiter
from accounting.limits import Budget, LimitRule
from accounting.quota import Grant, Limit, LimitKind, LimitScope, LimitWindow, Renewal
from accounting.usage.recovery_store import BookedMoment, BookedUsage, RecoveryStore
from naru.database import Database
from naru.errors import NaruError, Reason, unavailable
from naru.testing.clock import FakeClock
from tests.integration.accounting.harness import PRINCIPAL, SECOND, START, WORK, Books, empty, report
from tests.integration.accounting.test_costs import price, sell
from tests.integration.accounting.test_prepaid import Till
from tests.support.copies import replace


async def test_the_very_first_start_does_not_wait(books: Books, redis_url: str) -> None:
    """A database that never saw an epoch belongs to an installation that has nothing to lose."""
    await empty(redis_url)
    await books.epochs.check()
    await books.granted()
    assert await books.store.epoch() is not None


async def test_an_emptied_redis_is_closed_until_it_has_recovered(books: Books, redis_url: str) -> None:
    """Nobody gets in for the recovery, and each is told how long it takes."""
    await books.epochs.check()
    await empty(redis_url)
    for _ in range(2):
        with pytest.raises(NaruError) as failure:
            await books.reserve()
        assert failure.value.reason is Reason.SERVICE_UNAVAILABLE
        await books.epochs.check()
    assert failure.value.retry_after == 90.0
    books.advance(89)
    with pytest.raises(NaruError):
        await books.reserve()
    books.advance(1)
    await books.granted()


async def test_an_open_policy_admits_meanwhile(books: Books, redis_url: str) -> None:
    """By what Redis still holds, which is nothing; limits begin anew."""
    await books.epochs.check()
    await empty(redis_url)
    books.reservations = books.open_reservations
    for _ in range(2):
        assert isinstance((await books.reserve()).outcome, Grant)
        await books.epochs.check()


async def test_hour_windows_come_back_from_sql(books: Books, redis_url: str) -> None:
    """What was used in the last hour counts again; what is older does not; doing it twice adds nothing."""
    await books.epochs.check()
    work = replace(WORK, principal=replace(PRINCIPAL, tier="metered"))
    old = report(await books.granted("metered"), tokens=(5_000, 0))
    await books.recorder.record([replace(old, work=work)])
    books.advance(1_800)
    for _ in range(3):
        event = report(await books.granted("metered"), tokens=(100, 50))
        await books.recorder.record([replace(event, work=work)])
    books.advance(1_900)
    await empty(redis_url)
    await books.epochs.check()
    await Books(books.database, books.limiter, books.clock).epochs.check()
    books.advance(90)
    remaining = await books.remaining()
    assert remaining[LimitKind.REQUESTS] == 97
    assert remaining[LimitKind.TOTAL_TOKENS] == 10_000 - 450
    books.advance(1_669)
    assert (await books.remaining())[LimitKind.REQUESTS] == 97
    books.advance(1)
    assert (await books.remaining())[LimitKind.REQUESTS] == 100


async def test_what_is_reported_during_the_recovery_counts_too(books: Books, redis_url: str) -> None:
    """The limiter has forgotten what ran when Redis was emptied; its hour windows learn of it when they open."""
    await books.epochs.check()
    work = replace(WORK, principal=replace(PRINCIPAL, tier="metered"))
    ref = await books.granted("metered")
    await empty(redis_url)
    await books.epochs.check()
    books.advance(30)
    await books.recorder.record([replace(report(ref), work=work)])
    books.advance(60)
    await books.epochs.check()
    remaining = await books.remaining()
    assert (remaining[LimitKind.REQUESTS], remaining[LimitKind.TOTAL_TOKENS]) == (99, 9_990)


async def test_a_recovery_that_nobody_watched_is_made_up_for(books: Books, redis_url: str) -> None:
    """Whoever began the epoch died before it could load the windows; the next one does, however late."""
    await books.epochs.check()
    work = replace(WORK, principal=replace(PRINCIPAL, tier="metered"))
    await books.recorder.record([replace(report(await books.granted("metered")), work=work)])
    await empty(redis_url)
    await books.limiter.begin_epoch("begun by one that died", 90)
    books.advance(100)
    await Books(books.database, books.limiter, books.clock).epochs.check()
    assert (await books.remaining())[LimitKind.REQUESTS] == 99


async def test_a_retry_whose_first_attempt_never_began_is_one_request(books: Books, redis_url: str) -> None:
    """The first attempt was released and has no event; the request was made all the same, and made once."""
    await books.epochs.check()
    work = replace(WORK, principal=replace(PRINCIPAL, tier="metered"))
    first = await books.granted("metered")
    await books.reservations.release([first])
    for attempt in (1, 2):
        ref = await books.granted("metered", ref=replace(first, attempt=attempt))
        await books.recorder.record([replace(report(ref), work=work)])
    await empty(redis_url)
    await books.epochs.check()
    books.advance(90)
    assert (await books.remaining())[LimitKind.REQUESTS] == 99


async def test_what_is_loaded_before_the_loss_was_noticed_counts_once(books: Books, redis_url: str) -> None:
    """Another replica may look at SQL right after Redis was emptied, or during the recovery, which counts the same."""
    await books.epochs.check()
    await books.recorder.record([report(await books.granted())])
    rule = LimitRule(LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, 1_000)
    await books.catalogue_store.add_budget(Budget("b", LimitScope.KEY, "key-1", rule), needs_tier=False)
    await books.catalogue.refresh()
    used = Booked(Limit(LimitScope.KEY, "key-1", LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, 1_000), 0, 10)
    await empty(redis_url)
    await books.limiter.load([used])
    await books.epochs.check()
    await books.limiter.load([used])
    books.advance(90)
    await books.epochs.check()
    await books.limiter.load([used])
    assert (await books.remaining("free"))[LimitKind.TOTAL_TOKENS] == 990


async def test_a_window_is_given_what_it_lacks(books: Books) -> None:
    """A limit that slides learns of earlier minutes together, up to their sum, and of none that it has left behind."""
    await books.epochs.check()
    ref = await books.granted("metered")
    await books.recorder.record([report(ref)])
    hour = Limit(LimitScope.KEY, "key-1", LimitKind.TOTAL_TOKENS, LimitWindow.HOUR, 10_000)
    minute = START // 60_000_000
    ages = [Booked(hour, minute - age, 5) for age in range(1, 4)]
    for _ in range(2):
        await books.limiter.load([*ages, Booked(hour, minute - 61, 1_000)])
        # 10 were there.
        assert (await books.remaining())[LimitKind.TOTAL_TOKENS] == 10_000 - 15


class BusyMoment(BookedMoment):
    """Takes too long to say what tiers used."""

    async def of_tiers_since(self, time: int) -> list[BookedUsage]:
        raise unavailable("accounting")


class BusyStore(RecoveryStore):
    """Of a database that is busy until a test says that it is not."""

    busy = True

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[BookedMoment]:
        async with super().moment() as moment:
            yield BusyMoment(moment._connection) if self.busy else moment


async def test_a_window_that_fails_keeps_no_other_out(database: Database, limiter: Limiter) -> None:
    """What the database had no answer about is asked for again; credit and other budgets are loaded meanwhile."""
    store = BusyStore(database)
    books = Books(database, limiter, FakeClock(START / SECOND), recovery_store=store)
    till = Till(books)
    await books.epochs.check()
    await sell(books, price(START))
    await till.pay(10_000)
    await till.use(37)
    assert await limiter.redis.delete("{naru-3}:b:workspace:ws-1::cost:total") == 1
    for window, scope, scope_id in (
        (LimitWindow.DAY, LimitScope.TIER, "free"),
        (LimitWindow.MONTH, LimitScope.KEY, "key-1"),
    ):
        budget = Budget(window, scope, scope_id, LimitRule(LimitKind.TOTAL_TOKENS, window, 1_000))
        await books.catalogue_store.add_budget(budget, needs_tier=False)
    await books.catalogue.refresh()

    async def used() -> dict[LimitWindow, int]:
        states = (await books.reservations.overview(PRINCIPAL, "", WORK.served_model)).limits
        return {one.limit.window: 1_000 - one.remaining for one in states if one.limit.kind is LimitKind.TOTAL_TOKENS}

    with pytest.raises(NaruError):
        await books.epochs.reconcile()
    assert await till.left() == 10_000 - 137
    assert await used() == {LimitWindow.DAY: 0, LimitWindow.MONTH: 37}
    store.busy = False
    await books.epochs.reconcile()
    assert await used() == {LimitWindow.DAY: 37, LimitWindow.MONTH: 37}


async def test_a_recovery_may_be_interrupted_for_as_long_as_it_likes(books: Books, redis_url: str) -> None:
    """What it has loaded is remembered until it is over, and not a moment longer."""
    await books.epochs.check()
    await books.recorder.record([report(await books.granted("metered"))])
    await empty(redis_url)
    await books.epochs.check()
    assert await books.limiter.redis.ttl("{naru-3}:known") == -1
    books.advance(90)
    await books.epochs.check()
    assert not await books.limiter.redis.exists("{naru-3}:known")


async def test_replicas_agree_on_one_epoch(books: Books, redis_url: str) -> None:
    """The one that comes second takes over what the first began."""
    await empty(redis_url)
    other = Books(books.database, books.limiter, books.clock)
    await books.epochs.check()
    noted = await books.store.epoch()
    await other.epochs.check()
    assert await books.store.epoch() == noted
    assert (await books.limiter.begin_epoch("another", 0)).epoch_id == noted


async def test_a_lease_lost_with_redis_is_settled_by_its_report(books: Books, redis_url: str) -> None:
    """The engine's report is booked when it was accepted, and renewing what is unknown says so."""
    await books.epochs.check()
    ref = await books.granted("metered")
    await empty(redis_url)
    await books.epochs.check()
    assert await books.reservations.renew([ref]) == [Renewal(None, unknown=True)]
    await books.recorder.record([report(ref)])
    assert await books.total() == (1, 7, 3)
    assert books.clock.time() * 1_000_000 == START
