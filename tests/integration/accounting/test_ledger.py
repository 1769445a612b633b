"""What settling posts, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from accounting.migrations import MIGRATIONS
from accounting.quota import EventRef
from accounting.settlement import BookedEvent, nothing_reported
from accounting.tables import ledger_accounts, ledger_entries, ledger_postings
from accounting.usage.report_store import ReportStore
from accounting.usage.reporting import UsageQuery
from accounting.usage.store import UsageStore
from naru.database import Database
from naru.identity import Principal
from naru.usage import Evidence
from tests.integration.accounting.harness import START, WORK, new_ref, report, upgrade_to
from tests.support.copies import replace

DELIVERED, FINAL = Evidence.DELIVERED, Evidence.FINAL


def paid(ref: EventRef, cost: int, evidence: Evidence = FINAL, workspace_id: str = "ws-1") -> BookedEvent:
    """A report that costs so much."""
    work = replace(WORK, principal=Principal(workspace_id, key_id="key-1"))
    return BookedEvent(replace(report(ref, evidence), work=work), START, cost, "price")


def lease(ref: EventRef) -> BookedEvent:
    """What is known of an attempt that nobody reported."""
    return BookedEvent(nothing_reported(ref, WORK), START)


@dataclass(frozen=True)
class Posted:
    """What is in the ledger."""

    entries: list[Any]
    amounts: dict[str, int]
    used: dict[str, int]


async def posted(database: Database) -> Posted:
    """All of it; entries must be whole."""
    async with database.reading() as connection:
        entries = list((await connection.execute(sa.select(ledger_entries))).all())
        postings = list((await connection.execute(sa.select(ledger_postings))).all())
        accounts = list((await connection.execute(sa.select(ledger_accounts))).all())
    sums: Counter[str] = Counter()
    amounts: Counter[str] = Counter()
    for one in postings:
        sums[one.entry_id] += one.amount
        amounts[one.account] += one.amount
    assert set(sums) == {entry.entry_id for entry in entries}
    assert not any(sums.values())
    assert len(postings) == 2 * len(entries)
    used = {account.workspace_id: account.used for account in accounts}
    assert all(used[name.partition(":")[2]] == -amounts[name] for name in amounts if name != "revenue")
    return Posted(sorted(entries, key=lambda entry: (entry.create_time, entry.entry_id)), dict(amounts), used)


async def test_usage_is_posted_once(store: UsageStore, database: Database) -> None:
    """With the event, booked when it was reserved; duplicates, alone, in one batch and at once, post nothing more."""
    ref = new_ref()
    await store.record([paid(ref, 137), paid(ref, 137)], START + 5)
    await asyncio.gather(*(store.record([paid(ref, 137)], START + 9) for _ in range(20)))
    await store.settle([ref], START + 9)
    await store.expire([lease(ref)], START + 9)
    found = await posted(database)
    (entry,) = found.entries
    assert (entry.kind, entry.workspace_id, entry.amount) == ("usage", "ws-1", -137)
    assert (entry.event_id, entry.attempt, entry.evidence) == (ref.event_id, 0, 3)
    assert (entry.booked_time, entry.create_time) == (START, START + 5)
    assert found.amounts == {"workspace:ws-1": -137, "revenue": 137}


async def test_workspaces_that_share_batches_do_not_hold_each_other_up(store: UsageStore, database: Database) -> None:
    """Batches of what is known of the one and new of the other, and the other way round, at once."""
    for turn in range(15):
        known = {name: new_ref() for name in ("ws-1", "ws-2")}
        await store.record([paid(ref, 5, DELIVERED, name) for name, ref in known.items()], START)
        await asyncio.gather(
            *(
                store.record([paid(known[one], 7, FINAL, one), paid(new_ref(), 3, FINAL, other)], START + turn)
                for one, other in (("ws-1", "ws-2"), ("ws-2", "ws-1"))
            )
        )
    assert (await posted(database)).used == {"ws-1": 150, "ws-2": 150}


async def test_what_costs_nothing_posts_nothing(store: UsageStore, database: Database) -> None:
    """Nor does what does not count yet."""
    await store.record([paid(new_ref(), 0), paid(new_ref(), 5, DELIVERED)], START)
    await store.expire([lease(new_ref())], START)
    assert (await posted(database)).entries == []


async def test_the_end_of_a_lease_posts(store: UsageStore, database: Database) -> None:
    """By the best evidence there is."""
    ref, other = new_ref(), new_ref()
    await store.record([paid(ref, 50, DELIVERED), paid(other, 7, DELIVERED)], START)
    await store.expire([lease(ref)], START + 60)
    await store.settle([other], START + 60)
    await store.settle([ref, other], START + 61)
    assert (await posted(database)).amounts == {"workspace:ws-1": -57, "revenue": 57}


async def test_a_correction_posts_the_difference(store: UsageStore, database: Database) -> None:
    """Up and down, in the original time."""
    for first, second in ((50, 70), (50, 20), (0, 9), (50, 50)):
        ref = new_ref()
        await store.record([paid(ref, first, DELIVERED)], START)
        await store.expire([lease(ref)], START + 60)
        await store.record([paid(ref, second)], START + 90)
        await store.record([paid(ref, second)], START + 91)
    found = await posted(database)
    assert Counter((entry.kind, entry.amount) for entry in found.entries) == {
        ("usage", -50): 3,
        ("correction", -20): 1,
        ("correction", 30): 1,
        ("usage", -9): 1,
    }
    assert {entry.booked_time for entry in found.entries} == {START}
    assert found.used == {"ws-1": 70 + 20 + 9 + 50}


async def test_a_later_attempt_takes_the_earlier_ones_back(store: UsageStore, database: Database) -> None:
    """When it is first heard of; it is billed itself once it is settled."""
    first = new_ref()
    second = replace(first, attempt=1)
    await store.record([paid(first, 100)], START)
    await store.record([paid(second, 30, DELIVERED)], START + 1)
    assert (await posted(database)).used == {"ws-1": 0}
    await store.record([paid(second, 40)], START + 2)
    found = await posted(database)
    assert [(entry.kind, entry.attempt, entry.amount) for entry in found.entries] == [
        ("usage", 0, -100),
        ("correction", 0, 100),
        ("usage", 1, -40),
    ]


@pytest.mark.parametrize("late", [DELIVERED, FINAL])
async def test_an_earlier_attempt_that_reports_late_posts_nothing(
    store: UsageStore, database: Database, late: Evidence
) -> None:
    """Whatever it says, and however its lease ends."""
    third = replace(new_ref(), attempt=2)
    await store.record([paid(third, 40)], START)
    for attempt in (0, 1):
        await store.record([paid(replace(third, attempt=attempt), 100, late)], START + 1)
        await store.expire([lease(replace(third, attempt=attempt))], START + 60)
        await store.record([paid(replace(third, attempt=attempt), 200)], START + 70)
    found = await posted(database)
    assert [(entry.attempt, entry.amount) for entry in found.entries] == [(2, -40)]


async def test_attempts_that_race_bill_the_last(store: UsageStore, database: Database) -> None:
    """Three attempts reported at the same time, in batches of several events, forty times over."""
    events = [new_ref() for _ in range(40)]
    await asyncio.gather(
        *(
            store.record(
                [paid(replace(ref, attempt=attempt), 10**attempt) for ref in events[start : start + 10]], START
            )
            for start in range(0, 40, 10)
            for attempt in (0, 2, 1)
        ),
        *(store.expire([lease(ref)], START) for ref in events[:10]),
    )
    assert (await posted(database)).used == {"ws-1": 40 * 100}


async def test_batches_that_overlap_do_not_wait_for_each_other_for_ever(store: UsageStore, database: Database) -> None:
    """The same events in every order, of several workspaces: each is billed once."""
    refs = [new_ref() for _ in range(4)]
    orders = list(permutations(range(4)))
    await asyncio.gather(
        *(
            store.record([paid(refs[index], 5, workspace_id=f"ws-{index % 2}") for index in order], START)
            for order in orders
        )
    )
    assert (await posted(database)).used == {"ws-0": 10, "ws-1": 10}


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_postings"])
@pytest.mark.parametrize("change", ["UPDATE {} SET amount = 0", "DELETE FROM {}"])
async def test_nobody_changes_what_was_posted(store: UsageStore, database: Database, table: str, change: str) -> None:
    """The database itself refuses."""
    await store.record([paid(new_ref(), 5)], START)
    with pytest.raises(DBAPIError, match="the ledger is immutable"):
        async with database.writing() as connection:
            await connection.execute(sa.text(change.format(table)))
    assert (await posted(database)).used == {"ws-1": 5}


async def test_an_installation_that_is_upgraded_has_entries_for_what_it_used(database_url: str) -> None:
    """Also where a correction or a later attempt came in between."""
    database = Database(database_url)
    async with database.writing() as connection:
        await connection.run_sync(upgrade_to, "0002")
        for attempt, cost, settled in ((0, 70, START), (1, 30, START)):
            await connection.execute(sa.text(_EVENT), {"e": "e1", "a": attempt, "c": cost, "s": settled})
        await connection.execute(sa.text(_EVENT), {"e": "e2", "a": 0, "c": 9, "s": START})
        await connection.execute(sa.text(_CORRECTION), {"e": "e2", "c": 4})
        await connection.execute(sa.text(_EVENT), {"e": "e3", "a": 0, "c": 50, "s": None})
    await MIGRATIONS.upgrade(database)
    found = await posted(database)
    assert sorted((entry.entry_id, entry.kind, entry.amount) for entry in found.entries) == [
        ("e1.1.3", "usage", -30),
        ("e2.0.2", "usage", -5),
        ("e2.0.3", "correction", -4),
    ]
    assert found.used == {"ws": 39}
    await database.close()


_EVENT = """
    INSERT INTO usage_events (event_id, attempt, evidence, accuracy, outcome, key_id, user_id, service_account, workspace_id,
        tier, requested_model, served_model, endpoint, prompt_tokens, completion_tokens, cached_prompt_tokens,
        reasoning_tokens, reserve_time, request_id, replica, epoch, record_time, settled_time, cost)
    VALUES (:e, :a, 3, 'exact', 'completed', '', '', '', 'ws', '', '', '', '', 0, 0, 0, 0, 1, '', '', '', 1, :s, :c)
