"""The SQL of accounts and entries: what is read of them, and what somebody puts on an account."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.bulk import upsert
from accounting.catalogue.store import count_change, lock_catalogue
from accounting.ledger.ledger import Account, Entry, EntryKind
from accounting.ledger.posting import insert_entries
from accounting.tables import ledger_accounts, ledger_entries, settlement_outbox, usage_events
from naru.database import Database

Position = tuple[int | str, ...]
Change = Callable[[Account], Awaitable[Account]]


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries of a workspace. Empty and None do not narrow; times are microseconds since the Unix epoch."""

    workspace_id: str
    kinds: tuple[EntryKind, ...] = ()
    start_time: int | None = None
    end_time: int | None = None
    event_id: str = ""


class LedgerStore:
    """Keeps the ledger. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def account(self, workspace_id: str) -> Account:
        """How it stands; all zeros for one that never had an entry."""
        async with self._database.reading() as connection:
            query = sa.select(ledger_accounts).where(ledger_accounts.c.workspace_id == workspace_id)
            row = (await connection.execute(query)).one_or_none()
        return Account(workspace_id) if row is None else to_account(row)

    async def entries(self, which: EntryFilter, *, after: Position | None, limit: int) -> list[Entry]:
        """At most `limit` entries, those booked last first, after the one of this (booked_time, entry_id)."""
        columns = ledger_entries.c
        order = (columns.booked_time, columns.entry_id)
        query = (
            sa.select(ledger_entries)
            .where(columns.workspace_id == which.workspace_id)
            .order_by(*(column.desc() for column in order))
            .limit(limit)
        )
        if which.kinds:
            query = query.where(columns.kind.in_([kind.value for kind in which.kinds]))
        if which.start_time is not None:
            query = query.where(columns.booked_time >= which.start_time)
        if which.end_time is not None:
            query = query.where(columns.booked_time < which.end_time)
        if which.event_id:
            query = query.where(columns.event_id == which.event_id)
        if after is not None:
            query = query.where(sa.tuple_(*order) < sa.tuple_(*map(sa.literal, after)))
        async with self._database.reading() as connection:
            return [to_entry(row) for row in await connection.execute(query)]

    @asynccontextmanager
    async def at_rest(self, workspace_id: str) -> AsyncIterator[Account | None]:
        """The account, which nobody changes inside the block.

        None while the limiter has still to be told of something that the account says already.
        """
        async with self._database.writing() as connection:
            account = await _locked(connection, workspace_id)
            untold = sa.exists().where(
                settlement_outbox.c.event_id == usage_events.c.event_id, usage_events.c.workspace_id == workspace_id
            )
            waiting = (await connection.execute(sa.select(untold))).scalar_one()
            yield None if waiting else account

    async def prepaid(self) -> Sequence[Account]:
        """The accounts that are paid in advance."""
        async with self._database.reading() as connection:
            return await prepaid(connection)

    async def credit(self, entry: Entry, change: Change) -> tuple[Entry, Account, bool]:
        """Posts the entry unless there is one of its id, and makes the account what `change`, which may raise, makes of it.

        Nobody else changes the account meanwhile. Returns the entry that is there now, the account, and whether the entry was
        added.
        """
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            found = await _entry(connection, entry.entry_id)
            account = await _locked(connection, entry.workspace_id if found is None else found.workspace_id)
            if found is not None:
                return found, account, False
            after = await change(account)
            await insert_entries(connection, [entry])
            await _save(connection, account, after)
        return entry, after, True

    async def change(self, workspace_id: str, change: Change) -> Account:
        """Makes the account what `change`, which may raise, makes of it; nobody else changes it meanwhile."""
        async with self._database.writing() as connection:
            await lock_catalogue(connection)
            account = await _locked(connection, workspace_id)
            after = await change(account)
            if after != account:
                await _save(connection, account, after)
        return after


def to_account(row: sa.Row[Any]) -> Account:
    """A row of `ledger_accounts`."""
    return Account(row.workspace_id, row.credited, row.used, row.overdraft, row.lowered)


def to_entry(row: sa.Row[Any]) -> Entry:
    """A row of `ledger_entries`."""
    return Entry(
        row.entry_id,
        EntryKind(row.kind),
        row.workspace_id,
        row.amount,
        row.booked_time,
        row.create_time,
        row.event_id,
        row.attempt,
        row.evidence,
        row.description,
        row.request_id,
        row.caller,
    )


async def prepaid(connection: AsyncConnection) -> Sequence[Account]:
    """The accounts that are paid in advance."""
    query = sa.select(ledger_accounts).where(ledger_accounts.c.overdraft.is_not(None))
    return [to_account(row) for row in await connection.execute(query.order_by(ledger_accounts.c.workspace_id))]


async def _entry(connection: AsyncConnection, entry_id: str) -> Entry | None:
    row = (
        await connection.execute(sa.select(ledger_entries).where(ledger_entries.c.entry_id == entry_id))
    ).one_or_none()
    return None if row is None else to_entry(row)


async def _locked(connection: AsyncConnection, workspace_id: str) -> Account:
    """The account, which nobody else changes until the transaction ends."""
    insert = upsert(connection.dialect.name, ledger_accounts).on_conflict_do_nothing(index_elements=["workspace_id"])
    await connection.execute(insert.values(workspace_id=workspace_id, credited=0, used=0))
    query = sa.select(ledger_accounts).where(ledger_accounts.c.workspace_id == workspace_id).with_for_update()
    return to_account((await connection.execute(query)).one())


async def _save(connection: AsyncConnection, before: Account, after: Account) -> None:
    await connection.execute(
        sa.update(ledger_accounts)
        .where(ledger_accounts.c.workspace_id == after.workspace_id)
        .values(credited=after.credited, overdraft=after.overdraft, lowered=after.lowered)
    )
    # Where nothing is paid in advance, no limit depends on it.
    if before.overdraft is not None or after.overdraft is not None:
        await count_change(connection)
