"""Posting to the ledger, within the transaction of whoever settles or credits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.ledger.ledger import Attempt as LedgerAttempt
from accounting.ledger.ledger import Entry, postings, usage_entries, used_by
from accounting.quota import EventRef
from accounting.tables import ledger_accounts, ledger_entries, ledger_postings, usage_events


async def post_usage(connection: AsyncConnection, entries: Sequence[Entry]) -> None:
    """Posts entries of usage that are not there yet, and adds them to what their workspaces used.

    The accounts come last in every transaction and in one order: nobody waits for another who waits for them.
    """
    added = await insert_entries(connection, entries)
    used = used_by(added)
    if not used:
        return
    insert = upsert(connection, ledger_accounts)
    statement = insert.on_conflict_do_update(
        index_elements=["workspace_id"], set_={"used": ledger_accounts.c.used + insert.excluded.used}
    )
    rows = [{"workspace_id": one, "credited": 0, "used": used[one]} for one in sorted(used)]
    await connection.execute(statement, rows)


async def insert_entries(connection: AsyncConnection, entries: Sequence[Entry]) -> list[Entry]:
    """Inserts the entries that are not there yet with their postings, and returns them."""
    if not entries:
        return []
    statement = (
        upsert(connection, ledger_entries)
        .on_conflict_do_nothing(index_elements=["entry_id"])
        .returning(ledger_entries.c.entry_id)
    )
    ordered = sorted(entries, key=lambda entry: entry.entry_id)
    inserted = set((await connection.execute(statement, [_columns(entry) for entry in ordered])).scalars())
    added = [entry for entry in ordered if entry.entry_id in inserted]
    if added:
        sides = [{"entry_id": entry.entry_id, **side._asdict()} for entry in added for side in postings(entry)]
        await connection.execute(sa.insert(ledger_postings), sides)
    return added


async def post_events(connection: AsyncConnection, event_ids: Collection[str], now: int) -> None:
    """Posts what is missing for the ledger to say of events what they cost. All of their attempts must be locked."""
    if not event_ids:
        return
    query = sa.select(usage_events).where(usage_events.c.event_id.in_(sorted(event_ids)))
    attempts = [as_attempt(row) for row in await connection.execute(query)]
    await post_usage(connection, usage_entries(attempts, await _posted(connection, event_ids), now))


def as_attempt(row: sa.Row[Any]) -> LedgerAttempt:
    """A row of usage as the ledger sees it."""
    return LedgerAttempt(
        EventRef(row.event_id, row.attempt),
        row.workspace_id,
        row.evidence,
        row.cost,
        row.reserve_time,
        row.settled_time is not None,
    )


def upsert(connection: AsyncConnection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An insert that may say what to do about conflicts: the two dialects have the same clause, each in its own class."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


async def _posted(connection: AsyncConnection, event_ids: Collection[str]) -> Mapping[EventRef, int]:
    entries = ledger_entries.c
    query = (
        sa.select(entries.event_id, entries.attempt, sa.func.sum(entries.amount).label("amount"))
        .where(entries.event_id.in_(sorted(event_ids)))
        .group_by(entries.event_id, entries.attempt)
    )
    return {EventRef(row.event_id, row.attempt): int(row.amount) for row in await connection.execute(query)}


def _columns(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "kind": entry.kind.value}
