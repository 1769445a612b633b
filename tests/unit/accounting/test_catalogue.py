"""Which limits and prices apply to whom."""

from __future__ import annotations

import pytest

from accounting.catalogue.catalogue import Catalogue, Price
from accounting.catalogue.tier_file import BUILT_IN
from accounting.limits import Budget, LimitRule, Tier, TierLimit, check_rule, check_subject, check_tier
from accounting.quota import Limit, LimitKind, LimitScope, LimitWindow
from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.pricing import UnitPrices

REQUESTS = LimitRule(LimitKind.REQUESTS, LimitWindow.MINUTE, 3)
COST = LimitRule(LimitKind.COST, LimitWindow.MONTH, 5_000_000_000)
SOMEBODY = Principal("ws", tier="free", key_id="k", user_id="u")


@pytest.mark.parametrize(("tier", "minute", "hour", "concurrency"), [("free", 10, 100, 4), ("standard", 60, 1_000, 16)])
def test_built_in_tiers(tier: str, minute: int, hour: int, concurrency: int) -> None:
    """They limit requests and what is in flight, for the key."""
    assert Catalogue(BUILT_IN).limits(Principal("ws", tier=tier, key_id="k")) == (
        Limit(LimitScope.KEY, "k", LimitKind.REQUESTS, LimitWindow.MINUTE, minute),
        Limit(LimitScope.KEY, "k", LimitKind.REQUESTS, LimitWindow.HOUR, hour),
        Limit(LimitScope.KEY, "k", LimitKind.CONCURRENCY, LimitWindow.NONE, concurrency),
    )


def test_unlimited_has_no_limits() -> None:
    """Nothing applies."""
    assert Catalogue(BUILT_IN).limits(Principal("ws", tier="unlimited", key_id="k")) == ()


@pytest.mark.parametrize(
    ("principal", "whose"),
    [
        (SOMEBODY, (LimitScope.KEY, "k")),
        (Principal("ws", user_id="u"), (LimitScope.USER, "u")),
        (Principal("ws", service_account="dev-team"), (LimitScope.WORKSPACE, "ws")),
    ],
)
def test_whom_a_tiers_limits_count_for(principal: Principal, whose: tuple[LimitScope, str]) -> None:
    """The key, else the user, else the workspace, unless the tier says who."""
    assert {(limit.scope, limit.scope_id) for limit in Catalogue(BUILT_IN).limits(principal)} == {whose}


def test_an_unknown_tier_is_free() -> None:
    """A name with a typing error does not open the doors."""
    catalogue = Catalogue(BUILT_IN)
    assert (catalogue.tier("gold").name, catalogue.knows_tier("gold")) == ("free", False)


def test_an_unknown_tier_shares_what_all_of_free_share() -> None:
    """Its callers are callers of `free`: also for limits of all of them together, by a tier or a budget."""
    together = Tier("free", (TierLimit(REQUESTS, LimitScope.TIER),))
    catalogue = Catalogue({"free": together}, [Budget("b", LimitScope.TIER, "free", COST)])
    mistyped = Principal("ws", tier="fre", key_id="k")
    assert catalogue.limits(mistyped) == catalogue.limits(Principal("ws", tier="free", key_id="k"))
    for window in (LimitWindow.MINUTE, LimitWindow.MONTH):
        assert {one.scope_id for one in catalogue.counted(mistyped, "m", window)} == {"free"}


def test_a_budget_outlives_its_tier() -> None:
    """Made for a tier by name, it goes on when nobody defines the tier any more, beside those of `free`."""
    catalogue = Catalogue(BUILT_IN, [Budget(name, LimitScope.TIER, name, COST) for name in ("gold", "free", "other")])
    principal = Principal("ws", tier="gold", key_id="k")
    for limits in (catalogue.limits(principal), catalogue.counted(principal, "m", LimitWindow.MONTH)):
        assert {one.scope_id for one in limits if one.window is LimitWindow.MONTH} == {"free", "gold"}


@pytest.mark.parametrize(
    ("scope", "scope_id"),
    [
        (LimitScope.KEY, "k"),
        (LimitScope.USER, "u"),
        (LimitScope.WORKSPACE, "ws"),
        (LimitScope.ADDRESS, "192.0.2.1"),
        (LimitScope.TIER, "free"),
    ],
)
def test_every_scope(scope: LimitScope, scope_id: str) -> None:
    """A limit of a tier and a budget apply to whoever is in their scope, and to nobody else."""
    of_tier = Catalogue({"free": Tier("free", (TierLimit(REQUESTS, scope),))})
    budgets = [Budget("b", scope, scope_id, COST), Budget("c", scope, "other", COST)]
    of_budget = Catalogue({"free": Tier("free")}, budgets)
    assert of_tier.limits(SOMEBODY, "192.0.2.1") == (REQUESTS.limit_of(scope, scope_id),)
    assert of_budget.limits(SOMEBODY, "192.0.2.1") == (COST.limit_of(scope, scope_id),)


def test_nobody_in_a_scope() -> None:
    """A limit for each user does not apply to who has none, nor one for addresses where none is known."""
    limits = tuple(TierLimit(REQUESTS, scope) for scope in (LimitScope.USER, LimitScope.ADDRESS))
    assert Catalogue({"free": Tier("free", limits)}).limits(Principal("ws", key_id="k")) == ()


