"""The rules of tiers, budgets and prices, over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from accounting import migrations
from accounting.catalogue.budgets import BudgetManager
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.catalogue.prices import PriceManager, PriceWish
from accounting.catalogue.store import CatalogueStore
from accounting.catalogue.tier_file import BUILT_IN
from accounting.catalogue.tiers import TierManager
from accounting.limits import Budget, LimitRule, Tier, TierLimit
from accounting.quota import LimitKind, LimitScope, LimitWindow
from naru.database import Database
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Caller, Principal, Role, ServiceName
from naru.ids import uuid7
from naru.logs import get_logger
from naru.pricing import UnitPrices
from naru.testing.clock import FakeClock

NOW = 1_800_000_000_000_000
SECOND = 1_000_000
ADMIN = Caller(principal=Principal("w1", Role.ADMIN, key_id="admin0000000"))
OTHER_ADMIN = Caller(principal=Principal("w1", Role.ADMIN, key_id="other0000000"))
OPERATOR = Caller(service=ServiceName.OPERATOR)
DAILY = LimitRule(LimitKind.COST, LimitWindow.DAY, 5_000_000_000)
TIER = Tier("pro", (TierLimit(DAILY), TierLimit(DAILY, LimitScope.WORKSPACE)), 1_000)
BUDGET = Budget("", LimitScope.WORKSPACE, "w1", DAILY, "for the team")
PRICE = PriceWish("smollm2", UnitPrices(100, 50, 400, 7))


@dataclass
class Desk:
    """The three managers over one database, and what a test can turn."""

    store: CatalogueStore
    clock: FakeClock = field(default_factory=FakeClock)
    used: set[str] = field(default_factory=set)
    keys_away: bool = False
    limiter_ahead: int | None = 0
    """Microseconds; None: the limiter is away."""
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        files = {"fixed": Tier("fixed")}
        ids = count(1)
        self.keeper = CatalogueKeeper(self.store, files, self.clock, get_logger("test"))
        refresh = self.keeper.refresh
        self.tiers = TierManager(
            store=self.store, file_tiers=files, tier_in_use=self._in_use, refresh=refresh, clock=self.clock
        )
        self.budgets = BudgetManager(
            store=self.store,
            file_tiers=files,
            refresh=refresh,
            clock=self.clock,
            new_id=lambda: f"00000000-0000-7000-8000-{next(ids):012d}",
        )
        self.prices = PriceManager(
            store=self.store, refresh=refresh, clock=self.clock, limiter_time=self._limiter_time, new_id=uuid7
        )

    async def _limiter_time(self) -> int:
        if self.limiter_ahead is None:
            raise unavailable("accounting")
        return round(self.clock.time() * SECOND) + self.limiter_ahead

    async def _in_use(self, name: str) -> bool:
        self.asked.append(name)
        if self.keys_away:
            raise unavailable("authsvc")
        return name in self.used


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """Managers of a new database."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/accounting.db")
    await migrations.MIGRATIONS.upgrade(database)
    yield Desk(CatalogueStore(database))
    await database.close()


async def refused(call: Awaitable[Any]) -> NaruError:
    """The error that `call` fails with."""
    with pytest.raises(NaruError) as failure:
        await call
    return failure.value


async def refused_field(call: Awaitable[Any]) -> str:
    """The field for which `call` is refused as an invalid argument."""
    error = await refused(call)
    assert error.reason is Reason.INVALID_ARGUMENT, error
    return error.metadata["field"]


async def test_a_tier_is_made_once(desk: Desk) -> None:
    """The same tier again is the first one; another one of the name is refused."""
    made = await desk.tiers.create(TIER)
    assert made == replace(TIER, create_time=NOW, update_time=NOW)
    assert desk.keeper.current.tier("pro") == made
    desk.clock.advance(1)
    assert await desk.tiers.create(TIER, uuid7()) == made
    error = await refused(desk.tiers.create(replace(TIER, default_output_tokens=1)))
    assert (error.reason, error.metadata) == (Reason.ALREADY_EXISTS, {"resource": "tier", "name": "pro"})
    assert await desk.tiers.get("pro") == made


async def test_a_tier_is_replaced_whole(desk: Desk) -> None:
    """An update is in force on return and keeps the time of creation; an unknown tier is not found."""
    await desk.tiers.create(TIER)
    desk.clock.advance(1)
    changed = await desk.tiers.update(Tier("pro"))
    assert changed == Tier("pro", create_time=NOW, update_time=NOW + SECOND)
    assert desk.keeper.current.tier("pro") == await desk.tiers.get("pro") == changed
    for call in (desk.tiers.update(Tier("gold")), desk.tiers.get("gold")):
        error = await refused(call)
        assert (error.reason, error.metadata) == (Reason.NOT_FOUND, {"resource": "tier", "name": "gold"})


