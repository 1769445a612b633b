"""The SQL of tiers, budgets and prices, and of the revision that tells when one of them changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.catalogue.catalogue import Price
from accounting.limits import Budget, LimitRule, Tier, TierLimit
from accounting.quota import LimitKind, LimitScope, LimitWindow
from accounting.tables import budgets, catalogue_revision, ledger_accounts, prices, tiers
from naru.database import Database
from naru.errors import NaruError, Reason, not_found
from naru.pricing import UnitPrices


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is kept, at one revision.

    Attributes:
        credit: By workspace that pays in advance, the most that may ever be counted for it.
    """

    revision: int
    tiers: tuple[Tier, ...]
    budgets: tuple[Budget, ...]
    prices: tuple[Price, ...]
    credit: Mapping[str, int] = field(default_factory=dict)


class CatalogueStore:
    """Keeps tiers, budgets and prices. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away.

    What changes something takes the lock of the revision first, so that changes come one after the other, and counts the
    revision up in its transaction. What finds nothing to change leaves the revision as it was.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def revision(self) -> int:
        """A number that is another one after each change."""
        ((revision,),) = await self._database.read_rows(sa.select(catalogue_revision.c.revision))
        return int(revision)

    async def load(self) -> Snapshot:
        """Everything, as it was at one moment."""
        async with self._database.reading() as connection:
            if self._database.is_postgresql:  # by default each of its statements would see a moment of its own
                _ = await connection.execution_options(isolation_level="REPEATABLE READ")
            revision = (await connection.execute(sa.select(catalogue_revision.c.revision))).scalar_one()
            return Snapshot(
                int(revision),
                tuple(_to_tier(row) for row in await connection.execute(sa.select(tiers))),
                tuple(_to_budget(row) for row in await connection.execute(sa.select(budgets).order_by(*_BUDGET_ORDER))),
                tuple(_to_price(row) for row in await connection.execute(sa.select(prices))),
                await _credit(connection),
            )

    async def tiers(self) -> list[Tier]:
        """Every tier that was made or changed."""
        async with self._database.reading() as connection:
            return [_to_tier(row) for row in await connection.execute(sa.select(tiers))]

    async def tier(self, name: str) -> Tier | None:
        """The tier, if it was made or changed."""
        async with self._database.reading() as connection:
            return await _tier(connection, name)

    async def add_tier(self, tier: Tier) -> tuple[Tier, bool]:
        """Adds the tier unless there is one of its name. Returns the one that is there now, and whether it was added."""
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            found = await _tier(connection, tier.name)
            if found is not None:
                return found, False
            await connection.execute(sa.insert(tiers).values(_from_tier(tier)))
            await count_change(connection)
        return tier, True

    async def put_tier(self, tier: Tier, *, must_exist: bool) -> Tier:
        """Replaces the tier of this name, whose time of creation stays, or adds it where there is none.

        Raises NaruError NOT_FOUND where there is none and it must exist.
        """
        columns = _from_tier(tier)
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            found = await _tier(connection, tier.name)
            if found is None and must_exist:
                raise not_found("tier", tier.name)
            if found is None:
                await connection.execute(sa.insert(tiers).values(columns))
            else:
                columns["create_time"] = found.create_time
                await connection.execute(sa.update(tiers).where(tiers.c.name == tier.name).values(columns))
            await count_change(connection)
            stored = await _tier(connection, tier.name)
        assert stored is not None  # noqa: S101 -- it was written in this transaction
        return stored

    async def delete_tier(self, name: str, *, unless_budgeted: bool) -> bool:
        """Deletes the tier; False when there was none.

        Raises NaruError FAILED_PRECONDITION when a budget is for it, with `unless_budgeted`.
        """
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            if unless_budgeted and await _is_budgeted(connection, name):
                raise NaruError(
                    Reason.FAILED_PRECONDITION,
                    f"The tier {name!r} has a budget: delete that first.",
                    metadata={"resource": "tier", "name": name},
                )
            return await _delete(connection, tiers, tiers.c.name == name)

    async def budget(self, budget_id: str) -> Budget | None:
        """The budget."""
        async with self._database.reading() as connection:
            return await _budget(connection, budget_id)

    async def budgets(
        self, *, scope: LimitScope | None = None, scope_id: str = "", after: tuple[Any, ...] | None, limit: int
    ) -> list[Budget]:
        """At most `limit` budgets, oldest first, after the one of this (create_time, budget_id)."""
        query = sa.select(budgets).order_by(*_BUDGET_ORDER).limit(limit)
        if scope is not None:
            query = query.where(budgets.c.scope == scope.value)
        if scope_id:
            query = query.where(budgets.c.scope_id == scope_id)
        if after is not None:
            query = query.where(sa.tuple_(*_BUDGET_ORDER) > sa.tuple_(*map(sa.literal, after)))
        async with self._database.reading() as connection:
            return [_to_budget(row) for row in await connection.execute(query)]

    async def add_budget(self, budget: Budget, *, needs_tier: bool) -> tuple[Budget, bool]:
        """Adds the budget unless there is one of its id. Returns the one that is there now, and whether it was added.

        Raises NaruError NOT_FOUND when the tier that it is for has no row here, with `needs_tier`.
        """
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            found = await _budget(connection, budget.budget_id)
            if found is not None:
                return found, False
            if needs_tier and await _tier(connection, budget.scope_id) is None:
                raise not_found("tier", budget.scope_id)
            await connection.execute(sa.insert(budgets).values(_from_budget(budget)))
            await count_change(connection)
        return budget, True

    async def change_budget(self, budget_id: str, change: Callable[[Budget], Budget]) -> Budget:
        """Replaces the budget by what `change` makes of it, and returns that. Raises NaruError NOT_FOUND."""
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            found = await _budget(connection, budget_id)
            if found is None:
                raise not_found("budget", budget_id)
            changed = change(found)
            await connection.execute(
                sa.update(budgets).where(budgets.c.budget_id == budget_id).values(_from_budget(changed))
            )
            await count_change(connection)
        return changed

    async def delete_budget(self, budget_id: str) -> bool:
        """Deletes the budget; False when there was none."""
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            return await _delete(connection, budgets, budgets.c.budget_id == budget_id)

    async def prices(
        self,
        *,
        model: str = "",
        workspace_id: str = "",
        visible_to: str | None = None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> list[Price]:
        """At most `limit` prices, those that begin last first, after the one of this (effective_time, price_id).

        With `visible_to`, those of other workspaces than this are left out.
        """
        query = sa.select(prices).order_by(*(column.desc() for column in _PRICE_ORDER)).limit(limit)
        if model:
            query = query.where(prices.c.model == model)
        if workspace_id:
            query = query.where(prices.c.workspace_id == workspace_id)
        if visible_to is not None:
            query = query.where(prices.c.workspace_id.in_(["", visible_to]))
        if after is not None:
            query = query.where(sa.tuple_(*_PRICE_ORDER) < sa.tuple_(*map(sa.literal, after)))
        async with self._database.reading() as connection:
            return [_to_price(row) for row in await connection.execute(query)]

    async def add_price(self, price_id: str, make: Callable[[], Price]) -> tuple[Price, bool]:
        """Adds what `make` makes unless there is a price of this id.

        `make` is asked once no other change can come in between, so that it can tell the time of it; it may raise.
        Returns the price that is there now, and whether it was added.

        Raises NaruError ALREADY_EXISTS when another one of the model and workspace begins at the same time.
        """
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            found = await _price(connection, prices.c.price_id == price_id)
            if found is not None:
                return found, False
            price = make()
            clash = sa.and_(
                prices.c.model == price.model,
                prices.c.workspace_id == price.workspace_id,
                prices.c.effective_time == price.effective_time,
            )
            if await _price(connection, clash) is not None:
                raise NaruError(
                    Reason.ALREADY_EXISTS,
                    "Another price of this model and workspace begins at the same time.",
                    metadata={"resource": "price", "name": price.model},
                )
            await connection.execute(sa.insert(prices).values(_from_price(price)))
            await count_change(connection)
        return price, True

    async def delete_price(self, price_id: str, check: Callable[[Price], None]) -> bool:
        """Deletes the price unless `check`, which is asked once nothing can come in between, raises; False without one."""
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            found = await _price(connection, prices.c.price_id == price_id)
            if found is None:
                return False
            check(found)
            return await _delete(connection, prices, prices.c.price_id == price_id)


_BUDGET_ORDER = (budgets.c.create_time, budgets.c.budget_id)
_PRICE_ORDER = (prices.c.effective_time, prices.c.price_id)


async def lock_catalogue(connection: AsyncConnection) -> None:
    """Waits for other changes to end. On SQLite, beginning to write has done so already."""
    await connection.execute(sa.select(catalogue_revision.c.revision).with_for_update())


async def count_change(connection: AsyncConnection) -> None:
    """Lets every process load the catalogue anew. The catalogue must be locked."""
    await connection.execute(sa.update(catalogue_revision).values(revision=catalogue_revision.c.revision + 1))


async def _credit(connection: AsyncConnection) -> dict[str, int]:
    accounts = ledger_accounts.c
    allowance = (accounts.credited + accounts.overdraft + accounts.lowered).label("allowance")
    query = sa.select(accounts.workspace_id, allowance).where(accounts.overdraft.is_not(None))
    return {row.workspace_id: row.allowance for row in await connection.execute(query)}


async def _delete(connection: AsyncConnection, table: sa.Table, which: sa.ColumnElement[bool]) -> bool:
    deleted = (await connection.execute(sa.delete(table).where(which))).rowcount > 0
    if deleted:
        await count_change(connection)
    return deleted


async def _tier(connection: AsyncConnection, name: str) -> Tier | None:
    row = (await connection.execute(sa.select(tiers).where(tiers.c.name == name))).one_or_none()
    return None if row is None else _to_tier(row)


async def _budget(connection: AsyncConnection, budget_id: str) -> Budget | None:
    row = (await connection.execute(sa.select(budgets).where(budgets.c.budget_id == budget_id))).one_or_none()
    return None if row is None else _to_budget(row)


async def _is_budgeted(connection: AsyncConnection, tier: str) -> bool:
    theirs = sa.and_(budgets.c.scope == LimitScope.TIER.value, budgets.c.scope_id == tier)
    return bool((await connection.execute(sa.select(sa.exists().where(theirs)))).scalar())


async def _price(connection: AsyncConnection, which: sa.ColumnElement[bool]) -> Price | None:
    row = (await connection.execute(sa.select(prices).where(which))).one_or_none()
    return None if row is None else _to_price(row)


def _from_tier(tier: Tier) -> dict[str, Any]:
    limits = [
        {
            "scope": one.scope.value,
            "kind": one.rule.kind.value,
            "window": one.rule.window.value,
            "limit": one.rule.limit,
            "model": one.rule.model,
            "shadow": one.rule.shadow,
            "soft_thresholds": one.rule.soft_thresholds,
        }
        for one in tier.limits
    ]
    return {
        "name": tier.name,
        "limits": json.dumps(limits),
        "default_output_tokens": tier.default_output_tokens,
        "create_time": tier.create_time,
        "update_time": tier.update_time,
    }


def _to_tier(row: sa.Row[Any]) -> Tier:
    limits = tuple(
        TierLimit(
            LimitRule(
                LimitKind(one["kind"]),
                LimitWindow(one["window"]),
                one["limit"],
                one["model"],
                one["shadow"],
                tuple(one["soft_thresholds"]),
            ),
            LimitScope(one["scope"]),
        )
        for one in json.loads(row.limits)
    )
    return Tier(row.name, limits, row.default_output_tokens, row.create_time, row.update_time)


def _from_budget(budget: Budget) -> dict[str, Any]:
    rule = budget.rule
    return {
        "budget_id": budget.budget_id,
        "scope": budget.scope.value,
        "scope_id": budget.scope_id,
        "kind": rule.kind.value,
        "window": rule.window.value,
        "limit_amount": rule.limit,
        "model": rule.model,
        "shadow": rule.shadow,
        "soft_thresholds": json.dumps(rule.soft_thresholds),
        "description": budget.description,
        "create_time": budget.create_time,
        "update_time": budget.update_time,
        "wish": budget.wish,
    }


def _to_budget(row: sa.Row[Any]) -> Budget:
    return Budget(
        row.budget_id,
        LimitScope(row.scope),
        row.scope_id,
        LimitRule(
            LimitKind(row.kind),
            LimitWindow(row.window),
            row.limit_amount,
            row.model,
            row.shadow,
            tuple(json.loads(row.soft_thresholds)),
        ),
        row.description,
        row.create_time,
        row.update_time,
        row.wish,
    )


def _from_price(price: Price) -> dict[str, Any]:
    return {
        "price_id": price.price_id,
        "model": price.model,
        "workspace_id": price.workspace_id,
        "input_million": price.unit_prices.input_million,
        "cached_input_million": price.unit_prices.cached_input_million,
        "output_million": price.unit_prices.output_million,
        "request": price.unit_prices.request,
        "effective_time": price.effective_time,
        "create_time": price.create_time,
    }


def _to_price(row: sa.Row[Any]) -> Price:
    return Price(
        row.price_id,
        row.model,
        row.workspace_id,
        UnitPrices(row.input_million, row.cached_input_million, row.output_million, row.request),
        row.effective_time,
        row.create_time,
    )
