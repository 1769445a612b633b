"""Proving the books: what holds is told from what does not."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from accounting.ledger.ledger import CreditWish, EntryKind
from accounting.ledger.management import LedgerManager
from accounting.ledger.store import LedgerStore
from accounting.ledger.verification import Check, LedgerVerifier
from accounting.limiter.balances import Balances
from naru.identity import Caller, ServiceName
from naru.ids import uuid7
from naru.usage import Evidence
from tests.integration.accounting.harness import START, Books, booked, new_ref, report
from tests.integration.accounting.test_costs import price, sell
from tests.support.copies import replace


def verifier(books: Books) -> LedgerVerifier:
    return LedgerVerifier(
        database=books.database,
        limiter=books.limiter,
        unsettled=books.store.unsettled,
        clock=books.clock,
        lease_seconds=60,
    )


async def busy(books: Books) -> LedgerManager:
    """Makes all kinds of entries: usage, a correction, a retry, a credit and an adjustment."""
    await books.epochs.check()
    await sell(books, price(START))
    manager = LedgerManager(
        store=LedgerStore(books.database),
        limiter=books.limiter,
        balances=Balances(books.limiter),
        refresh=books.catalogue.refresh,
        clock=books.clock,
        new_id=uuid7,
    )
    operator = Caller(service=ServiceName.OPERATOR)
    await manager.credit(operator, "ws-1", CreditWish(EntryKind.CREDIT, 100_000))
    await manager.credit(operator, "ws-1", CreditWish(EntryKind.ADJUSTMENT, -300))
    await books.recorder.record([report(await books.granted())])
    early, first = await books.granted(), await books.granted()
    await books.recorder.record([report(early, Evidence.DELIVERED, (7, 3)), report(first, Evidence.DELIVERED, (7, 3))])
    books.advance(61)
    await books.sweeper.sweep()
    await books.recorder.record([report(early, Evidence.FINAL, (7, 5))])
    await books.recorder.record([report(replace(first, attempt=1))])
    return manager


async def test_books_that_hold(books: Books) -> None:
    """Everything is looked at, and nothing is found; not in an empty ledger either."""
    nothing = await verifier(books).verify()
    assert (nothing.findings, nothing.events, nothing.entries) == ((), 0, 0)
    await busy(books)
    found = await verifier(books).verify()
    assert (found.findings, found.events, found.entries) == ((), 3, 2 + 1 + 2 + 3)


ENTRY = """INSERT INTO ledger_entries VALUES ('{id}', 'usage', 'ws-1', '{event}', 0, 3, -40, '', '', '', {time}, 1)"""
SIDES = """INSERT INTO ledger_postings VALUES ('{id}', 'workspace:ws-1', -40), ('{id}', 'revenue', 40)"""
PLANTED: dict[str, tuple[list[str], dict[Check, tuple[int, int]]]] = {
    "an event that costs more": (
        ["UPDATE usage_events SET cost = cost + 11 WHERE attempt = 1"],
        {Check.EVENTS: (1, -11)},
    ),
    "an event that does not count any more": (
        ["UPDATE usage_events SET settled_time = NULL, record_time = 9000000000000000 WHERE attempt = 1"],
        {Check.EVENTS: (1, 137)},
    ),
    "an event that is gone": (
        ["DELETE FROM usage_events WHERE attempt = 1", "DELETE FROM usage_events WHERE attempt = 0 AND evidence = 2"],
        {Check.EVENTS: (3, 137)},
    ),
    "an entry without an event": (
        [ENTRY.format(id="x.0.3", event="x", time=START), SIDES.format(id="x.0.3")],
        {Check.EVENTS: (1, 40), Check.BALANCES: (1, -40)},
    ),
    "an entry without postings": (
        [ENTRY.format(id="x.0.3", event="x", time=START)],
        {Check.EVENTS: (1, 40), Check.BALANCES: (1, -40), Check.POSTINGS: (1, 0)},
    ),
    "postings without an entry": ([SIDES.format(id="y")], {Check.POSTINGS: (2, 0)}),
    "a correction that says something else": (
        ["UPDATE usage_corrections SET cost = cost + 3"],
        {Check.CORRECTIONS: (1, 3)},
    ),
    "an account that was changed": (
        ["UPDATE ledger_accounts SET credited = credited + 5"],
        {Check.BALANCES: (1, 5)},
    ),
    "a report that waits for nobody": (
        ["UPDATE usage_events SET settled_time = NULL, cost = 0 WHERE attempt = 1"],
        {Check.EVENTS: (1, 137), Check.UNSETTLED: (1, 0)},
    ),
    "an outbox that is not emptied": (
        ["INSERT INTO settlement_outbox VALUES ('z', 0, 3, 0, 0, 1, 0)"],
        {Check.OUTBOX: (1, 0)},
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
async def test_what_does_not_hold_is_found(books: Books, planted: str) -> None:
    """Each by its name, how often, and by how much."""
    await busy(books)
    books.advance(121)
    statements, expected = PLANTED[planted]
    async with books.database.writing() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))
    found = await verifier(books).verify()
    assert {one.check: (one.count, one.amount) for one in found.findings} == expected


async def test_a_limiter_that_counts_too_little_is_found(books: Books) -> None:
    """And the sweeper puts it right."""
    await busy(books)
    # What the limiter never knew of, the ledger does.
    await books.store.record([replace(booked(report(new_ref())), cost=77)], START)
    books.advance(121)
    (finding,) = (await verifier(books).verify()).findings[:1]
    assert (finding.check, finding.workspace_id, finding.amount) == (Check.LIMITER, "ws-1", 77)
    await books.sweeper.sweep()
    assert (await verifier(books).verify()).findings == ()


async def test_entries_outlive_their_events(books: Books) -> None:
    """Events are kept for some time only; what was posted for them stays, and is no finding."""
    await busy(books)
    async with books.database.writing() as connection:
        await connection.execute(sa.text("DELETE FROM usage_events"))
        await connection.execute(sa.text("UPDATE usage_rollups SET pruned_before = 9000000000000000"))
    found = await verifier(books).verify()
    assert (found.findings, found.events, found.entries) == ((), 0, 8)


async def test_more_than_one_slice(books: Books) -> None:
    """The slices together are everything: a single wrong one of many is found."""
    await books.epochs.check()
    events = [replace(booked(report(new_ref())), cost=1) for _ in range(4_100)]
    for start in range(0, len(events), 1_000):
        await books.store.record(events[start : start + 1_000], START)
    await books.recorder.deliver_outbox()
    assert (await verifier(books).verify()).events == 4_100
    ids = sorted(one.event.ref.event_id for one in events)
    wrong = sa.text("UPDATE usage_events SET cost = 2 WHERE event_id = :event_id")
    async with books.database.writing() as connection:
        await connection.execute(wrong, [{"event_id": ids[index]} for index in (0, 1_999, 2_000, 2_001, 4_099)])
    found = await verifier(books).verify()
    assert [(one.check, one.count) for one in found.findings if one.check is Check.EVENTS] == [(Check.EVENTS, 5)]
    assert (found.events, found.entries) == (4_100, 4_100)
