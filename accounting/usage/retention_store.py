"""The SQL of forgetting: single usage events that sums by the hour have, and old lines of the request log."""

from __future__ import annotations

import sqlalchemy as sa

from accounting.tables import request_log, settlement_outbox, usage_corrections, usage_events, usage_rollups
from accounting.usage.engine_counters import keep_pruned
from accounting.usage.rollup_store import RollupStore
from naru.database import Database


class RetentionStore:
    """Deletes in small batches. Raises NaruError SERVICE_UNAVAILABLE when the database is away.

    Times are microseconds since the Unix epoch.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rollups = RollupStore(database)

    async def pruned_before(self) -> int:
        """The time before which single usage events may be gone."""
        async with self._database.reading() as connection:
            return int((await connection.execute(sa.select(usage_rollups.c.pruned_before))).scalar_one())

    async def announce(self, pruned_before: int) -> None:
        """Says that single usage events before a time may be gone; what was said of a later time stays."""
        moved = sa.update(usage_rollups).where(usage_rollups.c.pruned_before < pruned_before)
        async with self._database.writing() as connection:
            await connection.execute(moved.values(pruned_before=pruned_before))

    async def newest_event(self) -> int | None:
        """When the last usage was booked; None when there is none."""
        return await self._newest(usage_events.c.reserve_time)

    async def newest_request(self) -> int | None:
        """When the last request of the log came in; None when there is none."""
        return await self._newest(request_log.c.start_time)

    async def prune_usage(self, before: int, most: int) -> int:
        """Deletes up to `most` attempts of events that were booked before a time, with corrections; tells how many.

        Nothing that is not settled, or that the limiter has to be told of still.
        """
        other = usage_events.alias("other")
        kept = sa.exists().where(
            other.c.event_id == usage_events.c.event_id,
            sa.or_(
                other.c.reserve_time >= before,
                other.c.settled_time.is_(None),
            ),
        )
        told = sa.exists().where(settlement_outbox.c.event_id == usage_events.c.event_id)
        old = (
            sa.select(usage_events.c.event_id)
            .where(usage_events.c.reserve_time < before, ~kept, ~told)
            .order_by(usage_events.c.reserve_time)
            .limit(most)
        )
        async with self._database.writing() as connection:
            if not await self._rollups.only_one(connection):
                return 0
            attempts = (await connection.execute(old)).scalars().all()
            event_ids = sorted(set(attempts))
            if event_ids:
                await keep_pruned(connection, event_ids)
                for table in (usage_corrections, usage_events):
                    await connection.execute(sa.delete(table).where(table.c.event_id.in_(event_ids)))
        return len(attempts)

    async def prune_requests(self, before: int, most: int) -> int:
        """Deletes about `most` lines of the request log that came in before a time; tells how many."""
        oldest = (
            sa.select(request_log.c.start_time)
            .where(request_log.c.start_time < before)
            .order_by(request_log.c.start_time)
            .limit(most)
            .subquery()
        )
        last = sa.select(sa.func.max(oldest.c.start_time)).scalar_subquery()
        async with self._database.writing() as connection:
            deleted = await connection.execute(sa.delete(request_log).where(request_log.c.start_time <= last))
        return deleted.rowcount

    async def _newest(self, column: sa.Column[int]) -> int | None:
        async with self._database.reading() as connection:
            found: int | None = (await connection.execute(sa.select(sa.func.max(column)))).scalar_one()
        return found
