"""The SQL of the request log, and of single usage events as they are exported."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from accounting.bulk import Bulk, insert_given
from accounting.quota import EventRef, Work
from accounting.tables import request_log, usage_events
from accounting.usage.report_store import used_by
from accounting.usage.reporting import UsageQuery, UsageRecord
from accounting.usage.request_log import LoggedRequest, RequestQuery, RequestRecord, RequestUsage
from accounting.usage.store import superseded
from naru.database import Database
from naru.identity import Principal
from naru.paging import page_size, read_token, write_token
from naru.usage import Accuracy, Outcome, Usage

EXPORT_CHUNK = 500
_USED = ("served_model", "cost", "outcome", "accuracy")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "reasoning_tokens")
_KEY = ("request_id", "start_time")
_AS_IT_IS = (
    *_KEY,
    "event_id",
    "endpoint",
    "requested_model",
    "status",
    "reason",
    "duration_us",
    "first_byte_us",
    "request_bytes",
    "response_bytes",
    "stream",
    "trace_id",
    "finish_reason",
)
_COLUMNS: dict[str, Callable[[RequestRecord], Any]] = {
    **{name: attrgetter(name) for name in _AS_IT_IS},
    "key_id": lambda one: one.principal.key_id if one.principal else "",
    "user_id": lambda one: one.principal.user_id if one.principal else "",
    "service_account": lambda one: one.principal.service_account if one.principal else "",
    "workspace_id": lambda one: one.principal.workspace_id if one.principal else "",
}


class RequestStore:
    """Keeps the request log, and reads line by line. Raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def log_requests(self, records: Sequence[RequestRecord]) -> None:
        """Adds to the request log what is not in it yet."""
        if not records:
            return
        ordered = sorted(records, key=attrgetter(*_KEY))
        columns = {name: [read(record) for record in ordered] for name, read in _COLUMNS.items()}
        async with self._database.writing() as connection:
            await _INSERT.execute(connection, columns)

    async def requests(self, query: RequestQuery, size: int, token: str) -> tuple[list[LoggedRequest], str]:
        """One page of requests, the newest first, and the token of the next one, empty when there is none.

        What comes in meanwhile moves nothing from page to page. Raises NaruError INVALID_ARGUMENT for a size below 0, a token of
        another query, or a filter that makes no sense.
        """
        query.check()
        size = page_size(size)
        after = read_token((query,), token, (int, str))
        position = (request_log.c.start_time, request_log.c.request_id)
        # Found by event alone: requests that got no further than being refused have none.
        settled = sa.and_(
            usage_events.c.event_id == request_log.c.event_id, usage_events.c.settled_time.is_not(None), ~superseded()
        )
        used = [usage_events.c[name].label(f"used_{name}") for name in (*_USED, *_TOKENS)]
        statement = (
            sa.select(request_log, *used)
            .select_from(request_log.outerjoin(usage_events, settled))
            .where(*_conditions(query))
            .order_by(*(column.desc() for column in position))
            .limit(size + 1)
        )
        if after is not None:
            # The first of the two is what an index can do.
            statement = statement.where(
                request_log.c.start_time <= after[0],
                sa.tuple_(*position) < sa.tuple_(*_place(*after)),
            )
        async with self._database.reading() as connection:
            rows = (await connection.execute(statement)).all()
        found = [_logged(row) for row in rows[:size]]
        if len(rows) <= size:
            return found, ""
        last = found[-1].record
        return found, write_token((query,), (last.start_time, last.request_id))

    async def booked_until(self, now: int) -> int:
        """A time that is after `now` and all that is booked: the limiter's clock, by which it is, may be ahead of ours."""
        async with self._database.reading() as connection:
            newest = (await connection.execute(sa.select(sa.func.max(usage_events.c.reserve_time)))).scalar_one()
        return max(now, (newest or 0) + 1)

    async def export(self, query: UsageQuery) -> AsyncGenerator[list[UsageRecord], None]:
        """What a question about usage sums, event by event, the oldest first, in lists of at most 500.

        Each list is read by itself, so nothing is held while a slow reader takes its time.
        """
        position = (usage_events.c.reserve_time, usage_events.c.event_id)
        statement = sa.select(usage_events).where(used_by(query)).order_by(*position).limit(EXPORT_CHUNK)
        following = statement
        while True:
            async with self._database.reading() as connection:
                rows = (await connection.execute(following)).all()
            if rows:
                yield [_exported(row) for row in rows]
            if len(rows) < EXPORT_CHUNK:
                return
            last = rows[-1]
            following = statement.where(
                usage_events.c.reserve_time >= last.reserve_time,
                sa.tuple_(*position) > sa.tuple_(*_place(last.reserve_time, last.event_id)),
            )


