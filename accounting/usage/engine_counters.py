"""The SQL of what engines counted: the latest figures of each run, and what was pruned of its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.bulk import Bulk, insert_given
from accounting.engines import EngineReport
from accounting.ledger.engine_runs import FIGURES, exact_figures
from accounting.tables import engine_counters, usage_events


async def keep_counters(connection: AsyncConnection, report: EngineReport, now: int) -> None:
    """Keeps a report in the transaction that keeps its events, before these: who prunes events takes both in that order.

    What comes late or twice changes nothing: figures only grow. `now` is in microseconds since the Unix epoch.
    """
    row = {
        "replica": report.replica,
        "epoch": report.epoch,
        "closed": report.closed,
        "update_time": now,
        **asdict(report.counted),
        **{f"pruned_{name}": 0 for name in FIGURES},
    }
    await _KEEP.execute(connection, {name: [value] for name, value in row.items()})


async def keep_pruned(connection: AsyncConnection, event_ids: Sequence[str]) -> None:
    """Notes what the events that are about to be deleted come to."""
    there = engine_counters.c
    for row in await connection.execute(exact_figures().where(usage_events.c.event_id.in_(event_ids))):
        await connection.execute(
            sa.update(engine_counters)
            .where(there.replica == row.replica, there.epoch == row.epoch)
            .values({f"pruned_{name}": there[f"pruned_{name}"] + int(getattr(row, name)) for name in FIGURES})
        )


def _keep(dialect: str) -> sa.ClauseElement:
    pruned = [f"pruned_{name}" for name in FIGURES]
    insert = insert_given(dialect, engine_counters, ["replica", "epoch", "closed", "update_time", *FIGURES, *pruned])
    there, new = engine_counters.c, insert.excluded
    return insert.on_conflict_do_update(
        index_elements=["replica", "epoch"],
        set_={
            **{name: sa.case((new[name] > there[name], new[name]), else_=there[name]) for name in FIGURES},
            "closed": sa.or_(there.closed, new.closed),
            "update_time": new.update_time,
        },
    )


_KEEP = Bulk(_keep)
