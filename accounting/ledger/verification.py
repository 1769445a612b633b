"""Proving the books: SQL against itself, against what the limiter counts, and against what engines counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.catalogue.catalogue import credit_limit
from accounting.engines import Agreement, compare, tokens_apart
from accounting.ledger.engine_runs import EngineRun, engine_runs
from accounting.ledger.ledger import Account, Attempt, EntryKind, account_of, usage_entries
from accounting.ledger.posting import as_attempt
from accounting.ledger.store import prepaid, to_account
from accounting.limiter.limiter import MICROS, Limiter
from accounting.quota import EventRef
from accounting.tables import (
    ledger_accounts,
    ledger_entries,
    ledger_postings,
    settlement_outbox,
    usage_corrections,
    usage_events,
    usage_rollups,
)
from naru.clock import Clock
from naru.database import Database

# So few that nobody else waits long while they are compared.
_SLICE = 2_000
_MOST_UNSETTLED = 10_000


class Check(StrEnum):
    """What is looked at."""

    EVENTS = "events"
    POSTINGS = "postings"
    CORRECTIONS = "corrections"
    BALANCES = "balances"
    UNSETTLED = "unsettled"
    OUTBOX = "outbox"
    LIMITER = "limiter"
    ENGINES = "engines"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be: how often, by how much money or how many tokens in all, and one of them."""

    check: Check
    workspace_id: str
    count: int
    amount: int
    example: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; nothing: the books hold.

    Attributes:
        exact_runs: Runs of engines that counted exactly what their events say.
        bounded_runs: Runs with events beyond what the engine told last, which is a lower bound therefore.
        uncounted_requests: How many events these are.
    """

    findings: tuple[Finding, ...]
    events: int
    entries: int
    exact_runs: int = 0
    bounded_runs: int = 0
    uncounted_requests: int = 0


@dataclass(slots=True)
class _Books:
    """What was seen so far."""

    # Events that were booked before are not kept; their entries are.
    pruned_before: int = 0
    found: dict[tuple[Check, str], Finding] = field(default_factory=dict)
    events: int = 0
    entries: int = 0
    used: Counter[str] = field(default_factory=Counter)
    credited: Counter[str] = field(default_factory=Counter)
    exact_runs: int = 0
    bounded_runs: int = 0
    uncounted_requests: int = 0

    def tell(
        self, check: Check, workspace_id: str, amount: int, example: str, *, count: int = 1, tokens: int = 0
    ) -> None:
        known = self.found.get((check, workspace_id), Finding(check, workspace_id, 0, 0, example))
        self.found[check, workspace_id] = replace(
            known, count=known.count + count, amount=known.amount + amount, tokens=known.tokens + tokens
        )

    def see_run(self, run: EngineRun) -> None:
        """One run of an engine."""
        report, booked = run.report, run.booked
        match compare(report, booked):
            case Agreement.EXACT:
                self.exact_runs += 1
            case Agreement.BOUNDED:
                self.bounded_runs += 1
                self.uncounted_requests += booked.requests - report.counted.requests
            case Agreement.WRONG:
                tokens = tokens_apart(report.counted, booked)
                self.tell(Check.ENGINES, "", 0, f"{report.replica} {report.epoch}", tokens=tokens)

    def see_entry(self, row: sa.Row[Any]) -> None:
        """One entry, with the sum of its postings and the one of its workspace."""
        self.entries += 1
        if row.total != 0 or row.sides != 2 or row.own != row.amount:
            self.tell(Check.POSTINGS, row.workspace_id, int(row.total or 0), row.entry_id)
        if EntryKind(row.kind).is_usage:
            self.used[row.workspace_id] -= row.amount
        else:
            self.credited[row.workspace_id] += row.amount


class LedgerVerifier:
    """Looks at everything there is.

    Args:
        unsettled: Up to so many attempts that were recorded before a time (microseconds) and are not settled.
        lease_seconds: What waits for no longer than two leases is on its way.
    """

    def __init__(
        self,
        *,
        database: Database,
        limiter: Limiter,
        unsettled: Callable[[int, int], Awaitable[Sequence[EventRef]]],
        clock: Clock,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._unsettled = unsettled
        self._limiter = limiter
        self._clock = clock
        self._patience = round(2 * lease_seconds * MICROS)

    async def verify(self) -> Verification:
        """Compares everything with everything. Raises NaruError SERVICE_UNAVAILABLE when Redis or the database is away."""
        now = round(self._clock.time() * MICROS)
        books = _Books()
        async with self._database.reading() as connection:
            if self._database.is_postgresql:  # one moment for all that is read
                _ = await connection.execution_options(isolation_level="REPEATABLE READ")
            query = sa.select(usage_rollups.c.pruned_before)
            books.pruned_before = (await connection.execute(query)).scalar_one()
            await self._verify_events(connection, books)
            await self._verify_other_entries(connection, books)
            await self._verify_accounts(connection, books)
            await self._verify_outbox(connection, books, now - self._patience)
            for run in await engine_runs(connection):
                books.see_run(run)
            accounts = await prepaid(connection)
        await self._verify_unsettled(books, now - self._patience)
        await self._verify_limiter(books, accounts)
        return Verification(
            tuple(found for _, found in sorted(books.found.items())),
            books.events,
            books.entries,
            books.exact_runs,
            books.bounded_runs,
            books.uncounted_requests,
        )

    async def _verify_events(self, connection: AsyncConnection, books: _Books) -> None:
        """The events and what was posted for them, slice by slice."""
        last: str | None = ""
        while last is not None:
            last = await self._verify_slice(connection, books, last)

    async def _verify_slice(self, connection: AsyncConnection, books: _Books, begin: str) -> str | None:
        """The events of one slice; returns where the next one begins."""
        ends = [await _end_of_slice(connection, table.c.event_id, begin) for table in (usage_events, ledger_entries)]
        end = min((one for one in ends if one is not None), default=None)

        def within(table: sa.Table) -> sa.ColumnElement[bool]:
            bound = table.c.event_id > begin
            return bound if end is None else sa.and_(bound, table.c.event_id <= end)

        query = sa.select(usage_events).where(within(usage_events))
        attempts = [as_attempt(row) for row in await connection.execute(query)]
        events = {one.ref.event_id for one in attempts}
        books.events += len(events)
        posted: Counter[EventRef] = Counter()
        amounts: dict[str, int] = {}
        for row in await connection.execute(_entries(within(ledger_entries))):
            books.see_entry(row)
            amounts[row.entry_id] = row.amount
            if row.event_id in events:
                posted[EventRef(row.event_id, row.attempt)] += row.amount
            elif row.booked_time >= books.pruned_before:
                books.tell(Check.EVENTS, row.workspace_id, -row.amount, row.event_id)
        # What would have to be posted is what is wrong.
        for entry in usage_entries(attempts, posted, 0):
            books.tell(Check.EVENTS, entry.workspace_id, entry.amount, entry.event_id)
        await _verify_corrections(connection, books, within(usage_corrections), attempts, amounts)
        return end

    async def _verify_other_entries(self, connection: AsyncConnection, books: _Books) -> None:
        """The entries that are about no event, and postings that are of no entry."""
        entries, last = ledger_entries.c, ""
        while True:
            query = _entries(sa.and_(entries.event_id == "", entries.entry_id > last))
            rows = (await connection.execute(query.order_by(entries.entry_id).limit(_SLICE))).all()
            for row in rows:
                books.see_entry(row)
            if len(rows) < _SLICE:
                break
            last = rows[-1].entry_id
        count = (await connection.execute(sa.select(sa.func.count()).select_from(ledger_postings))).scalar_one()
        surplus = count - 2 * books.entries
        if surplus and not any(check is Check.POSTINGS for check, _ in books.found):
            books.tell(Check.POSTINGS, "", 0, "", count=abs(surplus))

    async def _verify_accounts(self, connection: AsyncConnection, books: _Books) -> None:
        accounts = [to_account(row) for row in await connection.execute(sa.select(ledger_accounts))]
        known = {account.workspace_id: account for account in accounts}
        for workspace_id in sorted({*known, *books.used, *books.credited}):
            account = known.get(workspace_id, Account(workspace_id))
            for kept, summed in (
                (account.used, books.used[workspace_id]),
                (account.credited, books.credited[workspace_id]),
            ):
                if kept != summed:
                    books.tell(Check.BALANCES, workspace_id, kept - summed, account_of(workspace_id))

    async def _verify_outbox(self, connection: AsyncConnection, books: _Books, before: int) -> None:
        query = sa.select(sa.func.count(), sa.func.min(settlement_outbox.c.event_id)).where(
            settlement_outbox.c.create_time < before
        )
        count, example = (await connection.execute(query)).one()
        if count:
            books.tell(Check.OUTBOX, "", 0, example, count=count)

    async def _verify_unsettled(self, books: _Books, before: int) -> None:
        refs = await self._unsettled(before, _MOST_UNSETTLED)
        for start in range(0, len(refs), _SLICE):
            part = refs[start : start + _SLICE]
            for ref, known in zip(part, await self._limiter.look_up(part), strict=True):
                if not known.running:
                    books.tell(Check.UNSETTLED, "", 0, ref.event_id)

    async def _verify_limiter(self, books: _Books, accounts: Sequence[Account]) -> None:
        for account in accounts:
            limit = credit_limit(account.workspace_id, account.allowance)
            (state,) = await self._limiter.inspect([limit])
            missing = state.remaining - max(limit.limit - account.counted, 0)
            if missing > 0:
                books.tell(Check.LIMITER, account.workspace_id, missing, account_of(account.workspace_id))


async def _end_of_slice(connection: AsyncConnection, column: sa.Column[str], begin: str) -> str | None:
    query = sa.select(column).where(column > begin).order_by(column).limit(1).offset(_SLICE)
    return (await connection.execute(query)).scalar_one_or_none()


def _entries(which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Entries, each with the sum of its postings, their number, and the one of its workspace."""
    entries, sides = ledger_entries.c, ledger_postings.c
    own = sa.case((sides.account == sa.literal("workspace:") + entries.workspace_id, sides.amount))
    return (
        sa.select(
            ledger_entries,
            sa.func.sum(sides.amount).label("total"),
            sa.func.count(sides.account).label("sides"),
            sa.func.sum(own).label("own"),
        )
        .select_from(ledger_entries.outerjoin(ledger_postings, sides.entry_id == entries.entry_id))
        .where(which)
        .group_by(*ledger_entries.c)
    )


async def _verify_corrections(
    connection: AsyncConnection,
    books: _Books,
    which: sa.ColumnElement[bool],
    attempts: Sequence[Attempt],
    amounts: dict[str, int],
) -> None:
    """Each correction of an attempt that counts has its entry."""
    highest: dict[str, Attempt] = {}
    for one in attempts:
        if one.ref.event_id not in highest or highest[one.ref.event_id].ref < one.ref:
            highest[one.ref.event_id] = one
    for row in await connection.execute(sa.select(usage_corrections).where(which)):
        counts = highest.get(row.event_id)
        if counts is None or counts.ref.attempt != row.attempt or not counts.workspace_id:
            continue
        missing = row.cost + amounts.get(f"{row.event_id}.{row.attempt}.{row.evidence}", 0)
        if missing:
            books.tell(Check.CORRECTIONS, counts.workspace_id, missing, row.event_id)
