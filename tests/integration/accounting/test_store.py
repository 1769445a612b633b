"""The store, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from accounting import migrations
from accounting.quota import EventRef
from accounting.settlement import Exact, Recorded, RecordStatus, nothing_reported
from accounting.tables import metadata, settlement_outbox, usage_corrections, usage_events
from accounting.usage.report_store import ReportStore
from accounting.usage.reporting import Dimension, UsageQuery, UsageRow
from accounting.usage.store import UsageStore
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import NEVER, PRINCIPAL, START, WORK, booked, new_ref, refused, report
from tests.support.copies import replace

RECORDED, KNOWN = RecordStatus.RECORDED, RecordStatus.KNOWN
DAY = 86_400 * 1_000_000


async def rows(database: Database, table: sa.Table) -> list[sa.Row[tuple[object, ...]]]:
    """All of a table."""
    async with database.reading() as connection:
        return list((await connection.execute(sa.select(table))).all())


async def test_a_final_report_counts_at_once(store: UsageStore, database: Database) -> None:
    """It is settled, and the limiter is to be told."""
    ref = new_ref()
    recorded = await store.record([booked(report(ref))], START + 5)
    assert recorded.statuses == (RECORDED,)
    assert recorded.settled == (Exact(ref, Evidence.FINAL, Usage(7, 3)),)
    assert await store.outbox(NEVER, 10) == list(recorded.settled)
    (row,) = await rows(database, usage_events)
    assert (row.event_id, row.attempt, row.evidence, row.accuracy, row.outcome) == (
        ref.event_id,
        0,
        3,
        "exact",
        "completed",
    )
    assert (row.key_id, row.user_id, row.workspace_id, row.tier) == ("key-1", "user-1", "ws-1", "free")
    assert (row.requested_model, row.served_model, row.endpoint) == ("gpt-4o-mini", "smollm2", "/v1/chat/completions")
    assert (row.reserve_time, row.record_time, row.settled_time, row.accept_time) == (
        START,
        START + 5,
        START + 5,
        START,
    )


async def test_lower_evidence_waits(store: UsageStore) -> None:
    """It is kept and counts nowhere until somebody says that the lease has ended."""
    ref = new_ref()
    recorded = await store.record([booked(report(ref, Evidence.ACCEPTED))], START)
    assert (recorded.statuses, recorded.settled) == ((RECORDED,), ())
    assert await store.outbox(NEVER, 10) == []
    assert await store.unsettled(START + 1, 10) == [ref]
    assert await store.unsettled(START, 10) == []
    assert await store.settle([ref], START + 1) == [Exact(ref, Evidence.ACCEPTED, Usage(7, 3))]
    assert await store.unsettled(NEVER, 10) == []


@pytest.mark.parametrize("first", list(Evidence)[1:])
@pytest.mark.parametrize("second", list(Evidence)[1:])
async def test_better_evidence_wins_in_any_order(store: UsageStore, first: Evidence, second: Evidence) -> None:
    """The best evidence is what is kept; as good or worse changes nothing."""
    ref = new_ref()
    await store.record([booked(report(ref, first, (1, 1)))], START)
    recorded = await store.record([booked(report(ref, second, (2, 2)))], START)
    assert recorded.statuses == (RECORDED if second > first else KNOWN,)
    (kept,) = await store.settle([ref], START)
    assert kept == Exact(ref, max(first, second), Usage(2, 2) if second > first else Usage(1, 1))


async def test_better_evidence_after_settling_is_a_correction(store: UsageStore, database: Database) -> None:
    """The difference is noted in the original time, and the event counts with the better figures."""
    ref = new_ref()
    expired = await store.expire([booked(nothing_reported(ref, WORK))], START + 60)
    assert expired == [Exact(ref, Evidence.NONE, Usage())]
    for evidence, tokens in ((Evidence.DELIVERED, (10, 4)), (Evidence.FINAL, (8, 5))):
        recorded = await store.record([booked(report(ref, evidence, tokens), NEVER)], START + 70)
        assert recorded.settled == (Exact(ref, evidence, Usage(*tokens)),)
    corrections = await rows(database, usage_corrections)
    assert sorted(
        (row.previous_evidence, row.evidence, row.prompt_tokens, row.completion_tokens, row.reserve_time)
        for row in corrections
    ) == [(0, 2, 10, 4, START), (2, 3, -2, 1, START)]
    (row,) = await rows(database, usage_events)
    assert (row.prompt_tokens, row.completion_tokens, row.reserve_time, row.settled_time) == (8, 5, START, START + 60)


async def test_a_hundred_duplicates_count_once(store: UsageStore, reports: ReportStore) -> None:
    """Reports that race, in batches with duplicates in themselves, are recorded once."""
    refs = [new_ref() for _ in range(10)]
    batch = [booked(report(ref)) for ref in refs]

    async def tell(first: int) -> list[Recorded]:
        # More at once would wait for a connection longer than a busy machine lets them.
        return [
            await store.record([*batch, *batch] if turn % 2 else [*batch[::-1]], START)
            for turn in range(first, 100, 15)
        ]

    answers = [one for many in await asyncio.gather(*map(tell, range(15))) for one in many]
    assert [status for answer in answers for status in answer.statuses].count(RECORDED) == 10
    (row,) = await reports.usage(UsageQuery(), None, 10)
    assert row == UsageRow((), 10, Usage(70, 30), unpriced_requests=10)


async def test_racing_evidence_leaves_the_best(store: UsageStore, database: Database) -> None:
    """All ranks at once, and the end of the lease among them: the final figures are what counts."""
    for _ in range(5):
        ref = new_ref()
        await asyncio.gather(
            store.expire([booked(nothing_reported(ref, WORK))], START),
            *(store.record([booked(report(ref, evidence, (evidence, 0)))], START) for evidence in list(Evidence)[1:]),
        )
        assert await store.settle([ref], START) == [Exact(ref, Evidence.FINAL, Usage(3, 0))]
    assert len(await rows(database, usage_events)) == 5


async def test_evidence_within_one_batch(store: UsageStore) -> None:
    """Each report of a batch is answered as if they had come one by one."""
    ref = new_ref()
    batch = [report(ref, Evidence.ACCEPTED), report(ref, Evidence.FINAL), report(ref, Evidence.DELIVERED)]
    recorded = await store.record([booked(event) for event in batch], START)
    assert recorded.statuses == (RECORDED, RECORDED, KNOWN)
    assert [one.evidence for one in recorded.settled] == [Evidence.FINAL]


async def test_the_end_of_a_lease_keeps_better_evidence(store: UsageStore, database: Database) -> None:
    """What was reported before counts, not the empty event."""
    ref = new_ref()
    await store.record([booked(report(ref, Evidence.DELIVERED, (10, 4)))], START)
    expired = await store.expire([booked(nothing_reported(ref, WORK))], START + 60)
    assert expired == [Exact(ref, Evidence.DELIVERED, Usage(10, 4))]
    assert await rows(database, usage_corrections) == []


async def test_a_lease_that_ends_twice_is_settled_once(store: UsageStore, database: Database) -> None:
    """Two sweepers with one lease make one event; both learn what it counts with."""
    leases = [booked(nothing_reported(new_ref(), WORK)) for _ in range(5)]
    first, second = await asyncio.gather(store.expire(leases, START), store.expire(leases[::-1], START))
    assert sorted(first, key=lambda one: one.ref) == sorted(second, key=lambda one: one.ref)
    assert len(await rows(database, usage_events)) == 5
    assert len(await rows(database, settlement_outbox)) == 5


async def test_the_outbox_keeps_what_got_better_meanwhile(store: UsageStore) -> None:
    """Telling the limiter of earlier evidence does not take the later one out."""
    ref = new_ref()
    (earlier,) = await store.expire([booked(nothing_reported(ref, WORK))], START)
    (later,) = (await store.record([booked(report(ref))], START)).settled
    await store.delivered([earlier])
    assert await store.outbox(NEVER, 10) == [later]
    await store.delivered([later])
    assert await store.outbox(NEVER, 10) == []


async def test_only_the_highest_attempt_counts(store: UsageStore, reports: ReportStore) -> None:
    """A retry elsewhere makes the first attempt waste, already before the retry has settled."""
    first = new_ref()
    second = EventRef(first.event_id, 1)
    await store.record([booked(report(first, tokens=(7, 3)))], START)
    await store.record([booked(report(second, Evidence.DELIVERED, (7, 1)))], START)
    assert (await reports.usage(UsageQuery(), None, 10))[0].requests == 0
    await store.record([booked(report(second, tokens=(7, 9)))], START)
    assert await reports.usage(UsageQuery(), None, 10) == [UsageRow((), 1, Usage(7, 9), unpriced_requests=1)]


async def fill(store: UsageStore) -> None:
    """Two keys, two models, three days: eight events of one prompt token each."""
    events = []
    for number in range(8):
        principal = replace(PRINCIPAL, key_id=f"key-{number % 2}", workspace_id=f"ws-{number // 4}")
        work = replace(WORK, principal=principal, served_model=f"model-{number // 2 % 2}")
        events.append(booked(replace(report(new_ref(), tokens=(1, number)), work=work), START + number % 3 * DAY))
    await store.record(events, START)


async def test_usage_by_dimension(store: UsageStore, reports: ReportStore) -> None:
    """Rows are grouped in the order asked for, and sums match the whole."""
    await fill(store)
    by_key = await reports.usage(UsageQuery((Dimension.KEY,)), None, 10)
    assert by_key == [
        UsageRow(("key-0",), 4, Usage(4, 12), unpriced_requests=4),
        UsageRow(("key-1",), 4, Usage(4, 16), unpriced_requests=4),
    ]
    both = await reports.usage(UsageQuery((Dimension.MODEL, Dimension.KEY)), None, 10)
    assert [row.group for row in both] == [
        ("model-0", "key-0"), ("model-0", "key-1"), ("model-1", "key-0"), ("model-1", "key-1"),
    ]  # fmt: skip
    days = await reports.usage(UsageQuery((Dimension.DAY,)), None, 10)
    first = START // DAY
    assert [(row.group, row.requests) for row in days] == [((first,), 3), ((first + 1,), 3), ((first + 2,), 2)]
    by_workspace = await reports.usage(UsageQuery((Dimension.WORKSPACE,)), None, 10)
    assert [row.requests for row in by_workspace] == [4, 4]


async def test_filters(store: UsageStore, reports: ReportStore) -> None:
    """Each narrows; the end of a time is not part of it."""
    await fill(store)

    async def count(**fields: object) -> int:
        (row,) = await reports.usage(UsageQuery(**fields), None, 10)  # type: ignore[arg-type] # named by the test
        return row.requests

    assert await count() == 8
    assert await count(key_id="key-0") == 4
    assert await count(key_id="key-0", model="model-0") == 2
    assert await count(workspace_id="ws-1") == 4
    assert await count(user_id="user-1") == 8
    assert await count(user_id="user-2") == 0
    assert await count(start_time=START + DAY) == 5
    assert await count(start_time=START, end_time=START + DAY) == 3


async def test_pages(store: UsageStore, reports: ReportStore) -> None:
    """Pages put together are the whole, in order; a token belongs to its query."""
    await fill(store)
    query = UsageQuery((Dimension.DAY, Dimension.KEY, Dimension.MODEL))
    whole, end = await reports.page(query, 100, "")
    assert end == ""
    pages, token = [], ""
    while True:
        rows_, token = await reports.page(query, 3, token)
        assert len(rows_) <= 3
        pages += rows_
        if not token:
            break
        other = replace(query, key_id="key-1")
        assert (await refused(reports.page(other, 3, token))).metadata == {"field": "page_token"}
    assert pages == whole
    assert len(whole) > 3


async def test_the_epoch_is_remembered(store: UsageStore) -> None:
    """A store that never saw one says so."""
    assert await store.epoch() is None
    await store.note_epoch("one")
    await store.note_epoch("two")
    assert await store.epoch() == "two"


async def test_the_schema_is_that_of_the_tables(database: Database) -> None:
    """The migrations make exactly the tables, columns and indexes that the code works with."""

    def compare(connection: sa.Connection) -> list[object]:
        from alembic.autogenerate import compare_metadata
        from alembic.runtime.migration import MigrationContext

        context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE})
        return list(compare_metadata(context, metadata))

    async with database.reading() as connection:
        assert await connection.run_sync(compare) == []
    assert await migrations.MIGRATIONS.is_current(database)


async def test_two_migrations_at_once(database_url: str) -> None:
    """One waits for the other and finds nothing to do."""
    one, two = Database(database_url), Database(database_url)
    assert not await migrations.MIGRATIONS.is_current(one)
    await asyncio.gather(migrations.MIGRATIONS.upgrade(one), migrations.MIGRATIONS.upgrade(two))
    assert await migrations.MIGRATIONS.is_current(two)
    await one.close()
    await two.close()


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """Nobody listens at the address: the error says which service cannot work, not where its database is."""
    store = UsageStore(Database(f"postgresql+asyncpg://naru:secret@/nowhere?host={tmp_path}"))
    error = await refused(store.record([booked(report(new_ref()))], START))
    assert isinstance(error, NaruError)
    assert (error.reason, error.metadata) == (Reason.SERVICE_UNAVAILABLE, {"service": "database"})
    assert "secret" not in str(error)


async def test_sqlite_is_in_write_ahead_mode(tmp_path: Path) -> None:
    """Readers do not wait for the writer."""
    url = f"sqlite+aiosqlite:///{tmp_path}/accounting.db"
    database = Database(url)
    await migrations.MIGRATIONS.upgrade(database)
    await database.close()
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar() == "wal"
    await engine.dispose()
