"""Reading the audit. It is written by `authsvc.audit.record`, and by nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from authsvc.audit import AuditEntry, Origin
from authsvc.tables import MICROS, audit_entries
from naru.database import Database

ANY_VERB = ".*"


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries; empty and None: all. Times in microseconds since the Unix epoch, `end_time` not included."""

    actor: str = ""
    action: str = ""
    object_id: str = ""
    workspace_id: str = ""
    start_time: int | None = None
    end_time: int | None = None


@dataclass(frozen=True, slots=True)
class AuditPosition:
    """Where an entry stands: its time in microseconds, then its id."""

    time: int
    entry_id: str


class AuditStore:
    """Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def entries(
        self, query: AuditQuery, *, after: AuditPosition | None, limit: int, oldest_first: bool = False
    ) -> list[AuditEntry]:
        """At most `limit` entries from after the position `after` on, newest first unless `oldest_first`."""
        place = sa.tuple_(audit_entries.c.time, audit_entries.c.entry_id)
        columns: Sequence[sa.Column[Any]] = (audit_entries.c.time, audit_entries.c.entry_id)
        select = sa.select(audit_entries).where(*_conditions(query)).limit(limit)
        select = select.order_by(*(column if oldest_first else column.desc() for column in columns))
        if after is not None:
            position = sa.tuple_(sa.literal(after.time), sa.literal(after.entry_id))
            select = select.where(place > position if oldest_first else place < position)
        async with self._database.reading() as connection:
            return [_to_entry(row) for row in await connection.execute(select)]


def _conditions(query: AuditQuery) -> list[sa.ColumnElement[bool]]:
    found = []
    for name in ("actor", "object_id", "workspace_id"):
        if getattr(query, name):
            found.append(audit_entries.c[name] == getattr(query, name))
    if query.action.endswith(ANY_VERB):
        found.append(audit_entries.c.action.startswith(query.action.removesuffix("*"), autoescape=True))
    elif query.action:
        found.append(audit_entries.c.action == query.action)
    if query.start_time is not None:
        found.append(audit_entries.c.time >= query.start_time)
    if query.end_time is not None:
        found.append(audit_entries.c.time < query.end_time)
    return found


def _to_entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(
        entry_id=row.entry_id,
        time=row.time / MICROS,
        origin=Origin(row.actor, row.client_address, row.request_id),
        action=row.action,
        object_id=row.object_id,
        workspace_id=row.workspace_id,
        before=row.before,
        after=row.after,
    )
