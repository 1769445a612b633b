"""The SQL of questions about usage, and of the request log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from accounting.reporting import (
    Dimension,
    RequestRecord,
    UsageQuery,
    UsageRow,
    decode_page,
    encode_page,
    page_size,
)
from accounting.store import superseded
from accounting.tables import request_log, usage_events
from naru.database import Database
from naru.usage import Usage

# Written out rather than bound: PostgreSQL does not see that two parameters of one value are the same expression.
_DAY = usage_events.c.reserve_time.op("/", return_type=sa.BigInteger())(sa.literal_column("86400000000", sa.BigInteger))
_COLUMNS: dict[Dimension, sa.ColumnElement[Any]] = {
    Dimension.KEY: usage_events.c.key_id,
    Dimension.MODEL: usage_events.c.served_model,
    Dimension.DAY: _DAY,
    Dimension.WORKSPACE: usage_events.c.workspace_id,
}


class ReportStore:
    """Sums usage and keeps the request log. Raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, query: UsageQuery, size: int, token: str) -> tuple[list[UsageRow], str]:
        """One page of rows, and the token of the next one, empty when there is none.

        Raises NaruError INVALID_ARGUMENT for a size below 0 or a token of another query.
        """
        size = page_size(size)
        rows = await self.usage(query, decode_page(query, token), size + 1)
        if len(rows) <= size:
            return rows, ""
        return rows[:size], encode_page(query, rows[size - 1].group)

    async def usage(self, query: UsageQuery, after: tuple[str | int, ...] | None, most: int) -> list[UsageRow]:
        """Up to `most` rows that come after a row, ordered by the dimensions.

        An event counts once it is settled, with its highest attempt only.
        """
        columns = [_COLUMNS[dimension] for dimension in query.group_by]
        sums = [
            sa.func.count(),
            sa.func.count(sa.case((usage_events.c.price_id == "", 1))),
            *(
                sa.func.coalesce(sa.func.sum(usage_events.c[name]), 0)
                for name in ("cost", "prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens")
            ),
        ]
        statement = sa.select(*columns, *sums).where(*_conditions(query))
        if columns:
            statement = statement.group_by(*columns).order_by(*columns).limit(most)
        if columns and after is not None:
            statement = statement.where(sa.tuple_(*columns) > sa.tuple_(*_bound(query, after)))
        async with self._database.reading() as connection:
            rows = (await connection.execute(statement)).all()
        return [_row(row, len(columns)) for row in rows]

    async def log_requests(self, records: Sequence[RequestRecord]) -> None:
        """Adds to the request log what is not in it yet."""
        if not records:
            return
        insert = postgresql.insert if self._database.is_postgresql else sqlite.insert
        statement = insert(request_log).on_conflict_do_nothing(index_elements=["request_id", "start_time"])
        ordered = sorted(records, key=lambda record: (record.request_id, record.start_time))
        async with self._database.writing() as connection:
            await connection.execute(statement, [_columns(record) for record in ordered])


def _row(row: Sequence[Any], width: int) -> UsageRow:
    requests, unpriced, cost, *tokens = map(int, row[width:])
    return UsageRow(tuple(row[:width]), requests, Usage(*tokens), cost, unpriced)


def _conditions(query: UsageQuery) -> list[sa.ColumnElement[bool]]:
    events = usage_events
    conditions: list[sa.ColumnElement[bool]] = [events.c.settled_time.is_not(None), ~superseded()]
    if query.start_time is not None:
        conditions.append(events.c.reserve_time >= query.start_time)
    if query.end_time is not None:
        conditions.append(events.c.reserve_time < query.end_time)
    for column, value in (
        (events.c.key_id, query.key_id),
        (events.c.user_id, query.user_id),
        (events.c.served_model, query.model),
        (events.c.workspace_id, query.workspace_id),
    ):
        if value:
            conditions.append(column == value)
    return conditions


def _bound(query: UsageQuery, after: tuple[str | int, ...]) -> list[sa.BindParameter[Any]]:
    return [
        sa.bindparam(None, value, type_=sa.BigInteger() if dimension is Dimension.DAY else sa.String())
        for dimension, value in zip(query.group_by, after, strict=True)
    ]


def _columns(record: RequestRecord) -> dict[str, Any]:
    who = record.principal
    return {
        "request_id": record.request_id,
        "start_time": record.start_time,
        "event_id": record.event_id,
        "key_id": who.key_id if who else "",
        "user_id": who.user_id if who else "",
        "service_account": who.service_account if who else "",
        "workspace_id": who.workspace_id if who else "",
        "endpoint": record.endpoint,
        "requested_model": record.requested_model,
        "status": record.status,
        "reason": record.reason,
        "duration_us": record.duration_us,
        "first_byte_us": record.first_byte_us,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "stream": record.stream,
        "trace_id": record.trace_id,
    }
