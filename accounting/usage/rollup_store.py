"""The SQL of sums by the hour and day: what they are of, and how changes get into them, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.bulk import Bulk, insert_given, is_given, upsert
from accounting.tables import usage_changes, usage_days, usage_events, usage_hours, usage_rollups
from accounting.usage.counting import HOUR_MICROS, Bucket, Figures
from naru.database import Database

BUCKET, FIGURES = Bucket._fields, Figures._fields
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
        ((waiting,),) = await self._database.read_rows(sa.select(sa.exists().select_from(usage_changes)))
        return bool(waiting)

    async def roll(self, most: int) -> int:
        """Rolls up to `most` changes, the oldest first, in one transaction; tells how many.

        0 as well when somebody else is at it: there is one at a time.
        """
        query = sa.select(usage_changes.c.change_id).order_by(usage_changes.c.change_id).limit(most)
        async with self._database.writing() as connection:
            if not await self.only_one(connection):
                return 0
            # By their ids: changes with lower ones may be committed at any moment.
            found = {"change_id": list((await connection.execute(query)).scalars())}
            if found["change_id"]:
                for statement in (_ADD_HOURS, _ADD_DAYS, _DELETE):
                    await statement.execute(connection, found)
        return len(found["change_id"])

    async def only_one(self, connection: AsyncConnection) -> bool:
        """Whether this transaction is the only one that rolls or prunes, until it ends."""
        lock = sa.select(usage_rollups.c.rollups_id).with_for_update(skip_locked=True)
        return (await connection.execute(lock)).first() is not None


async def note_changes(connection: AsyncConnection, changes: Mapping[Bucket, Figures]) -> None:
    """Notes what sums change by, in the transaction that changes what counts."""
    if not changes:
        return
    columns = zip(*((*bucket, *figures) for bucket, figures in changes.items()), strict=True)
    await _NOTE.execute(connection, dict(zip((*BUCKET, *FIGURES), columns, strict=True)))


def events(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Bucket and figures of each usage event that meets a condition."""
    table = usage_events
    columns = {
        "hour": _HOUR,
        "model": table.c.served_model,
        "requests": sa.literal_column("1", sa.BigInteger),
        "unpriced_requests": sa.case((table.c.price_id == "", 1), else_=0),
    }
    return _select(table, columns).where(condition)


def hours(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Bucket and figures of each sum that meets a condition."""
    return _select(usage_hours, {}).where(condition)


def days(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Bucket and figures of each sum of a day that meets a condition; its hour is the first of the day."""
    return _select(usage_days, {"hour": usage_days.c.day * sa.literal_column("24")}).where(condition)


def waiting_changes(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Bucket and figures of each change that the sums do not have yet and that meets a condition."""
    return _select(usage_changes, {}).where(condition)


def _select(table: sa.Table, columns: Mapping[str, sa.ColumnElement[Any]]) -> sa.Select[Any]:
    return sa.select(
        *((columns[name] if name in columns else table.c[name]).label(name) for name in (*BUCKET, *FIGURES))
    )


def _add(dialect: str, table: sa.Table, time: sa.ColumnElement[int]) -> sa.ClauseElement:
    names = [column.name for column in table.primary_key]
    keys = [time, *(usage_changes.c[name] for name in names[1:])]
    # In one order, so that nobody waits for somebody who waits for them.
    sums = (
        sa.select(*keys, *(sa.func.sum(usage_changes.c[name]) for name in FIGURES))
        .where(is_given(dialect, [usage_changes.c.change_id]))
        .group_by(*keys)
        .order_by(*keys)
    )
    insert = upsert(dialect, table).from_select([*names, *FIGURES], sums)
    return insert.on_conflict_do_update(
        index_elements=names, set_={name: table.c[name] + insert.excluded[name] for name in FIGURES}
    )


def _add_hours(dialect: str) -> sa.ClauseElement:
    return _add(dialect, usage_hours, usage_changes.c.hour)


def _add_days(dialect: str) -> sa.ClauseElement:
    return _add(dialect, usage_days, usage_changes.c.hour.op("/", return_type=sa.Integer())(sa.literal_column("24")))


def _delete(dialect: str) -> sa.ClauseElement:
    return sa.delete(usage_changes).where(is_given(dialect, [usage_changes.c.change_id]))


def _note(dialect: str) -> sa.ClauseElement:
    return insert_given(dialect, usage_changes, (*BUCKET, *FIGURES))


_ADD_HOURS, _ADD_DAYS, _DELETE, _NOTE = Bulk(_add_hours), Bulk(_add_days), Bulk(_delete), Bulk(_note)
