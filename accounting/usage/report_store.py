"""The SQL of questions about usage: sums by the hour, and whatever they do not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.tables import usage_changes, usage_days, usage_events, usage_hours, usage_rollups
from accounting.usage.counting import HOUR_MICROS, days_within, hours_within, rests
from accounting.usage.report_parts import between_times, first_size, is_parted, next_size, times_within
from accounting.usage.reporting import (
    Dimension,
    UsageQuery,
    UsageRow,
    page_position,
)
from accounting.usage.rollup_store import FIGURES, days, events, hours, waiting_changes
from accounting.usage.store import superseded
from naru.database import Database
from naru.errors import invalid_argument
from naru.paging import page_size, write_token
from naru.usage import Usage

Group = tuple[str | int, ...]

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
        rows = await self.usage(query, page_position(query, token), size + 1)
        if len(rows) <= size:
            return rows, ""
        return rows[:size], write_token((query,), rows[size - 1].group)

    async def usage(self, query: UsageQuery, after: Group | None, most: int) -> list[UsageRow]:
        """Up to `most` rows that come after a row, ordered by the dimensions.

        Raises NaruError INVALID_ARGUMENT for times within an hour of which only the sum is kept.
        """
        async with self._database.reading() as connection:
            await _check_rests(connection, query)
            if not is_parted(query):
                return await _read(connection, query, after, most)
            rows: list[UsageRow] = []
            parts, size = _Parts(connection, query, after), first_size(query, most)
            while len(rows) < most and await parts.advance(size):
                found = await parts.read(most - len(rows))
                rows += found
                size = next_size(size, len(found), most - len(rows))
            return rows

    async def about(self, query: UsageQuery) -> int:
        """About how many single events a question is about, by the sums of whole hours of which they are kept."""
        async with self._database.reading() as connection:
            kept = (await connection.execute(sa.select(usage_rollups.c.pruned_before))).scalar_one()
        first = max(query.start_time or 0, kept) // HOUR_MICROS
        last = None if query.end_time is None else -(-query.end_time // HOUR_MICROS) * HOUR_MICROS
        (row,) = await self.usage(replace(query, group_by=(), start_time=first * HOUR_MICROS, end_time=last), None, 1)
        return row.requests


class _Parts:
    """Goes through an answer by ranges of values of its first dimension, from the row that a page begins after."""

    def __init__(self, connection: AsyncConnection, query: UsageQuery, after: Group | None) -> None:
        self._connection = connection
        self._query = query
        self._after = after
        self._last: int | str | None = None
        self._bounds: tuple[int, int] | None = None
        self._values: list[int | str] = []

    async def advance(self, size: int) -> bool:
        """Goes on to the next so many values. Tells whether there are any."""
        self._values = await (self._times(size) if self._query.group_by[0].is_time else self._texts(size))
        if self._values:
            self._last = self._values[-1]
        return bool(self._values)

    async def read(self, most: int) -> list[UsageRow]:
        """The rows of these values."""
        first, last = self._values[0], self._values[-1]
        if isinstance(first, int) and isinstance(last, int):
            return await _read(self._connection, between_times(self._query, first, last), self._after, most)
        return await _read(self._connection, self._query, self._after, most, (first, last))

    async def _times(self, size: int) -> list[int | str]:
        if self._bounds is None:
            self._bounds = times_within(self._query, *await _days_of_usage(self._connection))
        first, last = self._bounds
        if self._last is not None:
            first = int(self._last) + 1
        elif self._after is not None:
            first = max(first, int(self._after[0]))
        return [first, min(first + size - 1, last)] if first <= last else []

    async def _texts(self, size: int) -> list[int | str]:
        dimension, found = self._query.group_by[0], []
        for source in _contributions(self._query):
            value = _column(source.subquery(), dimension)
            statement = sa.select(value.label("value")).distinct().order_by(value).limit(size)
            if self._last is not None:
                statement = statement.where(value > self._last)
            elif self._after is not None:
                statement = statement.where(value >= self._after[0])
            found.append(sa.select(statement.subquery().c.value))
        # The order of texts is the database's, which need not be Python's.
        values = sa.union(*found).subquery().c.value
        return list((await self._connection.execute(sa.select(values).order_by(values).limit(size))).scalars())


async def _days_of_usage(connection: AsyncConnection) -> tuple[int, int]:
    """The first and the last day of which there is any; the last is below where there is none."""
    hour, day = usage_changes.c.hour, usage_days.c.day
    columns = [function(column) for column in (day, hour) for function in (sa.func.min, sa.func.max)]
    row = (await connection.execute(sa.select(*(sa.select(column).scalar_subquery() for column in columns)))).one()
    first_day, last_day, first_hour, last_hour = row
    firsts = [first_day, None if first_hour is None else first_hour // 24]
    lasts = [last_day, None if last_hour is None else last_hour // 24]
    return (
        min((one for one in firsts if one is not None), default=0),
        max((one for one in lasts if one is not None), default=-1),
    )


async def _read(
    connection: AsyncConnection,
    query: UsageQuery,
    after: Group | None,
    most: int,
    values: tuple[int | str, int | str] | None = None,
) -> list[UsageRow]:
    """Up to `most` rows after a row, where `values` are given only of a range of the first dimension."""
    used = sa.union_all(*_contributions(query)).subquery()
    columns = [_column(used, dimension) for dimension in query.group_by]
    sums = [sa.func.coalesce(sa.func.sum(used.c[name]), 0) for name in FIGURES]
    statement = sa.select(*columns, *sums)
    if columns:
        # What was taken off again leaves sums of nothing behind.
        counted = sa.func.sum(used.c.requests) > 0
        statement = statement.group_by(*columns).having(counted).order_by(*columns).limit(most)
    if columns and after is not None:
        statement = statement.where(sa.tuple_(*columns) > sa.tuple_(*_bound(query, after)))
    if values is not None:
        statement = statement.where(columns[0] >= values[0], columns[0] <= values[1])
    rows = (await connection.execute(statement)).all()
    return [_row(row, len(columns)) for row in rows]


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
    settled = sa.and_(usage_events.c.settled_time.is_not(None), ~superseded(), _narrowed(query, usage_events))
    return [
        *_sums(query, first, last),
        waiting_changes(sa.and_(_between(usage_changes.c.hour, first, last), _narrowed(query, usage_changes))),
        *(
            events(sa.and_(settled, _between(usage_events.c.reserve_time, *rest)))
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


def _bound(query: UsageQuery, after: Group) -> list[sa.BindParameter[Any]]:
    return [
        sa.bindparam(None, value, type_=sa.BigInteger() if dimension.is_time else sa.String())
        for dimension, value in zip(query.group_by, after, strict=True)
    ]