def test_limits_of_a_model() -> None:
    """They apply to requests for it, and so do those of all models."""
    rule = LimitRule(LimitKind.REQUESTS, LimitWindow.DAY, 1, model="large")
    catalogue = Catalogue({"free": Tier("free", (TierLimit(rule), TierLimit(REQUESTS)))})
    assert [limit.model for limit in catalogue.limits(SOMEBODY, model="large")] == ["large", ""]
    assert [limit.model for limit in catalogue.limits(SOMEBODY, model="small")] == [""]


def price(effective_time: int, workspace_id: str = "", model: str = "m") -> Price:
    """A price that says when it begins."""
    return Price(f"{workspace_id}{effective_time}", model, workspace_id, UnitPrices(effective_time), effective_time)


@pytest.mark.parametrize(
    ("workspace_id", "time", "price_id"),
    [("ws", 9, None), ("ws", 10, "10"), ("ws", 29, "20"), ("ws", 30, "ws30"), ("other", 30, "20"), ("ws", 99, "ws30")],
)
def test_the_price_in_force(workspace_id: str, time: int, price_id: str | None) -> None:
    """The workspace's own from its beginning on, else everybody's; nothing before the first."""
    catalogue = Catalogue({}, prices=[price(30, "ws"), price(20), price(10), price(5, model="n")])
    found = catalogue.price("m", workspace_id, time)
    assert (found.price_id if found else None) == price_id


@pytest.mark.parametrize(
    ("model", "workspace_id", "price_id"),
    [
        ("m:french", "", "10"),
        ("m:french", "ws", "ws30"),
        ("m:dear", "", "20"),
        ("m:dear", "ws", "20"),
        ("org/m:v1:french", "", "5"),
        ("other:french", "", None),
        (":m", "", None),
    ],
)
def test_an_adapter_costs_what_its_base_does(model: str, workspace_id: str, price_id: str | None) -> None:
    """Unless it has a price of its own."""
    prices = [price(10), price(30, "ws"), price(20, model="m:dear"), price(5, model="org/m:v1")]
    found = Catalogue({}, prices=prices).price(model, workspace_id, 100)
    assert (found.price_id if found else None) == price_id


def test_limits_of_a_model_count_its_adapters() -> None:
    """Together with it: the same limit, beside those of the adapter alone; also when what was used is counted again."""
    hour = LimitWindow.HOUR
    of_base, of_adapter, of_other = (LimitRule(LimitKind.REQUESTS, hour, 9, model=name) for name in ("m", "m:a", "n"))
    tier = Tier("free", (TierLimit(of_base), TierLimit(of_adapter), TierLimit(of_other)))
    budget = Budget("b", LimitScope.USER, "u", LimitRule(LimitKind.COST, hour, 5, model="m"))
    catalogue = Catalogue({"free": tier}, budgets=[budget])

    def models(served: str) -> list[tuple[LimitKind, str]]:
        return [(limit.kind, limit.model) for limit in catalogue.limits(SOMEBODY, "", served)]

    assert models("m:a") == [(LimitKind.REQUESTS, "m"), (LimitKind.REQUESTS, "m:a"), (LimitKind.COST, "m")]
    assert models("m:b") == models("m") == [(LimitKind.REQUESTS, "m"), (LimitKind.COST, "m")]
    assert models("mm:a") == models("") == []
    assert catalogue.limits(SOMEBODY, "", "m:b") == catalogue.limits(SOMEBODY, "", "m")
    assert {limit.model for limit in catalogue.counted(SOMEBODY, "m:a", hour)} == {"m", "m:a"}


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (LimitRule(LimitKind.CONCURRENCY, LimitWindow.HOUR, 1), "rule.window"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.NONE, 1), "rule.window"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, -1), "rule.limit"),
        (LimitRule(LimitKind.COST, LimitWindow.HOUR, 2**53), "rule.limit"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, 1, model="x" * 513), "rule.model"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, 1, model="a\0b"), "rule.model"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, 1, soft_thresholds=(0,)), "rule.soft_thresholds"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, 1, soft_thresholds=(101,)), "rule.soft_thresholds"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, 1, soft_thresholds=(5, 5)), "rule.soft_thresholds"),
        (LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, 1, soft_thresholds=(*range(1, 10),)), "rule.soft_thresholds"),
    ],
)
def test_wrong_rules(rule: LimitRule, field: str) -> None:
    """The error names the field."""
    with pytest.raises(NaruError) as raised:
        check_rule(rule, "rule")
    assert (raised.value.reason, raised.value.metadata) == (Reason.INVALID_ARGUMENT, {"field": field})


def test_a_tier_has_one_limit_of_a_kind() -> None:
    """Two for the same scope, kind, window and model would hide each other."""
    with pytest.raises(NaruError) as raised:
        check_tier(Tier("t", (TierLimit(REQUESTS), TierLimit(REQUESTS))), "tier")
    assert raised.value.metadata == {"field": "tier.limits[1]"}
    check_tier(Tier("t", (TierLimit(REQUESTS), TierLimit(REQUESTS, LimitScope.USER))), "tier")


def test_subjects() -> None:
    """An address has one form; a subject has a scope and an id."""
    assert check_subject(LimitScope.ADDRESS, "2001:DB8:0::1", "budget") == "2001:db8::1"
    assert check_subject(LimitScope.KEY, "abc", "budget") == "abc"
    for scope, scope_id, field in (
        (LimitScope.CALLER, "abc", "budget.scope"),
        (LimitScope.KEY, "", "budget.scope_id"),
        (LimitScope.ADDRESS, "somewhere", "budget.scope_id"),
    ):
        with pytest.raises(NaruError) as raised:
            check_subject(scope, scope_id, "budget")
        assert raised.value.metadata == {"field": field}
