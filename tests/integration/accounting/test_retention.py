"""What is forgotten, when, and that nothing is lost or counted again by it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from accounting.quota import EventRef
from accounting.tables import request_log, usage_corrections, usage_events
from accounting.usage.report_store import ReportStore
from accounting.usage.reporting import Dimension, UsageQuery, UsageRow
from accounting.usage.request_store import RequestStore
from accounting.usage.retention import Pruner
from accounting.usage.retention_store import RetentionStore
from accounting.usage.rollup_store import RollupStore
from accounting.usage.store import UsageStore
from naru.database import Database
from naru.errors import Reason
from naru.metrics import Metrics
from naru.testing.clock import FakeClock
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import LOG, NEVER, SECOND, START, booked, new_ref, refused, report
from tests.integration.accounting.test_requests import line
from tests.support.copies import replace

DAY = 86_400 * SECOND
HOUR = 3_600 * SECOND
ID_OF_1970 = "00000000-0000-7000-8000-0000000000{:02}"


def old_ref(number: int, attempt: int = 0) -> EventRef:
    """An event whose id is of long ago."""
    return EventRef(ID_OF_1970.format(number), attempt)


class Kept:
    """A database with a pruner, 90 days of usage and 30 of requests."""

    def __init__(self, database: Database) -> None:
        self.clock = FakeClock(START / SECOND)
        self.store, self.reports = UsageStore(database), ReportStore(database)
        self.rollups, self.requests = RollupStore(database), RequestStore(database)
        self.database = database
        self.pruner = self.new_pruner()

    def new_pruner(self) -> Pruner:
        return Pruner(
            RetentionStore(self.database),
            clock=self.clock,
            logger=LOG,
            metrics=Metrics(),
            usage_days=90,
            request_log_days=30,
            lifetime_seconds=3_600,
        )

    async def count(self, table: sa.Table) -> int:
        async with self.database.reading() as connection:
            return int((await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one())

    async def days_pass(self, days: int) -> None:
        """A new event marks the end of them; two rounds: the first announces, the second deletes."""
        self.clock.advance(days * 86_400)
        await self.store.record([booked(report(new_ref()), round(self.clock.time() * SECOND))], START)
        await self.settle_everything()
        await self.pruner.prune()
        await self.pruner.prune()

    async def settle_everything(self) -> None:
        await self.store.delivered(await self.store.outbox(NEVER, 10_000))
        while await self.rollups.waiting():
            await self.rollups.roll(100)


@pytest.fixture
def kept(database: Database) -> Kept:
    return Kept(database)


async def test_sums_outlive_their_events(kept: Kept) -> None:
    """Events, attempts and corrections older than 90 days go; what was used then stays the same, to the hour."""
    for number in range(30):
        ref = old_ref(number)
        await kept.store.expire([booked(report(ref, Evidence.NONE, (0, 0)), START + number * HOUR)], START)
        await kept.store.record([booked(report(ref), START + number * HOUR)], START)
        if number % 3 == 0:
            await kept.store.record([booked(report(old_ref(number, 1)), START + number * HOUR)], START)
    by_hour = UsageQuery((Dimension.HOUR, Dimension.MODEL), end_time=START + DAY * 2)
    before = await kept.reports.usage(by_hour, None, 100)
    assert len(before) == 30
    await kept.days_pass(91)
    assert await kept.reports.usage(by_hour, None, 100) == before
    assert 0 < await kept.count(usage_events) < 41
    await kept.days_pass(2)
    # Those that mark the days.
    assert await kept.count(usage_events) == 2
    assert await kept.count(usage_corrections) == 0
    assert await kept.reports.usage(by_hour, None, 100) == before
    assert await kept.reports.usage(UsageQuery(end_time=START + DAY * 2), None, 1) == [
        UsageRow((), 30, Usage(210, 90), 0, 30)
    ]


async def test_attempts_count_as_what_was_deleted(kept: Kept) -> None:
    """A full batch is told as one, whichever of its events were tried again: more is left to delete."""
    first, second = old_ref(1), old_ref(1, 1)
    await kept.store.record([booked(report(ref), 1) for ref in (first, second, old_ref(2))], START)
    await kept.settle_everything()
    assert await RetentionStore(kept.database).prune_usage(START, 2) == 2
    assert await RetentionStore(kept.database).prune_usage(START, 2) == 1


async def test_what_is_not_done_with_stays(kept: Kept) -> None:
    """Not settled, to be told still, or with an attempt that is young enough: none of it goes. What is not rolled may."""
    gone, waiting, unrolled, untold, young = (old_ref(number) for number in range(5))
    await kept.store.record([booked(report(waiting, Evidence.ACCEPTED))], START)
    await kept.store.record([booked(report(ref)) for ref in (gone, young)], START)
    await kept.store.record([booked(report(EventRef(young.event_id, 1)), START + 200 * DAY)], START)
    await kept.settle_everything()
    await kept.store.record([booked(report(ref)) for ref in (unrolled, untold)], START)
    await kept.store.delivered([one for one in await kept.store.outbox(NEVER, 10) if one.ref == unrolled])
    kept.clock.advance(200 * 86_400)
    for _ in range(2):
        await kept.pruner.prune()
    async with kept.database.reading() as connection:
        left = set((await connection.execute(sa.select(usage_events.c.event_id))).scalars())
    assert left == {ref.event_id for ref in (waiting, untold, young)}
    expected = [UsageRow((), 4, Usage(28, 12), 0, 4)]
    assert await kept.reports.usage(UsageQuery(), None, 1) == expected
    await kept.settle_everything()
    assert await kept.reports.usage(UsageQuery(), None, 1) == expected


async def test_reports_that_come_too_late_are_refused(kept: Kept) -> None:
    """What may have been counted and forgotten is not counted again; what is young enough is taken."""
    event = report(old_ref(1))
    assert event.accept_time == START
    await kept.store.record([booked(event)], START)
    await kept.settle_everything()
    assert kept.pruner.refusal(event) is None
    await kept.days_pass(95)
    for pruner in (kept.pruner, kept.new_pruner()):
        await pruner.load()
        error = pruner.refusal(event)
        assert error is not None
        assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": "event_id"})
        assert "90 days" in error.message
        assert pruner.refusal(replace(event, end_time=START + 6 * DAY)) is None


async def test_hours_cannot_be_taken_apart_any_more(kept: Kept) -> None:
    """A question about a part of an hour of which only the sum is left says so, naming the time."""
    await kept.store.record([booked(report(old_ref(1)))], START)
    part = START + 60 * SECOND
    await kept.reports.usage(UsageQuery(start_time=part), None, 1)
    await kept.days_pass(95)
    for field, query in {
        "start_time": UsageQuery(start_time=part),
        "end_time": UsageQuery(end_time=part),
    }.items():
        assert (await refused(kept.reports.usage(query, None, 1))).metadata == {"field": field}
    await kept.reports.usage(UsageQuery(start_time=START // HOUR * HOUR, end_time=START + 94 * DAY + 1), None, 1)


async def test_a_clock_that_jumps_ahead_forgets_nothing(kept: Kept) -> None:
    """What is old only by the clock, and not beside anything newer, stays."""
    await kept.store.record([booked(report(old_ref(1)))], START)
    await kept.requests.log_requests([line(1)])
    await kept.settle_everything()
    kept.clock.advance(400 * 86_400)
    for _ in range(3):
        await kept.pruner.prune()
    assert (await kept.count(usage_events), await kept.count(request_log)) == (1, 1)
    assert kept.pruner.refusal(report(old_ref(1))) is None


async def test_the_request_log_is_kept_a_month(kept: Kept) -> None:
    """Lines older than 30 days go, in batches; younger ones stay."""
    await kept.requests.log_requests([line(number // 3, request_id=f"req_{number}") for number in range(2_500)])
    await kept.requests.log_requests([line(31 * 86_400)])
    await kept.pruner.prune()
    assert await kept.count(request_log) == 2_501
    kept.clock.advance(31 * 86_400)
    await kept.pruner.prune()
    assert await kept.count(request_log) == 1