@pytest.mark.parametrize("name", ["free", "standard", "unlimited"])
async def test_a_built_in_tier_can_be_changed_and_comes_back(desk: Desk, name: str) -> None:
    """Deleting takes the change back, whoever has the tier, and once more changes nothing."""
    desk.used.add(name)
    assert await desk.tiers.create(BUILT_IN[name]) == BUILT_IN[name]
    assert (await refused(desk.tiers.create(Tier(name, TIER.limits)))).reason is Reason.ALREADY_EXISTS
    changed = await desk.tiers.update(Tier(name, TIER.limits))
    assert desk.keeper.current.tier(name) == changed == await desk.tiers.create(Tier(name, TIER.limits))
    await desk.budgets.create(ADMIN, replace(BUDGET, scope=LimitScope.TIER, scope_id=name))
    for _ in range(2):
        await desk.tiers.delete(name)
        assert desk.keeper.current.tier(name) == await desk.tiers.get(name) == BUILT_IN[name]
    assert desk.asked == []


async def test_a_tier_of_the_file_stays(desk: Desk) -> None:
    """It is shown, but making, changing and deleting it is refused with the reason."""
    assert await desk.tiers.get("fixed") == Tier("fixed")
    for call in (desk.tiers.create(TIER_FIXED), desk.tiers.update(TIER_FIXED), desk.tiers.delete("fixed")):
        error = await refused(call)
        assert error.reason is Reason.FAILED_PRECONDITION
        assert "file" in error.message
    assert await desk.store.tiers() == []


TIER_FIXED = Tier("fixed", TIER.limits)


async def test_a_tier_in_use_stays(desk: Desk) -> None:
    """While a key has it, while a budget is for it, and while nobody can tell; then it goes, and once more is no error."""
    await desk.tiers.create(TIER)
    desk.used.add("pro")
    assert (await refused(desk.tiers.delete("pro"))).reason is Reason.FAILED_PRECONDITION
    desk.used.clear()
    desk.keys_away = True
    assert (await refused(desk.tiers.delete("pro"))).metadata == {"service": "authsvc"}
    desk.keys_away = False
    budget = await desk.budgets.create(ADMIN, replace(BUDGET, scope=LimitScope.TIER, scope_id="pro"))
    assert (await refused(desk.tiers.delete("pro"))).reason is Reason.FAILED_PRECONDITION
    assert (await desk.tiers.get("pro")).limits == TIER.limits
    await desk.budgets.delete(budget.budget_id)
    await desk.tiers.delete("pro")
    assert not desk.keeper.current.knows_tier("pro")
    desk.keys_away = True
    await desk.tiers.delete("pro")


@pytest.mark.parametrize("name", ["", "A", "1a", "a b", "é", "a" * 65, "a\0", "a\n", "-a"])
async def test_names_of_tiers(desk: Desk, name: str) -> None:
    """A name that is none is named as the field, in every call."""
    assert await refused_field(desk.tiers.create(Tier(name))) == "tier.name"
    assert await refused_field(desk.tiers.update(Tier(name))) == "tier.name"
    assert await refused_field(desk.tiers.get(name)) == "name"
    assert await refused_field(desk.tiers.delete(name)) == "name"


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        (replace(DAILY, limit=-1), "limit"),
        (replace(DAILY, limit=9 * 10**15 + 1), "limit"),
        (replace(DAILY, window=LimitWindow.NONE), "window"),
        (replace(DAILY, kind=LimitKind.CONCURRENCY), "window"),
        (replace(DAILY, model="x" * 513), "model"),
        (replace(DAILY, soft_thresholds=(0,)), "soft_thresholds"),
    ],
)
async def test_wrong_rules_are_named(desk: Desk, rule: LimitRule, wrong: str) -> None:
    """In tiers and in budgets, made or changed: the field is named and nothing is kept."""
    tier = Tier("pro", (TierLimit(DAILY), TierLimit(rule, LimitScope.USER)))
    assert await refused_field(desk.tiers.create(tier)) == f"tier.limits[1].rule.{wrong}"
    assert await refused_field(desk.tiers.update(tier)) == f"tier.limits[1].rule.{wrong}"
    assert await refused_field(desk.budgets.create(ADMIN, replace(BUDGET, rule=rule))) == f"budget.rule.{wrong}"
    budget = await desk.budgets.create(ADMIN, BUDGET)
    assert await refused_field(desk.budgets.update(replace(budget, rule=rule))) == f"budget.rule.{wrong}"
    assert (await desk.store.tiers(), await desk.budgets.get(budget.budget_id)) == ([], budget)


