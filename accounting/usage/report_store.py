"""The SQL of questions about usage: sums by the hour, and whatever they do not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.paging import page_size
from accounting.tables import usage_days, usage_events, usage_hours, usage_reversals, usage_rollups
from accounting.usage.counting import HOUR_MICROS, days_within, hours_within, rests
from accounting.usage.reporting import (
    Dimension,
    UsageQuery,
    UsageRow,
    decode_page,
    encode_page,
)
from accounting.usage.rollup_store import COUNTED, FIGURES, PENDING, days, events, hours, reversals
from accounting.usage.store import superseded
from naru.database import Database
from naru.errors import invalid_argument
from naru.usage import Usage

_COLUMNS = {
    Dimension.KEY: "key_id",
    Dimension.MODEL: "model",
    Dimension.WORKSPACE: "workspace_id",
    Dimension.USER: "user_id",
    Dimension.ENDPOINT: "endpoint",
    Dimension.HOUR: "hour",
    Dimension.SERVICE_ACCOUNT: "service_account",
}


class ReportStore:
    """Sums usage. Raises NaruError SERVICE_UNAVAILABLE when the database is away.

    An event counts once it is settled, with its highest attempt only. Single events are read only where the sums by the hour
    do not have them yet, and in hours that a question takes a part of.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, query: UsageQuery, size: int, token: str) -> tuple[list[UsageRow], str]:
        """One page of rows, and the token of the next one, empty when there is none.

        Raises NaruError INVALID_ARGUMENT for a size below 0 or a token of another query, and as `usage`.
        """
        size = page_size(size)
        rows = await self.usage(query, decode_page(query, token), size + 1)
        if len(rows) <= size:
            return rows, ""
        return rows[:size], encode_page(query, rows[size - 1].group)

    async def usage(self, query: UsageQuery, after: tuple[str | int, ...] | None, most: int) -> list[UsageRow]:
        """Up to `most` rows that come after a row, ordered by the dimensions.

        Raises NaruError INVALID_ARGUMENT for times within an hour of which only the sum is kept.
        """
        used = sa.union_all(*_contributions(query)).subquery()
        columns = [_column(used, dimension) for dimension in query.group_by]
        sums = [sa.func.coalesce(sa.func.sum(used.c[name]), 0) for name in FIGURES]
        statement = sa.select(*columns, *sums)
        if columns:
            # What was reversed leaves sums of nothing behind.
            counted = sa.func.sum(used.c.requests) > 0
            statement = statement.group_by(*columns).having(counted).order_by(*columns).limit(most)
        if columns and after is not None:
            statement = statement.where(sa.tuple_(*columns) > sa.tuple_(*_bound(query, after)))
        async with self._database.reading() as connection:
            await _check_rests(connection, query)
            rows = (await connection.execute(statement)).all()
        return [_row(row, len(columns)) for row in rows]

    async def about(self, query: UsageQuery) -> int:
        """About how many single events a question is about, by the sums of whole hours of which they are kept."""
        async with self._database.reading() as connection:
            kept = (await connection.execute(sa.select(usage_rollups.c.pruned_before))).scalar_one()
        first = max(query.start_time or 0, kept) // HOUR_MICROS
        last = None if query.end_time is None else -(-query.end_time // HOUR_MICROS) * HOUR_MICROS
        (row,) = await self.usage(replace(query, group_by=(), start_time=first * HOUR_MICROS, end_time=last), None, 1)
        return row.requests


def used_by(query: UsageQuery) -> sa.ColumnElement[bool]:
    """Whether a usage event is what a question is about, and counts."""
    return sa.and_(
        usage_events.c.settled_time.is_not(None),
        ~superseded(),
        _between(usage_events.c.reserve_time, query.start_time, query.end_time),
        _narrowed(query, usage_events),
    )


def _contributions(query: UsageQuery) -> list[sa.Select[Any]]:
    """What adds up to the answer, some of it negative; one statement reads it all at one moment."""
    first, last = hours_within(query.start_time, query.end_time)
    higher = usage_events.alias("changed")
    # A later attempt that nobody rolled yet counts instead of one that is in the sums.
    replaced = sa.and_(
        usage_events.c.event_id.in_(
            sa.select(higher.c.event_id).where(higher.c.roll_state == sa.literal_column("0"), higher.c.attempt > 0)
        ),
        superseded(),
    )
    whole = _between(
        usage_events.c.reserve_time,
        None if first is None else first * HOUR_MICROS,
        None if last is None else last * HOUR_MICROS,
    )
    narrowed = _narrowed(query, usage_events)
    settled = usage_events.c.settled_time.is_not(None)
    return [
        *_sums(query, first, last),
        reversals(sa.and_(_between(usage_reversals.c.hour, first, last), _narrowed(query, usage_reversals))),
        events(sa.and_(PENDING, settled, ~superseded(), whole, narrowed)),
        events(sa.and_(COUNTED, replaced, whole, narrowed), -1),
        *(
            events(sa.and_(settled, ~superseded(), _between(usage_events.c.reserve_time, *rest), narrowed))
            for rest in rests(query.start_time, query.end_time)
        ),
    ]


def _sums(query: UsageQuery, first: int | None, last: int | None) -> list[sa.Select[Any]]:
    """The sums between two hours: of days wherever hours do not matter, which is a small part of reading all hours."""

    def between(begin: int | None, end: int | None) -> sa.Select[Any]:
        return hours(sa.and_(_between(usage_hours.c.hour, begin, end), _narrowed(query, usage_hours)))

    if Dimension.HOUR in query.group_by:
        return [between(first, last)]
    whole, spans = days_within(first, last)
    found = [between(*span) for span in spans]
    if whole is not None:
        found.append(days(sa.and_(_between(usage_days.c.day, *whole), _narrowed(query, usage_days))))
    return found


async def _check_rests(connection: AsyncConnection, query: UsageQuery) -> None:
    """Raises unless single events are kept wherever the sums by the hour are not enough."""
    parts = rests(query.start_time, query.end_time)
    if not parts:
        return
    pruned_before = (await connection.execute(sa.select(usage_rollups.c.pruned_before))).scalar_one()
    for begin, _ in parts:
        if begin < pruned_before:
            field = "start_time" if begin == query.start_time else "end_time"
            raise invalid_argument(
                field, f"{field} must be a whole hour, since only sums by the hour are kept of then."
            )


def _column(used: sa.Subquery, dimension: Dimension) -> sa.ColumnElement[Any]:
    if dimension is Dimension.DAY:
        return used.c.hour.op("/", return_type=sa.Integer())(sa.literal_column("24", sa.Integer))
    return used.c[_COLUMNS[dimension]]


def _between(column: sa.ColumnElement[int], first: int | None, last: int | None) -> sa.ColumnElement[bool]:
    bounds: list[sa.ColumnElement[bool]] = [sa.true()]
    if first is not None:
        bounds.append(column >= first)
    if last is not None:
        bounds.append(column < last)
    return sa.and_(*bounds)


def _narrowed(query: UsageQuery, table: sa.Table) -> sa.ColumnElement[bool]:
    columns = table.c
    model = columns.served_model if table is usage_events else columns.model
    filters = (
        (columns.key_id, query.key_id),
        (columns.user_id, query.user_id),
        (model, query.model),
        (columns.workspace_id, query.workspace_id),
        (columns.endpoint, query.endpoint),
    )
    return sa.and_(sa.true(), *(column == value for column, value in filters if value))


def _row(row: Sequence[Any], width: int) -> UsageRow:
    requests, unpriced, cost, *tokens = map(int, row[width:])
    return UsageRow(tuple(row[:width]), requests, Usage(*tokens), cost, unpriced)


def _bound(query: UsageQuery, after: tuple[str | int, ...]) -> list[sa.BindParameter[Any]]:
    return [
        sa.bindparam(None, value, type_=sa.BigInteger() if dimension.is_time else sa.String())
        for dimension, value in zip(query.group_by, after, strict=True)
    ]
