"""Sums by the hour: whatever happens in whichever order, they and what they do not have yet are exactly what was used."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.migrations import MIGRATIONS
from accounting.quota import EventRef, Work
from accounting.settlement import BookedEvent, UsageEvent
from accounting.tables import usage_events
from accounting.usage.counting import HOUR_MICROS
from accounting.usage.report_store import ReportStore
from accounting.usage.reporting import Dimension, UsageQuery, UsageRow
from accounting.usage.rollup_store import RollupStore
from accounting.usage.rollups import Roller
from accounting.usage.store import UsageStore
from naru.database import Database
from naru.identity import Principal
from naru.ids import uuid7
from naru.metrics import Metrics
from naru.testing import databases
from naru.usage import Accuracy, Evidence, Outcome, Usage
from tests.integration.accounting.harness import LOG, NEVER, START, Books, booked, new_ref, report, upgrade_to
from tests.support.copies import replace

BASE = START // HOUR_MICROS * HOUR_MICROS
PEOPLE = (
    Principal("ws-1", key_id="key-1", user_id="user-1"),
    Principal("ws-1", key_id="key-2", service_account="team"),
    Principal("ws-2", key_id="key-3", user_id="user-1"),
)


@dataclass(frozen=True)
class Reported:
    """A report; `evidence` NONE stands for a lease that ends."""

    event: int
    attempt: int
    evidence: Evidence
    tokens: int
    who: int
    model: str
    minutes: int
    priced: bool

    def booked(self, event_ids: Sequence[str]) -> BookedEvent:
        """As the store takes it."""
        ref = EventRef(event_ids[self.event], self.attempt)
        work = Work(PEOPLE[self.who], "asked", self.model, "/v1/chat/completions", "req")
        usage = Usage(self.tokens, self.tokens * 2, self.tokens // 2, 1)
        event = UsageEvent(ref, self.evidence, Accuracy.EXACT, Outcome.COMPLETED, work, usage)
        time = BASE + self.minutes * 60_000_000
        return BookedEvent(event, time, self.tokens * 7 if self.priced else 0, "price" if self.priced else "")


REPORTS = st.builds(
    Reported,
    event=st.integers(0, 1),
    attempt=st.sampled_from([0, 0, 0, 1, 2]),
    evidence=st.sampled_from(Evidence),
    tokens=st.integers(0, 9),
    who=st.integers(0, len(PEOPLE) - 1),
    model=st.sampled_from(["small", "large"]),
    minutes=st.integers(0, 50 * 60),
    priced=st.booleans(),
)
ROLL = st.integers(1, 3)
STEPS = st.lists(
    st.one_of(REPORTS, REPORTS, st.tuples(st.just("roll"), ROLL), st.just("settle")), min_size=8, max_size=25
)
QUERIES = st.builds(
    UsageQuery,
    group_by=st.lists(st.sampled_from(Dimension), unique=True, max_size=3).map(tuple),
    start_time=st.none() | st.integers(-10, 51 * 60).map(lambda minutes: BASE + minutes * 60_000_000),
    end_time=st.none() | st.integers(-10, 51 * 60).map(lambda minutes: BASE + minutes * 60_000_000),
    key_id=st.sampled_from(["", "", "", "key-1"]),
    user_id=st.sampled_from(["", "", "", "user-1"]),
    model=st.sampled_from(["", "", "", "small"]),
    workspace_id=st.sampled_from(["", "", "", "ws-1"]),
    endpoint=st.sampled_from(["", "", "", "/v1/chat/completions", "/v1/completions"]),
)


def brute_force(rows: Sequence[object], query: UsageQuery) -> list[UsageRow]:
    """The answer, from all rows of the table of events."""
    highest: dict[str, int] = {}
    for row in rows:
        highest[row.event_id] = max(row.attempt, highest.get(row.event_id, 0))  # type: ignore[attr-defined]
    sums: defaultdict[tuple[str | int, ...], list[int]] = defaultdict(lambda: [0] * 7)
    if not query.group_by:
        sums[()] = [0] * 7
    for row in rows:
        values = {
            Dimension.KEY: row.key_id,
            Dimension.MODEL: row.served_model,
            Dimension.DAY: row.reserve_time // HOUR_MICROS // 24,
            Dimension.HOUR: row.reserve_time // HOUR_MICROS,
            Dimension.WORKSPACE: row.workspace_id,
            Dimension.USER: row.user_id,
            Dimension.ENDPOINT: row.endpoint,
            Dimension.SERVICE_ACCOUNT: row.service_account,
        }
        wanted = {
            Dimension.KEY: query.key_id,
            Dimension.MODEL: query.model,
            Dimension.WORKSPACE: query.workspace_id,
            Dimension.USER: query.user_id,
            Dimension.ENDPOINT: query.endpoint,
        }
        if (
            row.settled_time is None
            or row.attempt != highest[row.event_id]
            or (query.start_time is not None and row.reserve_time < query.start_time)
            or (query.end_time is not None and row.reserve_time >= query.end_time)
            or any(value not in ("", values[dimension]) for dimension, value in wanted.items())
        ):
            continue
        figures = (
            1,
            int(row.price_id == ""),
            row.cost,
            row.prompt_tokens,
            row.completion_tokens,
            row.cached_prompt_tokens,
            row.reasoning_tokens,
        )
        group = tuple(values[dimension] for dimension in query.group_by)
        sums[group] = [old + new for old, new in zip(sums[group], figures, strict=True)]
    return [UsageRow(group, row[0], Usage(*row[3:]), row[2], row[1]) for group, row in sorted(sums.items())]


async def everything_rolled(store: RollupStore) -> None:
    while await store.waiting():
        assert await store.roll(2) > 0


@pytest.fixture
def fresh(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> object:
    """Makes the URL of one more empty database of the same kind."""

    def make() -> str:
        if database_url.startswith("sqlite"):
            return f"sqlite+aiosqlite:///{tmp_path}/{os.urandom(8).hex()}.db"
        return str(request.getfixturevalue("postgres").new_database())

    return make


@pytest.mark.behaviour
@settings(max_examples=int(os.environ.get("ROLLUP_EXAMPLES", "12")), suppress_health_check=list(HealthCheck))
@given(runs=st.lists(st.tuples(STEPS, st.lists(QUERIES, min_size=3, max_size=3)), min_size=3, max_size=3))
def test_questions_are_answered_exactly(fresh: object, runs: list[object]) -> None:
    """Before anything is rolled, in between, and after: the same as adding up all events."""
    asyncio.run(_answered_exactly(fresh(), runs))  # type: ignore[operator]


async def _answered_exactly(url: str, runs: list[object]) -> None:
    async with databases.migrated(url, MIGRATIONS) as database:
        for steps, queries in runs:  # type: ignore[misc]
            await _play(database, steps, queries)


async def _play(database: Database, steps: list[object], queries: list[UsageQuery]) -> None:
    store, rollups, reports = UsageStore(database), RollupStore(database), ReportStore(database)
    event_ids = [uuid7() for _ in range(2)]

    async def check() -> None:
        rows = await all_rows(database)
        for query in queries:
            expected = brute_force(rows, query)
            assert await reports.usage(query, None, 10_000) == expected
            if query.group_by:
                assert await page_by_page(reports, query) == expected

    for step in steps:
        match step:
            case Reported() as reported if reported.evidence is Evidence.NONE:
                await store.expire([reported.booked(event_ids)], START)
            case Reported() as reported:
                await store.record([reported.booked(event_ids)], START)
            case "settle":
                await store.settle(await store.unsettled(NEVER, 1), START)
            case (_, most):
                await check()
                await rollups.roll(most)
                await check()
    await check()
    await everything_rolled(rollups)
    await check()


async def page_by_page(reports: ReportStore, query: UsageQuery) -> list[UsageRow]:
    rows, token = await reports.page(query, 1, "")
    while token:
        more, token = await reports.page(query, 2, token)
        rows += more
    return rows


async def all_rows(database: Database) -> list[object]:
    async with database.reading() as connection:
        return list((await connection.execute(usage_events.select())).all())


async def test_everything_is_rolled_once(store: UsageStore, reports: ReportStore, database: Database) -> None:
    """Three rollers at once while events, duplicates, corrections and later attempts come in: no figure twice, none lost."""
    rollers = [Roller(RollupStore(database), logger=LOG, metrics=Metrics()) for _ in range(3)]
    refs = [new_ref() for _ in range(120)]
    done = asyncio.Event()

    async def roll(roller: Roller) -> None:
        while not done.is_set():
            await roller.roll()
            await asyncio.sleep(0.01)

    async def write(part: Sequence[EventRef]) -> None:
        await store.expire([booked(report(ref, Evidence.NONE, (0, 0))) for ref in part], START)
        for evidence in (Evidence.DELIVERED, Evidence.FINAL):
            for ref in part[::-1]:
                await store.record([booked(report(ref, evidence, (evidence * 10, 1)))], START)
        again = [EventRef(ref.event_id, 1) for ref in part[: len(part) // 2]]
        await store.record([booked(report(ref, Evidence.FINAL, (5, 5))) for ref in again], START)

    rolling = [asyncio.create_task(roll(roller)) for roller in rollers]
    await asyncio.gather(*(write(refs[part::4]) for part in range(4)))
    done.set()
    await asyncio.gather(*rolling)
    await rollers[0].roll()
    assert not await RollupStore(database).waiting()
    expected = [UsageRow((), 120, Usage(60 * 30 + 60 * 5, 60 + 60 * 5), unpriced_requests=120)]
    assert await reports.usage(UsageQuery(), None, 1) == expected
    await forget_events(database)
    assert await reports.usage(UsageQuery(), None, 1) == expected


async def forget_events(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(usage_events.delete())


async def test_one_rolls_at_a_time(store: UsageStore, database: Database) -> None:
    """On PostgreSQL whoever comes second passes; on SQLite there is one writer anyway."""
    await store.record([booked(report(new_ref()))], START)
    rollups = RollupStore(database)
    if database.is_postgresql:
        async with database.writing() as connection:
            assert await rollups.only_one(connection)
            assert await rollups.roll(10) == 0
    assert await rollups.roll(10) == 1
    assert not await rollups.waiting()


async def test_nothing_left_makes_no_row(store: UsageStore, reports: ReportStore, database: Database) -> None:
    """A group whose only event moved to another is gone, before and after that is rolled."""
    ref, rollups = new_ref(), RollupStore(database)
    await store.expire([booked(report(ref, Evidence.NONE, (0, 0)))], START)
    await everything_rolled(rollups)
    moved = report(ref)
    moved = replace(moved, work=replace(moved.work, served_model="other"))
    await store.record([booked(moved)], START)
    by_model = UsageQuery((Dimension.MODEL,))
    for _ in range(2):
        assert await reports.usage(by_model, None, 10) == [UsageRow(("other",), 1, Usage(7, 3), 0, 1)]
        await everything_rolled(rollups)


async def test_pages_go_on_where_they_ended(store: UsageStore, reports: ReportStore, database: Database) -> None:
    """By hour and endpoint, over what is rolled and what is not."""
    rollups = RollupStore(database)
    for hour in range(4):
        await store.record([booked(report(new_ref()), BASE + hour * HOUR_MICROS + 1)], START)
        if hour % 2:
            await everything_rolled(rollups)
    query = UsageQuery((Dimension.HOUR, Dimension.ENDPOINT))
    seen, token = [], ""
    while True:
        rows, token = await reports.page(query, 1, token)
        seen += [row.group for row in rows]
        if not token:
            break
    assert seen == [(BASE // HOUR_MICROS + hour, "/v1/chat/completions") for hour in range(4)]


async def test_raw_events_are_read_only_where_they_must(
    store: UsageStore, reports: ReportStore, database: Database
) -> None:
    """Whole hours come from the sums alone: without the events they are the same."""
    for minute in (10, 70, 130):
        await store.record([booked(report(new_ref()), BASE + minute * 60_000_000)], START)
    await everything_rolled(RollupStore(database))
    inner = UsageQuery(start_time=BASE + HOUR_MICROS, end_time=BASE + 2 * HOUR_MICROS)
    parts = UsageQuery(start_time=BASE + 5 * 60_000_000, end_time=BASE + 2 * HOUR_MICROS + 11 * 60_000_000)
    assert [row.requests for row in await reports.usage(inner, None, 1)] == [1]
    assert [row.requests for row in await reports.usage(parts, None, 1)] == [3]
    await forget_events(database)
    assert [row.requests for row in await reports.usage(inner, None, 1)] == [1]


async def test_settling_through_the_books_is_rolled(books: Books) -> None:
    """What a lease that ended leaves, and the final report that comes after it."""
    ref = await books.granted()
    rollups = RollupStore(books.database)
    books.advance(61)
    await books.sweeper.sweep()
    await everything_rolled(rollups)
    assert await books.total() == (1, 0, 0)
    await books.recorder.record([report(ref)])
    assert await books.total() == (1, 7, 3)
    await everything_rolled(rollups)
    assert await books.total() == (1, 7, 3)


_OLD_EVENT = """
    INSERT INTO usage_events (event_id, attempt, evidence, accuracy, outcome, key_id, user_id, service_account, workspace_id,
        tier, requested_model, served_model, endpoint, prompt_tokens, completion_tokens, cached_prompt_tokens,
        reasoning_tokens, reserve_time, request_id, replica, epoch, record_time, settled_time, cost, price_id, roll_state)
    VALUES (:event, :attempt, 3, 'exact', 'completed', '', '', '', 'ws', '', '', 'm', '/v1', :tokens, 0, 0, 0, 1, '', '', '',
        1, :settled, 0, 'p', :state)
