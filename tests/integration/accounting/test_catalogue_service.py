"""TierService, BudgetService and PricingService over gRPC, by real servers over a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from accounting.limits import LimitRule
from accounting.quota import LimitKind, LimitScope, LimitWindow
from naru.api.accounting.v1 import budget_service_pb2, limit_pb2, price_pb2, tier_service_pb2
from naru.clock import SystemClock
from naru.convert import timestamp_to_proto
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.identity import Principal, Role, ServiceName
from naru.ids import uuid7
from naru.server import GrpcServer
from tests.integration.accounting.catalogue_harness import CatalogueService, Client, TierKeys, serving, tier_keys

DAILY = limit_pb2.LimitRule(
    kind=limit_pb2.LIMIT_KIND_COST,
    window=limit_pb2.LIMIT_WINDOW_DAY,
    limit=5_000_000_000,
    model="smollm2",
    soft_thresholds=[80, 95],
)
TIER = tier_service_pb2.Tier(
    name="pro",
    limits=[tier_service_pb2.TierLimit(scope=limit_pb2.LIMIT_SCOPE_WORKSPACE, rule=DAILY)],
    default_output_tokens=100,
)
BUDGET = budget_service_pb2.Budget(
    scope=limit_pb2.LIMIT_SCOPE_WORKSPACE, scope_id="w1", rule=DAILY, description="for the team"
)
UNITS = price_pb2.UnitPrices(input_million=100, cached_input_million=50, output_million=400, request=7)
PRICE = price_pb2.Price(model="smollm2", unit_prices=UNITS)


@dataclass
class World:
    """Two replicas over one database, and the authsvc that both ask."""

    one: CatalogueService
    two: CatalogueService
    keys: TierKeys
    authsvc: GrpcServer


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """Both replicas are up; the second one's keeper follows the database."""
    async with (
        tier_keys() as (keys, address, authsvc),
        serving(database, keys, address) as one,
        serving(database, keys, address) as two,
    ):
        following = asyncio.create_task(two.keeper.run())
        yield World(one, two, keys, authsvc)
        following.cancel()
        await asyncio.wait([following])


@pytest.fixture
def admin(world: World) -> Client:
    """An administrator at the first replica."""
    return world.one.as_owner()


async def refused(call: Any) -> NaruError:
    with pytest.raises(NaruError) as failure:
        await call
    return failure.value


async def refused_field(call: Any) -> str:
    error = await refused(call)
    assert error.reason is Reason.INVALID_ARGUMENT, error
    return error.metadata["field"]


def changed(message: Any, **fields: Any) -> Any:
    """The message with other fields."""
    made = type(message)()
    made.CopyFrom(message)
    for name, value in fields.items():
        if hasattr(value, "CopyFrom"):
            getattr(made, name).CopyFrom(value)
        else:
            setattr(made, name, value)
    return made


def ahead(seconds: float) -> Timestamp:
    """A time from now."""
    return timestamp_to_proto(SystemClock().time() + seconds)


async def test_a_tier_from_making_to_deleting(world: World, admin: Client) -> None:
    """What was sent comes back with times; it is in force here at once, listed, changed, and deleted."""
    made = (await admin.CreateTier(tier=TIER, request_id=uuid7())).tier
    assert made.HasField("create_time")
    assert made == changed(TIER, create_time=made.create_time, update_time=made.create_time)
    assert (await admin.GetTier(name="pro")).tier == made
    rule = LimitRule(LimitKind.COST, LimitWindow.DAY, 5_000_000_000, "smollm2", soft_thresholds=(80, 95))
    limits = world.one.keeper.current.limits(Principal("w1", tier="pro"), model="smollm2")
    assert limits == (rule.limit_of(LimitScope.WORKSPACE, "w1"),)
    first = await admin.ListTiers(page_size=3)
    rest = await admin.ListTiers(page_size=3, page_token=first.next_page_token)
    assert [tier.name for tier in (*first.tiers, *rest.tiers)] == ["fixed", "free", "pro", "standard", "unlimited"]
    assert rest.next_page_token == ""
    bare = (await admin.UpdateTier(tier=tier_service_pb2.Tier(name="pro"))).tier
    assert (list(bare.limits), bare.default_output_tokens, bare.create_time) == ([], 4_096, made.create_time)
    await admin.DeleteTier(name="pro")
    assert (await refused(admin.GetTier(name="pro"))).reason is Reason.NOT_FOUND
    await admin.DeleteTier(name="pro")


