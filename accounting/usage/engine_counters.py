"""The SQL of what engines counted: the latest figures of each run, and what was pruned of its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.bulk import upsert
from accounting.engines import EngineReport
from accounting.ledger.engine_runs import FIGURES, exact_figures
from accounting.tables import engine_counters, usage_events
from naru.database import Database


class EngineCounterStore:
    """Keeps what engines counted. Raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(self, report: EngineReport, now: int) -> None:
        """Keeps a report whose events are recorded already.

        In this order the figures never tell of an event that is not there, so both need not be one transaction; should the
        process die in between, the reporter tries again. What comes late or twice changes nothing: figures only grow.
        `now` is in microseconds since the Unix epoch.
        """
        async with self._database.writing() as connection:
            insert = upsert(connection.dialect.name, engine_counters).values(
                replica=report.replica,
                epoch=report.epoch,
                closed=report.closed,
                update_time=now,
                **asdict(report.counted),
                **{f"pruned_{name}": 0 for name in FIGURES},
            )
            there, new = engine_counters.c, insert.excluded
            await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["replica", "epoch"],
                    set_={
                        **{name: sa.case((new[name] > there[name], new[name]), else_=there[name]) for name in FIGURES},
                        "closed": sa.or_(there.closed, new.closed),
                        "update_time": new.update_time,
                    },
                )
            )


async def keep_pruned(connection: AsyncConnection, event_ids: Sequence[str]) -> None:
    """Notes what the events that are about to be deleted come to."""
    there = engine_counters.c
    for row in await connection.execute(exact_figures().where(usage_events.c.event_id.in_(event_ids))):
        await connection.execute(
            sa.update(engine_counters)
            .where(there.replica == row.replica, there.epoch == row.epoch)
            .values({f"pruned_{name}": there[f"pruned_{name}"] + int(getattr(row, name)) for name in FIGURES})
        )
