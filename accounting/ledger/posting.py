"""Posting to the ledger, within the transaction of whoever settles or credits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.bulk import Bulk, insert_given
from accounting.ledger.ledger import Attempt as LedgerAttempt
from accounting.ledger.ledger import Entry, postings, used_by
from accounting.quota import EventRef
from accounting.tables import ledger_accounts, ledger_entries, ledger_postings

_ENTRY_COLUMNS = tuple(field.name for field in fields(Entry))


async def post_usage(connection: AsyncConnection, entries: Sequence[Entry]) -> None:
    """Posts entries of usage that are not there yet, and adds them to what their workspaces used.

    The accounts come last in every transaction, once and in one order: nobody waits for another who waits for them.
    """
    added = await insert_entries(connection, entries)
    used = used_by(added)
    if not used:
        return
    workspaces = sorted(used)
    columns: dict[str, Sequence[Any]] = {
        "workspace_id": workspaces,
        "credited": [0] * len(workspaces),
        "used": [used[one] for one in workspaces],
    }
    await _ADD_USED.execute(connection, columns)


async def insert_entries(connection: AsyncConnection, entries: Sequence[Entry]) -> list[Entry]:
    """Inserts the entries that are not there yet with their postings, and returns them."""
    if not entries:
        return []
    ordered = sorted(entries, key=attrgetter("entry_id"))
    columns = {name: list(map(attrgetter(name), ordered)) for name in _ENTRY_COLUMNS}
    inserted = set((await _INSERT_ENTRIES.execute(connection, columns)).scalars())
    added = [entry for entry in ordered if entry.entry_id in inserted]
    if added:
        sides = [(entry.entry_id, side) for entry in added for side in postings(entry)]
        await _INSERT_POSTINGS.execute(
            connection,
            {
                "entry_id": [entry_id for entry_id, _ in sides],
                "account": [side.account for _, side in sides],
                "amount": [side.amount for _, side in sides],
            },
        )
    return added


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


async def posted_for(connection: AsyncConnection, event_ids: Collection[str]) -> Mapping[EventRef, int]:
    """What the entries of each attempt of the events come to so far."""
    entries = ledger_entries.c
    query = (
        sa.select(entries.event_id, entries.attempt, sa.func.sum(entries.amount).label("amount"))
        .where(entries.event_id.in_(sorted(event_ids)))
        .group_by(entries.event_id, entries.attempt)
    )
    return {EventRef(row.event_id, row.attempt): int(row.amount) for row in await connection.execute(query)}


def _insert_entries(dialect: str) -> sa.ClauseElement:
    insert = insert_given(dialect, ledger_entries, _ENTRY_COLUMNS)
    return insert.on_conflict_do_nothing(index_elements=["entry_id"]).returning(ledger_entries.c.entry_id)


def _insert_postings(dialect: str) -> sa.ClauseElement:
    return insert_given(dialect, ledger_postings, ("entry_id", "account", "amount"))


def _add_used(dialect: str) -> sa.ClauseElement:
    insert = insert_given(dialect, ledger_accounts, ("workspace_id", "credited", "used"))
    return insert.on_conflict_do_update(
        index_elements=["workspace_id"], set_={"used": ledger_accounts.c.used + insert.excluded.used}
    )


_INSERT_ENTRIES, _INSERT_POSTINGS, _ADD_USED = Bulk(_insert_entries), Bulk(_insert_postings), Bulk(_add_used)