async def test_a_built_in_tier_comes_back(world: World, admin: Client) -> None:
    """Changed, it has a time; deleted, it is what it was, and has none."""
    before = (await admin.GetTier(name="free")).tier
    assert not before.HasField("create_time")
    await admin.UpdateTier(tier=tier_service_pb2.Tier(name="free"))
    assert world.one.keeper.current.limits(Principal("w1", tier="free")) == ()
    await admin.DeleteTier(name="free")
    assert (await admin.GetTier(name="free")).tier == before
    assert (await refused(admin.DeleteTier(name="fixed"))).reason is Reason.FAILED_PRECONDITION


async def test_a_tier_that_keys_have_stays(world: World, admin: Client) -> None:
    """Authsvc is asked for one key of the tier; while it is away nothing is deleted."""
    await admin.CreateTier(tier=TIER)
    world.keys.used.add("pro")
    assert (await refused(admin.DeleteTier(name="pro"))).reason is Reason.FAILED_PRECONDITION
    assert [(request.tier, request.page_size) for request in world.keys.asked] == [("pro", 1)]
    await world.authsvc.stop(0)
    error = await refused(admin.DeleteTier(name="pro"))
    assert (error.reason, error.metadata) == (Reason.SERVICE_UNAVAILABLE, {"service": "authsvc"})
    assert (await admin.GetTier(name="pro")).tier.name == "pro"


async def test_a_budget_from_making_to_deleting(world: World, admin: Client) -> None:
    """What was sent comes back with an id; it is listed by its subject, changed, and deleted."""
    made = (await admin.CreateBudget(budget=BUDGET)).budget
    assert made == changed(BUDGET, budget_id=made.budget_id, create_time=made.create_time, update_time=made.create_time)
    assert (await admin.GetBudget(budget_id=made.budget_id)).budget == made
    other = (await admin.CreateBudget(budget=changed(BUDGET, scope_id="w2"))).budget
    page = await admin.ListBudgets(page_size=1)
    last = await admin.ListBudgets(page_size=1, page_token=page.next_page_token)
    assert [*page.budgets, *last.budgets] == [made, other]
    assert last.next_page_token == ""
    scope = limit_pb2.LIMIT_SCOPE_WORKSPACE
    assert list((await admin.ListBudgets(scope=scope, scope_id="w2")).budgets) == [other]
    assert list((await admin.ListBudgets(scope=limit_pb2.LIMIT_SCOPE_KEY)).budgets) == []
    shadow = (await admin.UpdateBudget(budget=changed(made, rule=changed(DAILY, shadow=True)))).budget
    assert shadow.rule.shadow
    (limit, *_) = [one for one in world.one.keeper.current.limits(Principal("w1"), "", "smollm2") if one.shadow]
    assert limit.scope_id == "w1"
    await admin.DeleteBudget(budget_id=made.budget_id)
    assert (await refused(admin.GetBudget(budget_id=made.budget_id))).reason is Reason.NOT_FOUND


