"""The ledger against what is billed, whatever is reported in whatever order."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.migrations import MIGRATIONS
from accounting.quota import EventRef, Work
from accounting.settlement import BookedEvent, UsageEvent, nothing_reported
from accounting.tables import ledger_accounts, ledger_entries, ledger_postings
from accounting.usage.store import UsageStore
from naru.database import Database
from naru.identity import Principal
from naru.testing.databases import migrated
from naru.usage import Accuracy, Evidence, Outcome, Usage

EVENTS = [f"00000000-0000-7000-8000-{number:012d}" for number in range(3)]
# Each event is one workspace's, whoever reports it.
WORKS = {event_id: Work(Principal(f"ws-{index % 2}", key_id="k")) for index, event_id in enumerate(EVENTS)}
REFS = st.builds(EventRef, st.sampled_from(EVENTS), st.sampled_from([0, 0, 1, 2]))
EVIDENCE = st.sampled_from(list(Evidence)[1:])


def report(ref: EventRef, evidence: Evidence, cost: int) -> BookedEvent:
    """A report that costs so much."""
    event = UsageEvent(ref, evidence, Accuracy.EXACT, Outcome.COMPLETED, WORKS[ref.event_id], Usage(1, 1))
    return BookedEvent(event, 1, cost, "price")


REPORTS = st.lists(st.builds(report, REFS, EVIDENCE, st.integers(0, 50)), min_size=1, max_size=6)
STEPS = st.one_of(
    st.tuples(st.just("record"), REPORTS),
    st.tuples(st.just("record twice"), REPORTS),
    st.tuples(st.just("expire"), st.lists(REFS, min_size=1, max_size=4, unique=True)),
    st.tuples(st.just("settle"), st.lists(REFS, min_size=1, max_size=4)),
)


class Model:
    """What counts, by the rules of evidence alone."""

    def __init__(self) -> None:
        self.best: dict[EventRef, tuple[Evidence, int]] = {}
        self.settled: set[EventRef] = set()

    def hear(self, ref: EventRef, evidence: Evidence, cost: int) -> None:
        if ref not in self.best or evidence > self.best[ref][0]:
            self.best[ref] = evidence, cost
        if evidence is Evidence.FINAL:
            self.settled.add(ref)

    def used(self) -> Counter[str]:
        """What each workspace owes: the cost of the highest attempt of each event, once it is settled."""
        used: Counter[str] = Counter()
        for event_id in EVENTS:
            attempts = [ref for ref in self.best if ref.event_id == event_id]
            if attempts and max(attempts) in self.settled:
                used[WORKS[event_id].principal.workspace_id] += self.best[max(attempts)][1]
        return used


async def check(empty: Path, steps: list[tuple[str, list[BookedEvent] | list[EventRef]]]) -> None:
    """Does all of it, and compares after every step."""
    model = Model()
    with TemporaryDirectory() as folder:
        database = Database(f"sqlite+aiosqlite:///{shutil.copy(empty, folder)}")
        try:
            store = UsageStore(database)
            for now, (step, given_items) in enumerate(steps):
                reports = [one for one in given_items if isinstance(one, BookedEvent)]
                refs = [one for one in given_items if isinstance(one, EventRef)]
                if reports:
                    for _ in range(2 if step == "record twice" else 1):
                        await store.record(reports, now)
                    for one in reports:
                        model.hear(one.event.ref, one.event.evidence, one.cost)
                elif step == "expire":
                    leases = [BookedEvent(nothing_reported(ref, WORKS[ref.event_id]), 1) for ref in refs]
                    await store.expire(leases, now)
                    for ref in refs:
                        model.hear(ref, Evidence.NONE, 0)
                        model.settled.add(ref)
                else:
                    await store.settle(refs, now)
                    model.settled.update(ref for ref in refs if ref in model.best)
                async with database.reading() as connection:
                    entries = (await connection.execute(sa.select(ledger_entries))).all()
                    postings = (await connection.execute(sa.select(ledger_postings))).all()
                    accounts = (await connection.execute(sa.select(ledger_accounts))).all()
                posted: Counter[str] = Counter()
                for entry in entries:
                    posted[entry.workspace_id] -= entry.amount
                assert +posted == +model.used()
                assert {one.workspace_id: one.used for one in accounts} == dict(posted)
                assert sum(one.amount for one in postings) == 0
                assert len(postings) == 2 * len(entries)
        finally:
            await database.close()


async def make_empty(path: Path) -> None:
    """A database without events."""
    async with migrated(f"sqlite+aiosqlite:///{path}", MIGRATIONS):
        pass


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every example begins with."""
    path = tmp_path_factory.mktemp("books") / "empty.db"
    asyncio.run(make_empty(path))
    return path


@settings(max_examples=80)
@given(steps=st.lists(STEPS, min_size=1, max_size=12))
def test_usage_posted_is_usage_billed(empty: Path, steps: list[tuple[str, list[BookedEvent] | list[EventRef]]]) -> None:
    """Reports of any evidence and attempt, duplicates, ends of leases: the ledger says what the highest attempt costs."""
    asyncio.run(check(empty, steps))