async def test_tiers_are_listed_by_name(desk: Desk) -> None:
    """All three layers, each name once, page after page."""
    await desk.tiers.create(TIER)
    await desk.tiers.update(Tier("free"))
    names, token = [], ""
    while True:
        page = await desk.tiers.list_page(size=2, token=token)
        names += [tier.name for tier in page.rows]
        if not (token := page.next_page_token):
            break
    assert names == ["fixed", "free", "pro", "standard", "unlimited"]
    assert await refused_field(desk.tiers.list_page(size=-1, token="")) == "page_size"
    assert await refused_field(desk.tiers.list_page(size=0, token="x")) == "page_token"


async def test_a_budget_is_made_once_for_a_request(desk: Desk) -> None:
    """The same request of the same caller is the same budget; another body is refused; another caller's is another."""
    request_id = uuid7()
    made = await desk.budgets.create(ADMIN, BUDGET, request_id)
    assert made == replace(BUDGET, budget_id=made.budget_id, create_time=NOW, update_time=NOW)
    desk.clock.advance(1)
    assert await desk.budgets.create(ADMIN, BUDGET, request_id) == made
    error = await refused(desk.budgets.create(ADMIN, replace(BUDGET, description=""), request_id))
    assert (error.reason, error.metadata["name"]) == (Reason.ALREADY_EXISTS, request_id)
    others = {
        made.budget_id,
        (await desk.budgets.create(OTHER_ADMIN, BUDGET, request_id)).budget_id,
        (await desk.budgets.create(OPERATOR, BUDGET, request_id)).budget_id,
        (await desk.budgets.create(ADMIN, BUDGET)).budget_id,
        (await desk.budgets.create(ADMIN, BUDGET)).budget_id,
    }
    assert len(others) == 5


async def test_a_budget_that_was_changed_is_found_by_its_request(desk: Desk) -> None:
    """A retry asks for what was asked for; that somebody changed it since is no conflict, another body still is."""
    request_id = uuid7()
    made = await desk.budgets.create(ADMIN, BUDGET, request_id)
    changed = await desk.budgets.update(replace(made, description="changed"))
    assert await desk.budgets.create(ADMIN, BUDGET, request_id) == changed
    error = await refused(desk.budgets.create(ADMIN, replace(BUDGET, description="changed"), request_id))
    assert error.reason is Reason.ALREADY_EXISTS


async def test_two_of_one_request_at_once(desk: Desk) -> None:
    """They make one budget and one price."""
    request_id = uuid7()
    budgets = await asyncio.gather(*(desk.budgets.create(ADMIN, BUDGET, request_id) for _ in range(8)))
    prices = await asyncio.gather(*(desk.prices.create(ADMIN, PRICE, request_id) for _ in range(8)))
    assert len(set(budgets)) == len(set(prices)) == 1
    assert len((await desk.store.load()).budgets) == len((await desk.store.load()).prices) == 1


async def test_a_budget_stays_its_subjects(desk: Desk) -> None:
    """Its rule and description are replaced; another scope or subject is refused."""
    made = await desk.budgets.create(ADMIN, BUDGET)
    desk.clock.advance(1)
    rule = replace(DAILY, limit=0, shadow=True)
    whole = replace(made, rule=rule, description="less")
    assert await desk.budgets.update(whole) == replace(whole, update_time=NOW + SECOND)
    limits = desk.keeper.current.limits(Principal("w1"))
    assert rule.limit_of(LimitScope.WORKSPACE, "w1") in limits
    bare = Budget(made.budget_id, LimitScope.CALLER, "", rule)
    assert (await desk.budgets.update(bare)).scope_id == "w1"
    assert await refused_field(desk.budgets.update(replace(whole, scope=LimitScope.KEY))) == "budget.scope"
    assert await refused_field(desk.budgets.update(replace(whole, scope_id="w2"))) == "budget.scope_id"
    assert await refused_field(desk.budgets.update(replace(whole, budget_id="x"))) == "budget.budget_id"
    assert (await refused(desk.budgets.update(replace(whole, budget_id=uuid7())))).reason is Reason.NOT_FOUND


