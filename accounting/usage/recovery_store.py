"""The SQL of what the limiter learns of after it lost everything: one moment of what was used, and what has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.ledger.ledger import Account
from accounting.ledger.store import prepaid
from accounting.quota import EventRef
from accounting.settlement import Exact
from accounting.tables import usage_changes, usage_events, usage_hours
from accounting.usage.counting import HOUR_MICROS
from accounting.usage.event_rows import exact
from accounting.usage.rollup_store import days, events, hours, waiting_changes
from accounting.usage.store import superseded
from naru.database import Database
from naru.identity import Principal
from naru.usage import Usage

_MICROS = 1_000_000
_WHO = ("workspace_id", "key_id", "user_id", "tier", "served_model")
_AMOUNTS = ("prompt_tokens", "completion_tokens", "cost")


@dataclass(frozen=True, slots=True)
class BookedUsage:
    """What a principal used of a model in the bucket that begins at `bucket` times the width that was asked for."""

    principal: Principal
    model: str
    bucket: int
    requests: int
    usage: Usage
    cost: int


@dataclass(frozen=True, slots=True)
class BookedAttempt:
    """What an attempt used that counts for its event, and when it was reserved; `settled` once it counts."""

    ref: EventRef
    reserve_time: int
    settled: bool
    principal: Principal
    model: str
    usage: Usage
    cost: int

    def less(self, bucket_seconds: int) -> BookedUsage:
        """What has to be added to sums of what was used to take it out of them."""
        usage = Usage(-self.usage.prompt_tokens, -self.usage.completion_tokens)
        bucket = self.reserve_time // (bucket_seconds * _MICROS)
        return BookedUsage(self.principal, self.model, bucket, -1, usage, -self.cost)


class BookedMoment:
    """What was used until one moment, whether it counts yet or not; an event with its highest attempt only."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def since(self, time: int, bucket_seconds: int) -> list[BookedUsage]:
        """What was used since a time, per principal, model and bucket."""
        width = sa.literal_column(str(bucket_seconds * _MICROS), sa.BigInteger)
        bucket = usage_events.c.reserve_time.op("/", return_type=sa.BigInteger())(width)
        who = [usage_events.c[name] for name in _WHO]
        query = (
            sa.select(
                *who,
                bucket.label("bucket"),
                sa.func.count().label("requests"),
                *_sums(usage_events, *_AMOUNTS),
            )
            .where(usage_events.c.reserve_time >= time, ~superseded())
            .group_by(*who, bucket)
        )
        return [
            BookedUsage(
                _principal(row), row.served_model, int(row.bucket), int(row.requests), _usage(row), int(row.cost)
            )
            for row in await self._connection.execute(query)
        ]

    async def summed_since(self, time: int) -> list[BookedUsage]:
        """What was used since a time, per principal and model, in one bucket: by the sums that are kept for good.

        They do not say of which tier it was; see `of_tiers_since`.
        """
        hour = -(-time // HOUR_MICROS)
        columns = usage_events.c
        # Of all time the sums have everything else. These have an index of their own: the other one would read all there is.
        not_in_the_sums: sa.ColumnElement[bool] = columns.settled_time.is_(None)
        if time:
            before_the_sums = columns.reserve_time < hour * HOUR_MICROS
            not_in_the_sums = sa.and_(columns.reserve_time >= time, sa.or_(not_in_the_sums, before_the_sums))
        used = sa.union_all(
            hours(usage_hours.c.hour >= hour) if time else days(sa.true()),
            waiting_changes(usage_changes.c.hour >= hour),
            events(sa.and_(not_in_the_sums, ~superseded())),
        ).subquery()
        who = [used.c[name] for name in ("workspace_id", "key_id", "user_id", "model")]
        query = sa.select(*who, *_sums(used, "requests", *_AMOUNTS)).group_by(*who)
        return [
            BookedUsage(
                Principal(row.workspace_id, tier="", key_id=row.key_id, user_id=row.user_id),
                row.model,
                0,
                int(row.requests),
                _usage(row),
                int(row.cost),
            )
            for row in await self._connection.execute(query)
        ]

    async def of_tiers_since(self, time: int) -> list[BookedUsage]:
        """What was used since a time, per tier and model alone, in one bucket: by the single events that are kept."""
        who = (usage_events.c.tier, usage_events.c.served_model)
        requests = sa.func.count().label("requests")
        query = sa.select(*who, requests, *_sums(usage_events, *_AMOUNTS)).group_by(*who)
        query = query.where(usage_events.c.reserve_time >= time, ~superseded())
        return [
            BookedUsage(Principal("", tier=row.tier), row.served_model, 0, row.requests, _usage(row), int(row.cost))
            for row in await self._connection.execute(query)
        ]

    async def changed_since(self, time: int) -> list[BookedAttempt]:
        """The attempts that were reported or settled since a time, or are not settled."""
        columns = usage_events.c
        query = sa.select(
            columns.event_id,
            columns.attempt,
            columns.reserve_time,
            columns.settled_time,
            *(columns[name] for name in (*_WHO, *_AMOUNTS)),
        ).where(
            sa.or_(columns.record_time >= time, columns.settled_time >= time, columns.settled_time.is_(None)),
            ~superseded(),
        )
        return [
            BookedAttempt(
                EventRef(row.event_id, row.attempt),
                row.reserve_time,
                row.settled_time is not None,
                _principal(row),
                row.served_model,
                _usage(row),
                row.cost,
            )
            for row in await self._connection.execute(query)
        ]

    async def prepaid(self) -> Sequence[Account]:
        """The accounts that are paid in advance."""
        return await prepaid(self._connection)


class RecoveryStore:
    """Reads. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[BookedMoment]:
        """One moment, inside the block."""
        async with self._database.reading() as connection:
            if self._database.is_postgresql:
                _ = await connection.execution_options(isolation_level="REPEATABLE READ")
            yield BookedMoment(connection)

    async def settled(self, refs: Sequence[EventRef]) -> list[Exact]:
        """What those of the attempts count with that are settled."""
        if not refs:
            return []
        keys = sa.tuple_(usage_events.c.event_id, usage_events.c.attempt)
        query = sa.select(usage_events).where(
            keys.in_([(ref.event_id, ref.attempt) for ref in refs]), usage_events.c.settled_time.is_not(None)
        )
        async with self._database.reading() as connection:
            return [exact(row) for row in await connection.execute(query)]


def _sums(table: sa.FromClause, *names: str) -> list[sa.Label[Any]]:
    return [sa.func.sum(table.c[name]).label(name) for name in names]


def _principal(row: sa.Row[Any]) -> Principal:
    return Principal(row.workspace_id, tier=row.tier, key_id=row.key_id, user_id=row.user_id)


def _usage(row: sa.Row[Any]) -> Usage:
    return Usage(int(row.prompt_tokens), int(row.completion_tokens))