async def test_a_price_from_setting_to_deleting(world: World, admin: Client) -> None:
    """Without a time it begins in 2 seconds; another one of the moment is refused; later ones can be deleted."""
    soon = (await admin.CreatePrice(price=PRICE)).price
    assert soon == changed(
        PRICE, price_id=soon.price_id, effective_time=soon.effective_time, create_time=soon.create_time
    )
    assert soon.effective_time.ToMicroseconds() - soon.create_time.ToMicroseconds() == 2_000_000
    clash = changed(PRICE, effective_time=soon.effective_time, unit_prices=price_pb2.UnitPrices(request=1))
    assert await refused_field(admin.CreatePrice(price=clash)) == "price.effective_time"
    later = changed(PRICE, effective_time=ahead(60))
    dated = (await admin.CreatePrice(price=later)).price
    assert dated.effective_time == later.effective_time
    for units in (UNITS, price_pb2.UnitPrices(request=1)):
        error = await refused(admin.CreatePrice(price=changed(later, unit_prices=units)))
        assert error.reason is Reason.ALREADY_EXISTS
    assert list((await admin.ListPrices()).prices) == [dated, soon]
    assert (await refused(admin.DeletePrice(price_id=soon.price_id))).reason is Reason.FAILED_PRECONDITION
    await admin.DeletePrice(price_id=dated.price_id)
    assert list((await admin.ListPrices(model="smollm2")).prices) == [soon]


async def test_a_change_reaches_the_other_replica_within_a_second(world: World, admin: Client) -> None:
    """Of a tier, a budget and a price, seen by the second replica's keeper alone."""
    await admin.CreateTier(tier=TIER)
    await admin.CreateBudget(budget=changed(BUDGET, scope=limit_pb2.LIMIT_SCOPE_KEY, scope_id="k1"))
    price = (await admin.CreatePrice(price=PRICE)).price
    async with asyncio.timeout(20):
        while world.two.keeper.current.price("smollm2", "w1", price.effective_time.ToMicroseconds()) is None:
            await asyncio.sleep(0.01)
    limits = world.two.keeper.current.limits(Principal("w9", tier="pro", key_id="k1"), model="smollm2")
    assert {limit.scope_id for limit in limits} == {"w9", "k1"}
    await admin.DeleteTier(name="pro")
    async with asyncio.timeout(20):
        while world.two.keeper.current.knows_tier("pro"):
            await asyncio.sleep(0.01)


async def test_two_replicas_and_one_request(world: World, admin: Client) -> None:
    """The same request_id at both at once makes one budget and one price; with another body it is refused."""
    request_id, other = uuid7(), world.two.as_owner()
    price = changed(PRICE, effective_time=ahead(60))
    budgets = await asyncio.gather(
        *(who.CreateBudget(budget=BUDGET, request_id=request_id) for who in (admin, other) * 4)
    )
    prices = await asyncio.gather(*(who.CreatePrice(price=price, request_id=request_id) for who in (admin, other) * 4))
    assert list((await admin.ListBudgets()).budgets) == [budgets[0].budget]
    assert list((await admin.ListPrices()).prices) == [prices[0].price]
    assert all(one == budgets[0] for one in budgets)
    assert all(one == prices[0] for one in prices)
    for call in (
        other.CreateBudget(budget=changed(BUDGET, scope_id="w2"), request_id=request_id),
        other.CreatePrice(price=changed(price, model="other"), request_id=request_id),
    ):
        assert (await refused(call)).reason is Reason.ALREADY_EXISTS
    operator = world.one.as_service(ServiceName.OPERATOR)
    assert (await operator.CreateBudget(budget=BUDGET, request_id=request_id)).budget != budgets[0].budget


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": 2**63 - 1}, "limit"),
        ({"kind": 99}, "kind"),
        ({"kind": limit_pb2.LIMIT_KIND_UNSPECIFIED}, "kind"),
        ({"window": 99}, "window"),
        ({"window": limit_pb2.LIMIT_WINDOW_UNSPECIFIED}, "window"),
        ({"model": "\0"}, "model"),
    ],
)
async def test_wrong_rules_are_named(admin: Client, fields: dict[str, Any], field: str) -> None:
    """In tiers and budgets."""
    rule = changed(DAILY, **fields)
    tier = tier_service_pb2.Tier(name="pro", limits=[tier_service_pb2.TierLimit(rule=rule)])
    assert await refused_field(admin.CreateTier(tier=tier)) == f"tier.limits[0].rule.{field}"
    assert await refused_field(admin.UpdateTier(tier=tier)) == f"tier.limits[0].rule.{field}"
    assert await refused_field(admin.CreateBudget(budget=changed(BUDGET, rule=rule))) == f"budget.rule.{field}"