async def test_an_address_has_one_form(desk: Desk) -> None:
    """However it is written, it is the same subject: in the budget, its update, and the list's filter."""
    wish = replace(BUDGET, scope=LimitScope.ADDRESS, scope_id="2001:DB8:0::1")
    made = await desk.budgets.create(ADMIN, wish)
    assert made.scope_id == "2001:db8::1"
    assert (await desk.budgets.update(replace(wish, budget_id=made.budget_id))).scope_id == "2001:db8::1"
    page = await desk.budgets.list_page(size=0, token="", scope=LimitScope.ADDRESS, scope_id="2001:db8:0:0::1")
    assert [budget.budget_id for budget in page.rows] == [made.budget_id]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"scope": LimitScope.CALLER}, "budget.scope"),
        ({"scope_id": ""}, "budget.scope_id"),
        ({"scope_id": "x" * 129}, "budget.scope_id"),
        ({"scope": LimitScope.ADDRESS}, "budget.scope_id"),
        ({"description": "x" * 201}, "budget.description"),
        ({"description": "\0"}, "budget.description"),
    ],
)
async def test_wrong_budgets_are_named(desk: Desk, changes: dict[str, Any], wrong: str) -> None:
    """Nothing of them is kept."""
    assert await refused_field(desk.budgets.create(ADMIN, replace(BUDGET, **changes))) == wrong
    assert (await desk.store.load()).budgets == ()


async def test_a_budget_of_a_tier_needs_the_tier(desk: Desk) -> None:
    """Of whichever layer; of none, it is not found."""
    wish = replace(BUDGET, scope=LimitScope.TIER)
    await desk.tiers.create(TIER)
    for name in ("pro", "fixed", "free"):
        assert (await desk.budgets.create(ADMIN, replace(wish, scope_id=name))).scope_id == name
    error = await refused(desk.budgets.create(ADMIN, replace(wish, scope_id="gold")))
    assert (error.reason, error.metadata) == (Reason.NOT_FOUND, {"resource": "tier", "name": "gold"})


async def test_ids_of_budgets(desk: Desk) -> None:
    """An id that is none is named; an unknown one is not found, and no error to delete."""
    assert await refused_field(desk.budgets.get("x")) == "budget_id"
    assert await refused_field(desk.budgets.delete("")) == "budget_id"
    assert (await refused(desk.budgets.get(uuid7()))).reason is Reason.NOT_FOUND
    await desk.budgets.delete(uuid7())


async def test_request_ids_are_uuids(desk: Desk) -> None:
    """In every call that changes something."""
    for call in (
        desk.tiers.create(TIER, "x"),
        desk.tiers.update(TIER, "x"),
        desk.tiers.delete("pro", "x"),
        desk.budgets.create(ADMIN, BUDGET, "x"),
        desk.budgets.update(BUDGET, "x"),
        desk.budgets.delete(uuid7(), "x"),
        desk.prices.create(ADMIN, PRICE, "x"),
        desk.prices.delete(uuid7(), "x"),
    ):
        assert await refused_field(call) == "request_id"


async def test_a_price_begins_two_seconds_ahead(desk: Desk) -> None:
    """Without a time as soon as that; earlier is refused; before it begins, nothing costs."""
    assert (
        await refused_field(desk.prices.create(ADMIN, replace(PRICE, effective_time=NOW + 2 * SECOND - 1)))
        == "price.effective_time"
    )
    desk.clock.advance(0.0000012)
    price = await desk.prices.create(ADMIN, PRICE)
    assert (price.effective_time, price.create_time) == (NOW + 1 + 2 * SECOND, NOW + 1)
    current = desk.keeper.current
    assert current.price("smollm2", "w1", price.effective_time) == price
    assert current.price("smollm2", "w1", price.effective_time - 1) is None


async def test_a_price_is_set_once_for_a_request(desk: Desk) -> None:
    """The same request is the same price, however late it comes again; another body is refused."""
    ids = uuid7(), uuid7()
    soon = await desk.prices.create(ADMIN, PRICE, ids[0])
    dated = replace(PRICE, effective_time=NOW + 10 * SECOND)
    later = await desk.prices.create(ADMIN, dated, ids[1])
    desk.clock.advance(60)
    assert await desk.prices.create(ADMIN, PRICE, ids[0]) == soon
    assert await desk.prices.create(ADMIN, dated, ids[1]) == later
    for wish, request_id in (
        (replace(PRICE, unit_prices=UnitPrices(1)), ids[0]),
        (replace(PRICE, workspace_id="w1"), ids[0]),
        (replace(dated, effective_time=NOW + 100 * SECOND), ids[1]),
    ):
        assert (await refused(desk.prices.create(ADMIN, wish, request_id))).reason is Reason.ALREADY_EXISTS


