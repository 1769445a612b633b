"""The SQL of sums by the hour and day: what they are of, and how what changed gets into them, each event exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.quota import EventRef
from accounting.tables import usage_days, usage_events, usage_hours, usage_reversals, usage_rollups
from accounting.usage.counting import HOUR_MICROS, Attempt, RollState, plan
from naru.database import Database

BUCKET = ("hour", "workspace_id", "key_id", "user_id", "service_account", "model", "endpoint")
FIGURES = (
    "requests",
    "unpriced_requests",
    "cost",
    "prompt_tokens",
    "completion_tokens",
    "cached_prompt_tokens",
    "reasoning_tokens",
)
# Written out rather than bound: neither database sees that a parameter fits the condition of a partial index.
PENDING = usage_events.c.roll_state == sa.literal_column(str(RollState.PENDING.value))
COUNTED = usage_events.c.roll_state == sa.literal_column(str(RollState.COUNTED.value))
_HOUR = sa.cast(
    usage_events.c.reserve_time.op("/", return_type=sa.BigInteger())(
        sa.literal_column(str(HOUR_MICROS), sa.BigInteger)
    ),
    sa.Integer,
)


class RollupStore:
    """Brings the sums by the hour up to date. Raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self) -> bool:
        """Whether anything is to be rolled."""
        pending = sa.exists().where(PENDING)
        async with self._database.reading() as connection:
            query = sa.select(sa.or_(pending, sa.exists().select_from(usage_reversals)))
            return bool((await connection.execute(query)).scalar_one())

    async def roll(self, most: int) -> int:
        """Rolls up to `most` events that changed, the oldest first, in one transaction; tells how many.

        0 as well when somebody else is at it: there is one at a time.
        """
        async with self._database.writing() as connection:
            if not await self.only_one(connection):
                return 0
            reversals = await self._reversals(connection, most)
            attempts = await self._attempts(connection, most)
            todo = plan(attempts)
            sources = [
                *(_select(usage_reversals, usage_reversals.c.reversal_id.in_(reversals), -1) for _ in reversals[:1]),
                *(events(these(todo.add)) for _ in todo.add[:1]),
                *(events(these(todo.subtract), -1) for _ in todo.subtract[:1]),
            ]
            if sources:
                await self._add(connection, usage_hours, sources)
                await self._add(connection, usage_days, sources)
            if reversals:
                await connection.execute(sa.delete(usage_reversals).where(usage_reversals.c.reversal_id.in_(reversals)))
            await _mark(connection, todo.add, RollState.COUNTED)
            await _mark(connection, [*todo.subtract, *todo.passed], RollState.PASSED)
        return len(reversals) + len(todo.add) + len(todo.subtract) + len(todo.passed)

    async def only_one(self, connection: AsyncConnection) -> bool:
        """Whether this transaction is the only one that rolls or prunes, until it ends."""
        lock = sa.select(usage_rollups.c.rollups_id).with_for_update(skip_locked=True)
        return (await connection.execute(lock)).first() is not None

    async def _reversals(self, connection: AsyncConnection, most: int) -> list[int]:
        query = sa.select(usage_reversals.c.reversal_id).order_by(usage_reversals.c.reversal_id).limit(most)
        return list((await connection.execute(query)).scalars())

    async def _attempts(self, connection: AsyncConnection, most: int) -> list[Attempt]:
        """All attempts of events that changed; nobody else changes them until the transaction ends."""
        query = sa.select(usage_events.c.event_id).where(PENDING).order_by(usage_events.c.reserve_time).limit(most)
        changed = set((await connection.execute(query)).scalars())
        if not changed:
            return []
        key = (usage_events.c.event_id, usage_events.c.attempt)
        rows = await connection.execute(
            sa.select(*key, usage_events.c.roll_state, usage_events.c.settled_time.is_not(None).label("settled"))
            .where(usage_events.c.event_id.in_(sorted(changed)))
            # In the order in which those who record lock them.
            .order_by(*key)
            .with_for_update()
        )
        return [
            Attempt(EventRef(row.event_id, row.attempt), RollState(row.roll_state), bool(row.settled)) for row in rows
        ]

    async def _add(self, connection: AsyncConnection, table: sa.Table, sources: Sequence[sa.Select[Any]]) -> None:
        changes = sa.union_all(*sources).subquery()
        names = [column.name for column in table.primary_key]
        keys = [_day(changes.c.hour) if name == "day" else changes.c[name] for name in names]
        # In one order, and with a condition: SQLite's grammar needs one before ON CONFLICT.
        sums = (
            sa.select(*keys, *(sa.func.sum(changes.c[name]) for name in FIGURES))
            .where(sa.true())
            .group_by(*keys)
            .order_by(*keys)
        )
        upsert = postgresql.insert if self._database.is_postgresql else sqlite.insert
        statement = upsert(table).from_select([*names, *FIGURES], sums)
        await connection.execute(
            statement.on_conflict_do_update(
                index_elements=names,
                set_={name: table.c[name] + statement.excluded[name] for name in FIGURES},
            )
        )


