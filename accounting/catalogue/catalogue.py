"""Everything an operator decided, at one moment: tiers, budgets, prices and credit. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
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


_CALLERS = 4_096  # whose limits are remembered


class Catalogue:
    """What applies to whom. Never changes: another one takes its place.

    Args:
        tiers: By name. Without one called `free`, callers of an undefined tier have no limits.
        credit: By workspace that pays in advance, the most that may ever be counted for it, in nano-units.
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
        rules = [one.scope for tier in self._tiers.values() for one in tier.limits]
        self._knows_addresses = LimitScope.ADDRESS in {*rules, *(scope for scope, _ in self._budgets)}
        # The same few callers ask again and again.
        self._limits = lru_cache(_CALLERS)(self._find_limits)

    def knows_tier(self, name: str) -> bool:
        """Whether somebody defined the tier."""
        return name in self._tiers

    def tier(self, name: str) -> Tier:
        """The tier that applies to callers of `name`: that of `free`, when nobody defined it."""
        return self._tiers.get(name) or self._tiers.get(FALLBACK_TIER) or Tier(FALLBACK_TIER)

    def rules(self, window: LimitWindow) -> frozenset[tuple[str, str, LimitRule]]:
        """The rules of tiers and budgets over a window, each with whose it is."""
        of_tiers = ((name, one.scope.value, one.rule) for name, tier in self._tiers.items() for one in tier.limits)
        of_budgets = ((one.scope_id, one.scope.value, one.rule) for many in self._budgets.values() for one in many)
        return frozenset(found for found in (*of_tiers, *of_budgets) if found[2].window is window)

    def limits(self, principal: Principal, client_address: str = "", model: str = "") -> tuple[Limit, ...]:
        """The limits of a request: of its tier, the budgets of everybody whom it counts for, and its workspace's credit.

        What limits a model limits its adapters, `<base model>:<adapter>`, too: together with it, beside limits of their own.
        """
        # Addresses are many: where none is limited, they tell nothing apart.
        return self._limits(principal, client_address if self._knows_addresses else "", model)

    def _find_limits(self, principal: Principal, client_address: str, model: str) -> tuple[Limit, ...]:
        whom = self._subjects(principal, client_address)
        caller, models = caller_scope(principal), ("", *_names(model))
        found = []
        for one in self.tier(principal.tier).limits:
            scope = caller if one.scope is LimitScope.CALLER else one.scope
            if scope in whom and one.rule.model in models:
                found.append(one.rule.limit_of(scope, whom[scope]))
        for budget in self._budgets_of(whom, principal.tier):
            if budget.rule.model in models:
                found.append(budget.rule.limit_of(budget.scope, budget.scope_id))
        credit = self._credit.get(principal.workspace_id)
        if credit is not None:
            found.append(credit_limit(principal.workspace_id, credit))
        return tuple(found)

    def counted(self, principal: Principal, model: str, window: LimitWindow) -> frozenset[Limit]:
        """What limits over a window count of a request, whichever tier its caller has by now.

        Neither height nor manner is part of that: two limits on the same thing count together, and here have a height of 0.
        """
        whom = self._subjects(principal)
        caller, models = caller_scope(principal), ("", *_names(model))
        of_tiers = [
            (caller if one.scope is LimitScope.CALLER else one.scope, one.rule)
            for tier in self._tiers.values()
            for one in tier.limits
        ]
        rules = [(scope, whom[scope], rule) for scope, rule in of_tiers if scope in whom]
        rules += [(one.scope, one.scope_id, one.rule) for one in self._budgets_of(whom, principal.tier)]
        return frozenset(
            Limit(scope, scope_id, rule.kind, window, 0, rule.model)
            for scope, scope_id, rule in rules
            if rule.window is window and rule.model in models
        )

    def _budgets_of(self, whom: Mapping[LimitScope, str], tier: str) -> list[Budget]:
        """The budgets of everybody whom a request counts for, and those of its tier by a name that nobody defined."""
        if not self._budgets:
            return []
        whose = dict.fromkeys((*whom.items(), (LimitScope.TIER, tier)))
        return [budget for one in whose for budget in self._budgets.get(one, ())]

    def _subjects(self, principal: Principal, client_address: str = "") -> dict[LimitScope, str]:
        """Who a request counts for; of a tier that nobody defined all those of the one that applies."""
        whom = subjects(principal, client_address)
        return whom | {LimitScope.TIER: self.tier(principal.tier).name} if principal.tier else whom

    def counts_tiers(self, window: LimitWindow) -> bool:
        """Whether a limit over the window counts for all callers of a tier together."""
        of_tiers = (
            one.rule.window for tier in self._tiers.values() for one in tier.limits if one.scope is LimitScope.TIER
        )
        budgets = (
            one.rule.window for (scope, _), many in self._budgets.items() if scope is LimitScope.TIER for one in many
        )
        return window in (*of_tiers, *budgets)

    def price(self, model: str, workspace_id: str, time: int) -> Price | None:
        """The price in force: the workspace's own, else everybody's; None when there is none.

        An adapter, `<base model>:<adapter>`, that nobody set a price for costs what its base model does.
        """
        for name in _names(model):
            for whose in (workspace_id, ""):
                history = self._prices.get((name, whose))
                price = history.at(time) if history else None
                if price is not None:
                    return price
        return None


def _names(model: str) -> tuple[str, ...]:
    """A model's name, and that of its base where it is an adapter, `<base model>:<adapter>`."""
    base, adapted, _ = model.rpartition(":")
    return (model, base) if adapted else (model,)


def credit_limit(workspace_id: str, credit: int) -> Limit:
    """What a workspace that pays in advance may ever use. Where it was given less than nothing, it is nothing."""
    return Limit(LimitScope.WORKSPACE, workspace_id, LimitKind.COST, LimitWindow.TOTAL, max(credit, 0), credit=True)