"""
_OLD_SUMS = """
    INSERT INTO {} ({}, workspace_id, key_id, user_id, service_account, model, endpoint, requests, unpriced_requests, cost,
        prompt_tokens, completion_tokens, cached_prompt_tokens, reasoning_tokens)
    VALUES (0, 'ws', '', '', '', 'm', '/v1', :requests, 0, 0, :tokens, 0, 0, 0)
"""


async def test_an_installation_that_is_upgraded_sums_what_waited(database_url: str) -> None:
    """What was not rolled, what was superseded since, and what was to be taken off again."""
    database = Database(database_url)
    async with database.writing() as connection:
        await connection.run_sync(upgrade_to, "0005")
        for event, attempt, tokens, settled, state in (
            ("rolled", 0, 1, 1, 1),
            ("superseded", 0, 10, 1, 1),
            ("superseded", 1, 100, 1, 0),
            ("corrected", 0, 1_000, 1, 0),
            ("waits", 0, 10_000, None, 2),
        ):
            values = {"event": event, "attempt": attempt, "tokens": tokens, "settled": settled, "state": state}
            await connection.execute(sa.text(_OLD_EVENT), values)
        for table, time in (("usage_hours", "hour"), ("usage_days", "day")):
            await connection.execute(sa.text(_OLD_SUMS.format(table, time)), {"requests": 3, "tokens": 1 + 10 + 900})
        reversal = sa.text(_OLD_SUMS.format("usage_reversals", "hour"))
        await connection.execute(reversal, {"requests": 1, "tokens": 900})
    await MIGRATIONS.upgrade(database)
    reports, rollups = ReportStore(database), RollupStore(database)
    for _ in range(2):
        assert await reports.usage(UsageQuery(), None, 1) == [UsageRow((), 3, Usage(1 + 100 + 1_000, 0))]
        await everything_rolled(rollups)
    await database.close()