async def keep_rolled(connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> None:
    """Call it before the figures of events change: those that the sums by the hour have are noted, to be taken off."""
    kept = events(sa.and_(condition, COUNTED))
    await connection.execute(sa.insert(usage_reversals).from_select([*BUCKET, *FIGURES], kept))


def events(condition: sa.ColumnElement[bool], sign: int = 1) -> sa.Select[Any]:
    """Bucket and figures of each usage event that meets a condition, negative for a sign of -1."""
    table = usage_events
    columns = {
        "hour": _HOUR,
        "model": table.c.served_model,
        "requests": sa.literal_column("1", sa.BigInteger),
        "unpriced_requests": sa.case((table.c.price_id == "", 1), else_=0),
    }
    return _signed(columns, table, sign).where(condition)


def hours(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Bucket and figures of each sum that meets a condition."""
    return _select(usage_hours, condition, 1)


def days(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Bucket and figures of each sum of a day that meets a condition; its hour is the first of the day."""
    return _signed({"hour": (usage_days.c.day * sa.literal_column("24"))}, usage_days, 1).where(condition)


def reversals(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """What is to be taken off the sums, as negative figures."""
    return _select(usage_reversals, condition, -1)


def these(refs: Iterable[EventRef]) -> sa.ColumnElement[bool]:
    """Whether a usage event is one of these attempts."""
    by_attempt: defaultdict[int, list[str]] = defaultdict(list)
    for ref in refs:
        by_attempt[ref.attempt].append(ref.event_id)
    # Not as pairs: PostgreSQL plans a list of one column much faster, and nearly all are attempt 0.
    return sa.or_(
        *(
            sa.and_(usage_events.c.attempt == attempt, usage_events.c.event_id.in_(event_ids))
            for attempt, event_ids in by_attempt.items()
        )
    )


def _day(hour: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return hour.op("/", return_type=sa.Integer())(sa.literal_column("24", sa.Integer))


def _select(table: sa.Table, condition: sa.ColumnElement[bool], sign: int) -> sa.Select[Any]:
    return _signed({}, table, sign).where(condition)


def _signed(columns: dict[str, sa.ColumnElement[Any]], table: sa.Table, sign: int) -> sa.Select[Any]:
    keys = [_named(columns, table, name).label(name) for name in BUCKET]
    figures = [_named(columns, table, name) for name in FIGURES]
    return sa.select(
        *keys,
        *((figure if sign > 0 else -figure).label(name) for name, figure in zip(FIGURES, figures, strict=True)),
    )


def _named(columns: dict[str, sa.ColumnElement[Any]], table: sa.Table, name: str) -> sa.ColumnElement[Any]:
    return columns[name] if name in columns else table.c[name]


async def _mark(connection: AsyncConnection, refs: Sequence[EventRef], state: RollState) -> None:
    if refs:
        await connection.execute(sa.update(usage_events).where(these(refs)).values(roll_state=state.value))
