"""The store of tiers, budgets and prices, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from accounting.catalogue.catalogue import Price
from accounting.catalogue.store import CatalogueStore, Snapshot
from accounting.limits import MAX_LIMIT, Budget, LimitRule, Tier, TierLimit
from accounting.quota import LimitKind, LimitScope, LimitWindow
from accounting.tables import tiers, usage_corrections, usage_events
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.ids import uuid7
from naru.pricing import MAX_UNIT_PRICE, UnitPrices

NOW = 1_800_000_000_000_001
RULE = LimitRule(LimitKind.COST, LimitWindow.MONTH, MAX_LIMIT, "모델", shadow=True, soft_thresholds=(80, 95))
IN_FLIGHT = LimitRule(LimitKind.CONCURRENCY, LimitWindow.NONE, 0)
TIER = Tier("pro", (TierLimit(RULE, LimitScope.WORKSPACE), TierLimit(IN_FLIGHT)), 10**12, NOW, NOW)


@pytest.fixture
def catalogue(database: Database) -> CatalogueStore:
    """An empty store."""
    return CatalogueStore(database)


def budget(number: int, **changes: object) -> Budget:
    made = Budget(f"budget-{number}", LimitScope.WORKSPACE, f"w{number % 2}", RULE, "예산", NOW + number // 2, NOW)
    return replace(made, **changes)  # type: ignore[arg-type]


def price(number: int, **changes: object) -> Price:
    units = UnitPrices(MAX_UNIT_PRICE, 1, 2, 3)
    made = Price(f"price-{number}", f"m{number // 2}", ("", "w1")[number % 2], units, NOW + number // 2, NOW)
    return replace(made, **changes)  # type: ignore[arg-type]


async def add_price(store: CatalogueStore, made: Price) -> tuple[Price, bool]:
    return await store.add_price(made.price_id, lambda: made)


async def refused(call: object) -> NaruError:
    with pytest.raises(NaruError) as failure:
        await call  # type: ignore[misc]
    return failure.value


async def test_everything_comes_back_whole(catalogue: CatalogueStore) -> None:
    """Every field of every kind survives, and the revision counts the changes."""
    assert await catalogue.load() == Snapshot(0, (), (), ())
    assert await catalogue.add_tier(TIER) == (TIER, True)
    assert await catalogue.add_budget(budget(1), needs_tier=False) == (budget(1), True)
    assert await add_price(catalogue, price(1)) == (price(1), True)
    assert await catalogue.load() == Snapshot(3, (TIER,), (budget(1),), (price(1),))
    assert (await catalogue.tier("pro"), await catalogue.tiers()) == (TIER, [TIER])
    assert await catalogue.budget("budget-1") == budget(1)
    assert await catalogue.revision() == 3


async def test_each_change_counts_and_nothing_else(catalogue: CatalogueStore) -> None:
    """What changes nothing, and what is refused, leaves the revision alone."""
    await catalogue.add_tier(TIER)
    await catalogue.add_budget(budget(1), needs_tier=False)
    await add_price(catalogue, price(1))
    assert await catalogue.add_tier(replace(TIER, limits=())) == (TIER, False)
    assert await catalogue.add_budget(budget(1, description=""), needs_tier=False) == (budget(1), False)
    assert await catalogue.add_price("price-1", lambda: price(2)) == (price(1), False)
    assert (await refused(catalogue.put_tier(replace(TIER, name="x"), must_exist=True))).reason is Reason.NOT_FOUND
    assert (await refused(catalogue.change_budget("x", lambda found: found))).reason is Reason.NOT_FOUND
    lonely = budget(2, scope=LimitScope.TIER, scope_id="x")
    assert (await refused(catalogue.add_budget(lonely, needs_tier=True))).reason is Reason.NOT_FOUND
    clash = price(1, price_id="other")
    assert (await refused(add_price(catalogue, clash))).reason is Reason.ALREADY_EXISTS
    assert not await catalogue.delete_tier("x", unless_budgeted=True)
    assert not await catalogue.delete_budget("x")
    assert not await catalogue.delete_price("x", lambda _: None)
    assert await catalogue.revision() == 3
    changed = replace(TIER, limits=(), create_time=NOW + 5, update_time=NOW + 5)
    assert await catalogue.put_tier(changed, must_exist=True) == replace(changed, create_time=NOW)
    await catalogue.put_tier(replace(TIER, name="free"), must_exist=False)
    assert (await catalogue.change_budget("budget-1", lambda found: replace(found, rule=IN_FLIGHT))).rule == IN_FLIGHT
    assert await catalogue.delete_tier("free", unless_budgeted=True)
    assert await catalogue.delete_budget("budget-1")
    assert await catalogue.delete_price("price-1", lambda _: None)
    assert await catalogue.load() == Snapshot(9, (replace(changed, create_time=NOW),), (), ())


async def test_a_budgeted_tier_stays(catalogue: CatalogueStore) -> None:
    """A budget of its own keeps it; one of a workspace of the same name does not."""
    await catalogue.add_tier(TIER)
    await catalogue.add_budget(budget(1, scope=LimitScope.TIER, scope_id="pro"), needs_tier=True)
    error = await refused(catalogue.delete_tier("pro", unless_budgeted=True))
    assert (error.reason, error.metadata) == (Reason.FAILED_PRECONDITION, {"resource": "tier", "name": "pro"})
    await catalogue.delete_budget("budget-1")
    await catalogue.add_budget(budget(2, scope_id="pro"), needs_tier=False)
    assert await catalogue.delete_tier("pro", unless_budgeted=True)


async def test_what_raises_in_between_changes_nothing(catalogue: CatalogueStore) -> None:
    """A check that refuses leaves the price, and one that cannot be made leaves none."""
    await add_price(catalogue, price(1))

    def refuse(_: object = None) -> Price:
        raise NaruError(Reason.FAILED_PRECONDITION, "no")

    assert (await refused(catalogue.delete_price("price-1", refuse))).message == "no"  # type: ignore[arg-type]
    assert (await refused(catalogue.add_price("price-2", refuse))).message == "no"
    assert await catalogue.load() == Snapshot(1, (), (), (price(1),))


async def test_budgets_are_listed_oldest_first(catalogue: CatalogueStore) -> None:
    """Pages follow one another without gap or repetition, also among budgets of one moment; filters narrow them."""
    for number in (5, 3, 1, 0, 2, 4):
        await catalogue.add_budget(budget(number), needs_tier=False)
    seen: list[Budget] = []
    after = None
    while page := await catalogue.budgets(after=after, limit=2):
        seen += page
        after = (page[-1].create_time, page[-1].budget_id)
    assert seen == [budget(number) for number in range(6)]
    theirs = await catalogue.budgets(scope=LimitScope.WORKSPACE, scope_id="w1", after=None, limit=9)
    assert theirs == [budget(1), budget(3), budget(5)]
    assert await catalogue.budgets(scope=LimitScope.KEY, after=None, limit=9) == []


async def test_prices_are_listed_last_first(catalogue: CatalogueStore) -> None:
    """Those that begin last come first; filters and what is visible narrow them."""
    for number in (5, 3, 1, 0, 2, 4):
        await add_price(catalogue, price(number))
    seen: list[Price] = []
    after = None
    while page := await catalogue.prices(after=after, limit=4):
        seen += page
        after = (page[-1].effective_time, page[-1].price_id)
    assert seen == [price(number) for number in (5, 4, 3, 2, 1, 0)]
    assert await catalogue.prices(model="m1", after=None, limit=9) == [price(3), price(2)]
    assert await catalogue.prices(workspace_id="w1", after=None, limit=9) == [price(5), price(3), price(1)]
    assert await catalogue.prices(visible_to="w2", after=None, limit=9) == [price(4), price(2), price(0)]
    assert await catalogue.prices(visible_to="w2", workspace_id="w1", after=None, limit=9) == []


async def test_changes_at_once_come_one_after_the_other(catalogue: CatalogueStore) -> None:
    """Of several that make the same thing one wins, nobody fails, and each change is counted."""
    made = await asyncio.gather(*(catalogue.add_tier(replace(TIER, default_output_tokens=n)) for n in range(1, 7)))
    assert [added for _, added in made].count(True) == 1
    assert {tier for tier, _ in made} == {await catalogue.tier("pro")}
    budgets = await asyncio.gather(*(catalogue.add_budget(budget(1), needs_tier=False) for _ in range(6)))
    assert sorted(added for _, added in budgets) == [False] * 5 + [True]
    clashing = [price(1, price_id=uuid7()) for _ in range(6)]
    prices = await asyncio.gather(*(add_price(catalogue, one) for one in clashing), return_exceptions=True)
    failures = [error for error in prices if isinstance(error, NaruError)]
    assert [error.reason for error in failures] == [Reason.ALREADY_EXISTS] * 5
    await asyncio.gather(*(catalogue.put_tier(TIER, must_exist=True) for _ in range(6)))
    found = await catalogue.load()
    assert (found.revision, len(found.budgets), len(found.prices)) == (9, 1, 1)


async def test_a_snapshot_is_of_one_moment(catalogue: CatalogueStore) -> None:
    """However many changes go on: what was loaded at a revision has exactly the changes up to it."""

    async def change() -> None:
        for number in range(20):
            await catalogue.add_budget(budget(number), needs_tier=False)
            await add_price(catalogue, price(number))

    changing = asyncio.create_task(change())
    while not changing.done():
        found = await catalogue.load()
        assert found.revision == len(found.budgets) + len(found.prices)
        assert len(found.budgets) - len(found.prices) in (0, 1)
    await changing
    assert (await catalogue.load()).revision == 40


async def test_usage_from_before_costs_nothing(database: Database) -> None:
    """Rows that say nothing of cost and price are unpriced, and count."""
    row = {
        "event_id": uuid7(),
        "attempt": 0,
        "evidence": 3,
        "accuracy": "exact",
        "outcome": "completed",
        **dict.fromkeys(("key_id", "user_id", "service_account", "workspace_id", "tier", "requested_model"), ""),
        **dict.fromkeys(("served_model", "endpoint", "request_id", "replica", "epoch"), ""),
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens"), 1),
        **dict.fromkeys(("reserve_time", "record_time"), NOW),
    }
    async with database.writing() as connection:
        await connection.execute(sa.insert(usage_events).values(row))
    async with database.reading() as connection:
        found = (await connection.execute(sa.select(usage_events))).one()
        assert (found.cost, found.price_id) == (0, "")
        assert (await connection.execute(sa.select(usage_corrections.c.cost))).all() == []
        assert (await connection.execute(sa.select(tiers))).all() == []


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """For reading and for changing."""
    store = CatalogueStore(Database(f"postgresql+asyncpg://naru:secret@/nowhere?host={tmp_path}"))
    for call in (store.revision(), store.load(), store.add_tier(TIER), store.delete_budget("x")):
        assert (await refused(call)).reason is Reason.SERVICE_UNAVAILABLE