async def test_no_two_prices_begin_at_once(desk: Desk) -> None:
    """Of one model and workspace; another workspace's may."""
    wish = replace(PRICE, effective_time=NOW + 10 * SECOND)
    await desk.prices.create(ADMIN, wish)
    assert (await refused(desk.prices.create(ADMIN, wish))).reason is Reason.ALREADY_EXISTS
    await desk.prices.create(ADMIN, replace(wish, workspace_id="w1"))
    await desk.prices.create(ADMIN, replace(wish, effective_time=NOW + 10 * SECOND + 1))


async def test_a_price_that_has_begun_stays(desk: Desk) -> None:
    """Before that it can be deleted, and once more is no error; 2 seconds before it begins, it has begun for some."""
    wish = replace(PRICE, effective_time=NOW + 10 * SECOND)
    price, gone = (
        await desk.prices.create(ADMIN, wish),
        await desk.prices.create(ADMIN, replace(wish, workspace_id="w1")),
    )
    for _ in range(2):
        await desk.prices.delete(gone.price_id)
    assert desk.keeper.current.price("smollm2", "w1", NOW + 10 * SECOND) == price
    desk.clock.advance(8.000001)
    error = await refused(desk.prices.delete(price.price_id))
    assert (error.reason, error.metadata["name"]) == (Reason.FAILED_PRECONDITION, price.price_id)
    assert await refused_field(desk.prices.delete("x")) == "price_id"


@pytest.mark.parametrize(("ahead", "counts"), [(10 * SECOND, 10 * SECOND), (-10 * SECOND, 0), (None, 0)])
async def test_a_price_begins_by_the_later_clock(desk: Desk, ahead: int | None, counts: int) -> None:
    """The limiter's may be ahead, and is what usage is booked by; while it is away, ours alone tells."""
    dated = replace(PRICE, effective_time=NOW + 11 * SECOND)
    early = await desk.prices.create(ADMIN, dated)
    desk.limiter_ahead = ahead
    price = await desk.prices.create(ADMIN, PRICE)
    assert (price.effective_time, price.create_time) == (NOW + counts + 2 * SECOND, NOW)
    begun = desk.prices.delete(early.price_id)
    if counts:
        assert await refused_field(desk.prices.create(ADMIN, dated)) == "price.effective_time"
        assert (await refused(begun)).reason is Reason.FAILED_PRECONDITION
    else:
        await begun


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"model": ""}, "price.model"),
        ({"model": "x" * 513}, "price.model"),
        ({"model": "\0"}, "price.model"),
        ({"workspace_id": "x" * 65}, "price.workspace_id"),
        ({"unit_prices": UnitPrices(input_million=-1)}, "price.unit_prices.input_million"),
        ({"unit_prices": UnitPrices(cached_input_million=10**15 + 1)}, "price.unit_prices.cached_input_million"),
        ({"unit_prices": UnitPrices(output_million=2**63 - 1)}, "price.unit_prices.output_million"),
        ({"unit_prices": UnitPrices(request=-(2**63))}, "price.unit_prices.request"),
    ],
)
async def test_wrong_prices_are_named(desk: Desk, changes: dict[str, Any], wrong: str) -> None:
    """Nothing of them is kept."""
    assert await refused_field(desk.prices.create(ADMIN, replace(PRICE, **changes))) == wrong
    assert (await desk.store.load()).prices == ()


async def test_prices_of_others_are_left_out(desk: Desk) -> None:
    """Users and workspace admins see everybody's prices and their workspace's; administrators and services all."""
    for workspace_id in ("", "w1", "w2"):
        await desk.prices.create(ADMIN, replace(PRICE, workspace_id=workspace_id))

    async def seen(caller: Caller, **filters: str) -> set[str]:
        page = await desk.prices.list_page(caller, size=0, token="", **filters)
        return {price.workspace_id for price in page.rows}

    for role in (Role.USER, Role.WORKSPACE_ADMIN):
        assert await seen(Caller(principal=Principal("w1", role, key_id="k"))) == {"", "w1"}
        assert await seen(Caller(principal=Principal("w1", role)), workspace_id="w2") == set()
    assert await seen(ADMIN) == await seen(OPERATOR) == {"", "w1", "w2"}
    assert await seen(ADMIN, workspace_id="w2") == {"w2"}
    assert await seen(ADMIN, model="other") == set()
