"""Everything an operator decided, at one moment: tiers, budgets, prices and credit. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from accounting.limits import FALLBACK_TIER, Budget, LimitRule, Tier, caller_scope, subjects
from accounting.quota import Limit, LimitKind, LimitScope, LimitWindow
from naru.identity import Principal
from naru.pricing import UnitPrices


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs from a time on. Times in microseconds since the Unix epoch; `workspace_id` empty: for everybody."""

    price_id: str
    model: str
    workspace_id: str
    unit_prices: UnitPrices
    effective_time: int
    create_time: int = 0


@dataclass(frozen=True, slots=True)
class _History:
    """The prices of one model and workspace, in the order in which they begin."""

    prices: list[Price] = field(default_factory=list)

    def at(self, time: int) -> Price | None:
        index = bisect_right(self.prices, time, key=attrgetter("effective_time"))
        return self.prices[index - 1] if index else None


class Catalogue:
    """What applies to whom. Never changes: another one takes its place.

    Args:
        tiers: By name. Without one called `free`, callers of an undefined tier have no limits.
        credit: By workspace that pays in advance, the most it may ever have used: its credit and its overdraft, in nano-units.
    """

    def __init__(
        self,
        tiers: Mapping[str, Tier],
        budgets: Iterable[Budget] = (),
        prices: Iterable[Price] = (),
        credit: Mapping[str, int] | None = None,
    ) -> None:
        self._tiers = dict(tiers)
        self._credit = dict(credit or {})
        self._budgets: dict[tuple[LimitScope, str], list[Budget]] = {}
        for budget in budgets:
            self._budgets.setdefault((budget.scope, budget.scope_id), []).append(budget)
        self._prices: dict[tuple[str, str], _History] = {}
        for price in sorted(prices, key=attrgetter("effective_time")):
            self._prices.setdefault((price.model, price.workspace_id), _History()).prices.append(price)

    def knows_tier(self, name: str) -> bool:
        """Whether somebody defined the tier."""
        return name in self._tiers

    def tier(self, name: str) -> Tier:
        """The tier that applies to callers of `name`: that of `free`, when nobody defined it."""
        return self._tiers.get(name) or self._tiers.get(FALLBACK_TIER) or Tier(FALLBACK_TIER)

    def lifetime_rules(self) -> frozenset[tuple[str, str, LimitRule]]:
        """The rules of tiers and budgets that count for all time, each with whose it is."""
        of_tiers = ((name, one.scope.value, one.rule) for name, tier in self._tiers.items() for one in tier.limits)
        of_budgets = ((one.scope_id, one.scope.value, one.rule) for many in self._budgets.values() for one in many)
        return frozenset(found for found in (*of_tiers, *of_budgets) if found[2].window is LimitWindow.TOTAL)

    def limits(self, principal: Principal, client_address: str = "", model: str = "") -> tuple[Limit, ...]:
        """The limits of a request: of its tier, the budgets of everybody whom it counts for, and its workspace's credit."""
        whom = subjects(principal, client_address)
        caller = caller_scope(principal)
        found = []
        for one in self.tier(principal.tier).limits:
            scope = caller if one.scope is LimitScope.CALLER else one.scope
            if scope in whom and one.rule.model in ("", model):
                found.append(one.rule.limit_of(scope, whom[scope]))
        if self._budgets:
            for scope, scope_id in whom.items():
                for budget in self._budgets.get((scope, scope_id), ()):
                    if budget.rule.model in ("", model):
                        found.append(budget.rule.limit_of(scope, scope_id))
        credit = self._credit.get(principal.workspace_id)
        if credit is not None:
            found.append(credit_limit(principal.workspace_id, credit))
        return tuple(found)

    def price(self, model: str, workspace_id: str, time: int) -> Price | None:
        """The price in force: the workspace's own, else everybody's; None when there is none."""
        for whose in (workspace_id, ""):
            history = self._prices.get((model, whose))
            price = history.at(time) if history else None
            if price is not None:
                return price
        return None


def credit_limit(workspace_id: str, credit: int) -> Limit:
    """What a workspace that pays in advance may ever use. Where it was given less than nothing, it is nothing."""
    return Limit(LimitScope.WORKSPACE, workspace_id, LimitKind.COST, LimitWindow.TOTAL, max(credit, 0))
