"""Making, changing and deleting budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container
from dataclasses import astuple, replace

from accounting import checks
from accounting.catalogue.management import (
    MICROS,
    Page,
    Refresh,
    check_id,
    check_request_id,
    other_request,
    page_of,
    requested_id,
)
from accounting.catalogue.store import CatalogueStore
from accounting.catalogue.tier_file import BUILT_IN
from accounting.limits import Budget, check_rule, check_subject
from accounting.quota import LimitScope
from naru.clock import Clock
from naru.errors import invalid_argument, not_found
from naru.identity import Caller
from naru.paging import page_size, read_token

DESCRIPTION_CHARACTERS_MAX = 200
SCOPE_ID_CHARACTERS_MAX = 128


class BudgetManager:
    """Decides about budgets.

    Args:
        store: Where budgets are kept.
        file_tiers: Names of the tiers of the configuration's file.
        refresh: Brings a change into force on this process.
        clock: Tells the time.
        new_id: Source of ids.
    """

    def __init__(
        self,
        *,
        store: CatalogueStore,
        file_tiers: Container[str],
        refresh: Refresh,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._file_tiers = file_tiers
        self._refresh = refresh
        self._clock = clock
        self._new_id = new_id

    async def create(self, caller: Caller, wish: Budget, request_id: str = "") -> Budget:
        """Makes a budget; the same request again returns the one made before, as it is now. Id and times are set here.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; NOT_FOUND for a tier that is not there; ALREADY_EXISTS for a request
                id used with another budget; SERVICE_UNAVAILABLE.
        """
        check_request_id(request_id)
        scope_id = check_subject(wish.scope, wish.scope_id, "budget")
        _check_content(wish)
        now = round(self._clock.time() * MICROS)
        budget_id = requested_id("budget", caller, request_id, self._new_id)
        wish = replace(wish, budget_id=budget_id, scope_id=scope_id)
        budget = replace(wish, create_time=now, update_time=now, wish=_digest(wish))
        stored, added = await self._store.add_budget(
            budget,
            needs_tier=wish.scope is LimitScope.TIER and scope_id not in BUILT_IN and scope_id not in self._file_tiers,
        )
        if not added and stored.wish != budget.wish:
            raise other_request("budget", request_id)
        await self._refresh()
        return stored

    async def get(self, budget_id: str) -> Budget:
        """The budget. Raises NaruError INVALID_ARGUMENT for what is no id, NOT_FOUND, or SERVICE_UNAVAILABLE."""
        check_id("budget_id", budget_id)
        budget = await self._store.budget(budget_id)
        if budget is None:
            raise not_found("budget", budget_id)
        return budget

    async def list_page(
        self, *, size: int, token: str, scope: LimitScope | None = None, scope_id: str = ""
    ) -> Page[Budget]:
        """One page of budgets, oldest first: of all, or of one kind of subject, or of the subjects with an id.

        Raises NaruError INVALID_ARGUMENT for a negative size or a token of another list; SERVICE_UNAVAILABLE.
        """
        size = page_size(size)
        checks.text("scope_id", scope_id, SCOPE_ID_CHARACTERS_MAX)
        if scope is LimitScope.ADDRESS:
            scope_id = checks.address(scope_id) or scope_id
        filters = (scope, scope_id)
        after = read_token(filters, token, (int, str))
        budgets = await self._store.budgets(scope=scope, scope_id=scope_id, after=after, limit=size + 1)
        return page_of(budgets, size, filters, lambda budget: (budget.create_time, budget.budget_id))

    async def update(self, wish: Budget, request_id: str = "") -> Budget:
        """Replaces what a budget allows and what it is for. Scope CALLER and an empty scope_id stand for those it has.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; NOT_FOUND; SERVICE_UNAVAILABLE.
        """
        check_request_id(request_id)
        check_id("budget.budget_id", wish.budget_id)
        _check_content(wish)
        now = round(self._clock.time() * MICROS)

        def change(found: Budget) -> Budget:
            scope_id = wish.scope_id
            if found.scope is LimitScope.ADDRESS:
                scope_id = checks.address(scope_id) or scope_id
            if wish.scope not in (LimitScope.CALLER, found.scope):
                raise invalid_argument("budget.scope", f"This budget is one of a {found.scope}, which cannot change.")
            if scope_id not in ("", found.scope_id):
                raise invalid_argument("budget.scope_id", "Whose budget it is cannot change.")
            return replace(found, rule=wish.rule, description=wish.description, update_time=now)

        changed = await self._store.change_budget(wish.budget_id, change)
        await self._refresh()
        return changed

    async def delete(self, budget_id: str, request_id: str = "") -> None:
        """Deletes a budget. One that is not there is no error. Raises NaruError INVALID_ARGUMENT or SERVICE_UNAVAILABLE."""
        check_request_id(request_id)
        check_id("budget_id", budget_id)
        await self._store.delete_budget(budget_id)
        await self._refresh()


def _digest(wish: Budget) -> str:
    """What a request asked for: the budget may be another one by the time that it comes again."""
    asked = (wish.scope.value, wish.scope_id, astuple(wish.rule), wish.description)
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _check_content(budget: Budget) -> None:
    check_rule(budget.rule, "budget.rule")
    checks.text("budget.description", budget.description, DESCRIPTION_CHARACTERS_MAX)
