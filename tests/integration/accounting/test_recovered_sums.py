"""Windows longer than an hour come back to an emptied Redis from the sums that are kept for good."""

from __future__ import annotations

from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.limits import Budget, LimitRule
from accounting.quota import LimitKind, LimitScope, LimitState, LimitWindow
from accounting.settlement import BookedEvent
from accounting.tables import usage_events
from accounting.usage.recovery_store import BookedMoment
from accounting.usage.retention_store import RetentionStore
from accounting.usage.rollup_store import RollupStore
from naru.database import Database
from naru.usage import Evidence
from tests.integration.accounting.harness import PRINCIPAL, SECOND, START, WORK, Books, empty, new_ref, report
from tests.support.copies import replace

HOUR = 3_600 * SECOND


async def keep(books: Books, kind: LimitKind, window: LimitWindow, scope: LimitScope = LimitScope.KEY) -> None:
    """A budget of 1,000 that is in force."""
    scope_id = {LimitScope.KEY: "key-1", LimitScope.TIER: "free", LimitScope.WORKSPACE: "ws-1"}[scope]
    name = f"{kind}-{window}-{scope}"
    budget = Budget(name[:36], scope, scope_id, LimitRule(kind, window, 1_000))
    await books.catalogue_store.add_budget(budget, needs_tier=False)
    await books.catalogue.refresh()


async def used(books: Books, window: LimitWindow, scope: LimitScope = LimitScope.KEY) -> dict[LimitKind, int]:
    """What the limiter counts of budgets."""
    overview = await books.reservations.overview(PRINCIPAL, "", WORK.served_model)

    def asked(state: LimitState) -> bool:
        return state.limit.window is window and state.limit.scope is scope

    return {state.limit.kind: 1_000 - state.remaining for state in overview.limits if asked(state)}


async def booked_at(books: Books, time: int, evidence: Evidence = Evidence.FINAL) -> None:
    """Usage of 10 tokens that was booked at a time."""
    await books.store.record([BookedEvent(report(new_ref(), evidence), time, 5)], time)


async def lose_redis(books: Books, redis_url: str) -> None:
    """And let it recover."""
    await empty(redis_url)
    await books.epochs.check()
    books.advance(90)
    await books.epochs.check()


@pytest.mark.parametrize("rolled", [0, 2, 4])
async def test_a_lifetime_is_longer_than_events_are_kept(books: Books, redis_url: str, rolled: int) -> None:
    """However far the sums are: each event counts once, also when it is gone, and one that does not count yet."""
    await books.epochs.check()
    for window in (LimitWindow.TOTAL, LimitWindow.MONTH, LimitWindow.DAY):
        await keep(books, LimitKind.TOTAL_TOKENS, window)
        await keep(books, LimitKind.REQUESTS, window)
    await keep(books, LimitKind.COST, LimitWindow.TOTAL, LimitScope.WORKSPACE)
    for time in (START - 90 * 24 * HOUR, START - 25 * HOUR, START - HOUR - 1, START - 5):
        await booked_at(books, time)
    await books.recorder.deliver_outbox()
    await RollupStore(books.database).roll(rolled)
    if rolled:
        assert await RetentionStore(books.database).prune_usage(START - 26 * HOUR, 100) == 1
    await booked_at(books, START - 4, Evidence.DELIVERED)
    await lose_redis(books, redis_url)
    ever, month, day = [await used(books, window) for window in (LimitWindow.TOTAL, LimitWindow.MONTH, LimitWindow.DAY)]
    assert ever == {LimitKind.TOTAL_TOKENS: 50, LimitKind.REQUESTS: 5}
    assert await used(books, LimitWindow.TOTAL, LimitScope.WORKSPACE) == {LimitKind.COST: 25}
    # START is in the afternoon of the 15th in Seoul.
    assert month == {LimitKind.TOTAL_TOKENS: 40, LimitKind.REQUESTS: 4}
    assert day == {LimitKind.TOTAL_TOKENS: 30, LimitKind.REQUESTS: 3}


async def test_tiers_come_back_from_the_events_that_are_kept(books: Books, redis_url: str) -> None:
    """The sums do not know them."""
    await books.epochs.check()
    await keep(books, LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, LimitScope.TIER)
    for time in (START - 25 * HOUR, START - 5):
        await booked_at(books, time)
    await RollupStore(books.database).roll(10)
    await lose_redis(books, redis_url)
    assert await used(books, LimitWindow.TOTAL, LimitScope.TIER) == {LimitKind.TOTAL_TOKENS: 20}
    assert len(await books.rows(usage_events)) == 2


class Explaining:
    """A connection that asks SQLite how it would find what it is asked for."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.plan = ""

    async def execute(self, query: sa.Select[Any]) -> list[Any]:
        text = query.compile(dialect=self._connection.dialect, compile_kwargs={"literal_binds": True})
        steps = await self._connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")
        self.plan = "\n".join(step.detail for step in steps)
        return []


async def test_all_of_time_does_not_read_all_events(database: Database) -> None:
    """A lifetime is looked at each minute: of single events only those that are not settled are read."""
    if database.is_postgresql:
        return
    async with database.reading() as connection:
        explaining = Explaining(connection)
        await BookedMoment(cast(AsyncConnection, explaining)).summed_since(0)
    assert "usage_events USING INDEX ix_usage_events_unsettled" in explaining.plan
    assert "ix_usage_events_reserve_time" not in explaining.plan


async def test_what_is_known_is_not_counted_twice(books: Books, redis_url: str) -> None:
    """A request that was restored and settled while Redis recovered is in the sums as well."""
    await books.epochs.check()
    await keep(books, LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL)
    await booked_at(books, START - 5)
    await empty(redis_url)
    await books.epochs.check()
    books.advance(90)
    await books.epochs.check()
    event = report(await books.granted())
    await books.recorder.record([replace(event, usage=replace(event.usage, prompt_tokens=70))])
    await RollupStore(books.database).roll(10)
    await books.sweeper.sweep()
    assert await used(books, LimitWindow.TOTAL) == {LimitKind.TOTAL_TOKENS: 83}