async def test_wrong_fields_are_named(admin: Client) -> None:
    """Scopes that nothing is known by, amounts that are negative or huge, times that are past or none, and pages."""
    scoped = tier_service_pb2.Tier(name="pro", limits=[tier_service_pb2.TierLimit(rule=DAILY, scope=9)])
    assert await refused_field(admin.CreateTier(tier=scoped)) == "tier.limits[0].scope"
    assert await refused_field(admin.CreateTier()) == "tier.name"
    twice = tier_service_pb2.Tier(name="pro", limits=[*TIER.limits, *TIER.limits])
    assert await refused_field(admin.CreateTier(tier=twice)) == "tier.limits[1]"
    for tokens in (-1, 2**62):
        tier = changed(TIER, default_output_tokens=tokens)
        assert await refused_field(admin.CreateTier(tier=tier)) == "tier.default_output_tokens"
    for scope in (9, limit_pb2.LIMIT_SCOPE_UNSPECIFIED):
        assert await refused_field(admin.CreateBudget(budget=changed(BUDGET, scope=scope))) == "budget.scope"
    assert await refused_field(admin.ListBudgets(scope=9)) == "scope"
    assert await refused_field(admin.ListBudgets(scope_id="\0")) == "scope_id"
    assert await refused_field(admin.CreateBudget(budget=BUDGET, request_id="\0")) == "request_id"
    for amount in (-1, 10**15 + 1, 2**63 - 1):
        price = changed(PRICE, unit_prices=price_pb2.UnitPrices(output_million=amount))
        assert await refused_field(admin.CreatePrice(price=price)) == "price.unit_prices.output_million"
    for time in (Timestamp(), ahead(1), Timestamp(seconds=-5), Timestamp(seconds=2**62), Timestamp(nanos=-1)):
        price = changed(PRICE, effective_time=time)
        assert await refused_field(admin.CreatePrice(price=price)) == "price.effective_time"
    for call in (admin.ListTiers, admin.ListBudgets, admin.ListPrices):
        assert await refused_field(call(page_size=-1)) == "page_size"
        assert await refused_field(call(page_token="x")) == "page_token"
    for call in (admin.GetBudget, admin.DeleteBudget):
        assert await refused_field(call(budget_id="\0")) == "budget_id"
    assert await refused_field(admin.DeletePrice(price_id="\0")) == "price_id"


async def test_the_operator_may_what_administrators_may(world: World) -> None:
    """By its service token, which belongs to no workspace."""
    operator = world.one.as_service(ServiceName.OPERATOR)
    await operator.CreateTier(tier=TIER)
    made = (await operator.CreateBudget(budget=BUDGET)).budget
    await operator.CreatePrice(price=changed(PRICE, workspace_id="w7"))
    assert list((await operator.ListBudgets()).budgets) == [made]
    assert [price.workspace_id for price in (await operator.ListPrices()).prices] == ["w7"]


@pytest.mark.parametrize("role", [Role.USER, Role.WORKSPACE_ADMIN])
async def test_users_see_tiers_and_their_prices(world: World, admin: Client, role: Role) -> None:
    """They see every tier, and prices for everybody and for their workspace; they change nothing and see no budgets."""
    for workspace_id in ("", "w1", "w2"):
        await admin.CreatePrice(price=changed(PRICE, workspace_id=workspace_id))
    user = world.one.as_owner(role)
    assert len((await user.ListTiers()).tiers) == 4
    assert (await user.GetTier(name="free")).tier.name == "free"
    assert {price.workspace_id for price in (await user.ListPrices()).prices} == {"", "w1"}
    assert list((await user.ListPrices(workspace_id="w2")).prices) == []
    for call in (
        user.CreateTier(tier=TIER),
        user.UpdateTier(tier=TIER),
        user.DeleteTier(name="free"),
        user.CreateBudget(budget=BUDGET),
        user.ListBudgets(),
        user.CreatePrice(price=PRICE),
        user.DeletePrice(price_id=uuid7()),
    ):
        assert (await refused(call)).reason is Reason.PERMISSION_DENIED