def _place(time: int | str, name: int | str) -> tuple[sa.BindParameter[Any], sa.BindParameter[Any]]:
    return sa.bindparam(None, time, sa.BigInteger), sa.bindparam(None, name, sa.String)


def _conditions(query: RequestQuery) -> list[sa.ColumnElement[bool]]:
    columns = request_log.c
    conditions: list[sa.ColumnElement[bool]] = [
        column == value
        for column, value in (
            (columns.key_id, query.key_id),
            (columns.user_id, query.user_id),
            (columns.workspace_id, query.workspace_id),
            (columns.endpoint, query.endpoint),
            (columns.status, query.status),
            (columns.request_id, query.request_id),
            (columns.trace_id, query.trace_id),
        )
        if value
    ]
    if query.model:
        conditions.append(sa.or_(columns.requested_model == query.model, usage_events.c.served_model == query.model))
    if query.status_class:
        conditions.append(columns.status.between(query.status_class * 100, query.status_class * 100 + 99))
    if query.start_time is not None:
        conditions.append(columns.start_time >= query.start_time)
    if query.end_time is not None:
        conditions.append(columns.start_time < query.end_time)
    return conditions


def _insert(dialect: str) -> sa.ClauseElement:
    return insert_given(dialect, request_log, tuple(_COLUMNS)).on_conflict_do_nothing(index_elements=_KEY)


_INSERT = Bulk(_insert)


def _logged(row: sa.Row[Any]) -> LoggedRequest:
    who = None
    if row.workspace_id:
        who = Principal(row.workspace_id, key_id=row.key_id, user_id=row.user_id, service_account=row.service_account)
    record = RequestRecord(
        request_id=row.request_id,
        start_time=row.start_time,
        event_id=row.event_id,
        principal=who,
        endpoint=row.endpoint,
        requested_model=row.requested_model,
        status=row.status,
        reason=row.reason,
        duration_us=row.duration_us,
        first_byte_us=row.first_byte_us,
        request_bytes=row.request_bytes,
        response_bytes=row.response_bytes,
        stream=bool(row.stream),
        trace_id=row.trace_id,
        finish_reason=row.finish_reason,
    )
    if row.used_served_model is None:
        return LoggedRequest(record, None)
    usage = Usage(*(getattr(row, f"used_{name}") for name in _TOKENS))
    used = RequestUsage(
        row.used_served_model, usage, row.used_cost, Outcome(row.used_outcome), Accuracy(row.used_accuracy)
    )
    return LoggedRequest(record, used)


def _exported(row: sa.Row[Any]) -> UsageRecord:
    who = Principal(
        row.workspace_id,
        tier=row.tier,
        key_id=row.key_id,
        user_id=row.user_id,
        service_account=row.service_account,
    )
    return UsageRecord(
        ref=EventRef(row.event_id, row.attempt),
        reserve_time=row.reserve_time,
        end_time=row.end_time,
        work=Work(who, row.requested_model, row.served_model, row.endpoint, row.request_id),
        outcome=Outcome(row.outcome),
        accuracy=Accuracy(row.accuracy),
        usage=Usage(*(getattr(row, name) for name in _TOKENS)),
        cost=row.cost,
        price_id=row.price_id,
    )
