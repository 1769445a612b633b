"""The SQL of comparing events with what engines counted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.engines import EngineFigures, EngineReport
from accounting.tables import engine_counters, usage_events
from naru.usage import Accuracy, Evidence

FIGURES = tuple(field.name for field in fields(EngineFigures))
"""The columns of figures."""


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What an engine told of one run, and what the exact events of it come to, those included that were pruned."""

    report: EngineReport
    booked: EngineFigures


def exact_figures() -> sa.Select[Any]:
    """What the exact events of each run of an engine come to; all attempts, since the engine worked for each."""
    columns = usage_events.c
    return (
        sa.select(
            columns.replica,
            columns.epoch,
            sa.func.count().label("requests"),
            *(sa.func.sum(columns[name]).label(name) for name in FIGURES if name != "requests"),
        )
        .where(columns.evidence == Evidence.FINAL.value, columns.accuracy == Accuracy.EXACT.value)
        .group_by(columns.replica, columns.epoch)
    )


async def engine_runs(connection: AsyncConnection) -> list[EngineRun]:
    """All runs of which an engine told what it counted."""
    kept = {(row.replica, row.epoch): _figures(row) for row in await connection.execute(exact_figures())}
    return [
        EngineRun(
            EngineReport(row.replica, row.epoch, _figures(row), row.closed),
            kept.get((row.replica, row.epoch), EngineFigures()) + _figures(row, "pruned_"),
        )
        for row in await connection.execute(sa.select(engine_counters))
    ]


def _figures(row: sa.Row[Any], prefix: str = "") -> EngineFigures:
    return EngineFigures(*(int(getattr(row, prefix + name)) for name in FIGURES))