"""
_CORRECTION = """
    INSERT INTO usage_corrections (event_id, attempt, evidence, previous_evidence, prompt_tokens, completion_tokens,
        cached_prompt_tokens, reasoning_tokens, reserve_time, create_time, cost)
    VALUES (:e, 0, 3, 2, 0, 0, 0, 0, 1, 1, :c)
"""


@pytest.mark.parametrize("seed", range(4))
async def test_the_ledger_is_what_is_billed(
    store: UsageStore, database: Database, reports: ReportStore, seed: int
) -> None:
    """Whatever is reported in whatever order, twice and at once: usage comes to the cost of what counts."""
    random = Random(seed)
    events = [new_ref().event_id for _ in range(6)]

    async def act() -> None:
        refs = [EventRef(random.choice(events), random.choice((0, 0, 0, 1, 2))) for _ in range(random.randint(1, 5))]
        match random.randint(0, 3):
            case 0:
                await store.expire([lease(ref) for ref in set(refs)], START)
            case 1:
                await store.settle(refs, START)
            case _:
                batch = [paid(ref, random.randint(0, 50), random.choice(list(Evidence)[1:])) for ref in refs]
                await store.record(random.choice(([*batch, *batch], batch)), START)

    for _ in range(15):
        await asyncio.gather(*(act() for _ in range(random.choice((1, 1, 4)))))
        rows = await reports.usage(UsageQuery(), None, 10)
        assert sum((await posted(database)).used.values()) == sum(row.cost for row in rows)
