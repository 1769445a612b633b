"""How usage events get to accounting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference.engine import EngineCounters
from inference.events import EngineReport, EventKey
from inference.shipper import BATCH_LIMIT, Shipper
from naru.errors import invalid_argument, unavailable
from naru.logs import get_logger
from tests.support.generation_bench import Bench, Hearing, eventually, new_bench, order_of
from tests.support.usage_events import event_of


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = new_bench(tmp_path)
    yield bench
    bench.journal.close()


def shipper_of(bench: Bench) -> Shipper:
    return Shipper(bench.journal, bench.accounting, lambda: counted(bench), get_logger("test"))


def counted(bench: Bench) -> EngineReport:
    """What the engine has counted, which has heard of no event that a test made."""
    return EngineReport("replica-1", "epoch-1", bench.engine.counters())


async def test_events_are_shipped_in_batches(bench: Bench) -> None:
    """Events that come together go together, and are acknowledged in the journal."""
    running = asyncio.create_task(shipper_of(bench).run())
    await asyncio.sleep(0)
    for number in range(5):
        bench.journal.finished(event_of(number))
    await eventually(lambda: bench.journal.backlog == 0)
    assert bench.accounting.recorded == [[event_of(number) for number in range(5)]]
    running.cancel()


async def test_no_batch_is_larger_than_accounting_takes(bench: Bench) -> None:
    """A backlog goes in several calls, oldest first."""
    for number in range(BATCH_LIMIT + 3):
        bench.journal.finished(event_of(number))
    assert await shipper_of(bench).drain(5.0)
    assert [len(batch) for batch in bench.accounting.recorded] == [BATCH_LIMIT, 3]
    assert bench.accounting.recorded[1][0] == event_of(BATCH_LIMIT)


async def test_accounting_away_loses_nothing(bench: Bench) -> None:
    """What could not be shipped is shipped when accounting is back."""
    bench.accounting.away = unavailable("accounting")
    running = asyncio.create_task(shipper_of(bench).run())
    bench.journal.finished(event_of(1))
    await asyncio.sleep(0.2)
    assert bench.journal.backlog == 1
    bench.accounting.away = None
    await eventually(lambda: bench.journal.backlog == 0)
    assert bench.accounting.recorded == [[event_of(1)]]
    running.cancel()


async def test_refused_events_go_to_quarantine_and_are_not_sent_again(bench: Bench, tmp_path: Path) -> None:
    """One bad event does not hold the others back."""
    bench.accounting.answer = lambda event: invalid_argument("usage", "No.") if event == event_of(1) else None
    for number in range(3):
        bench.journal.finished(event_of(number))
    assert await shipper_of(bench).drain(1.0)
    assert len(bench.accounting.recorded) == 1
    assert (tmp_path / "quarantine.jsonl").read_text().count("\n") == 1


async def test_an_event_that_spoils_whole_calls_is_found_and_put_aside(bench: Bench, tmp_path: Path) -> None:
    """When a call as a whole is refused as invalid, halving it finds the culprit and lets the others through."""

    class Picky:
        async def record_usage(self, events: list[object], report: object) -> list[None]:
            if event_of(5) in events:
                raise invalid_argument("events", "One of them is wrong.")
            recorded.extend(events)
            return [None] * len(events)

    recorded: list[object] = []
    for number in range(8):
        bench.journal.finished(event_of(number))
    shipper = Shipper(
        bench.journal,
        Picky(),  # type: ignore[arg-type]  # it needs this call only
        lambda: counted(bench),
        get_logger("test"),
    )
    assert await shipper.drain(5.0)
    assert recorded == [event_of(number) for number in (0, 1, 2, 3, 4, 6, 7)]
    assert EventKey(event_of(5).event_id, 0).event_id in (tmp_path / "quarantine.jsonl").read_text()


async def test_drain_gives_up_in_time_and_keeps_the_rest(bench: Bench) -> None:
    """With accounting away a stop does not take longer than its grace; the journal keeps the events."""
    bench.accounting.away = unavailable("accounting")
    bench.journal.finished(event_of(1))
    assert not await shipper_of(bench).drain(0.05)
    assert bench.journal.backlog == 1


async def test_an_event_that_cannot_be_put_aside_is_tried_again_without_haste(bench: Bench, tmp_path: Path) -> None:
    """While the quarantine cannot be written the event stays, and accounting is not asked about it in a tight loop."""
    (tmp_path / "quarantine.jsonl").mkdir()
    bench.accounting.answer = lambda event: invalid_argument("usage", "No.")
    running = asyncio.create_task(shipper_of(bench).run())
    bench.journal.finished(event_of(1))
    await eventually(lambda: bench.accounting.recorded)
    await asyncio.sleep(0.05)
    assert len(bench.accounting.recorded) == 1
    (tmp_path / "quarantine.jsonl").rmdir()
    await eventually(lambda: bench.journal.backlog == 0)
    assert (tmp_path / "quarantine.jsonl").read_text().count("\n") == 1
    running.cancel()


async def test_the_engines_figures_go_with_the_events_that_they_are_about(bench: Bench) -> None:
    """What was billed is what the engine counted, and a request that still runs is in neither."""
    hearings = [Hearing() for _ in range(3)]
    for number, hearing in enumerate(hearings):
        bench.generations.start(order_of(number, n=2), hearing)
    await eventually(lambda: len(bench.engine.submitted) == 3)
    for submitted in bench.engine.submitted[:2]:
        submitted.emit("a", choice=0, tokens=3, finish_reason="stop")
        submitted.emit("b", choice=1, tokens=4, finish_reason="length")
    bench.engine.submitted[2].emit("c", choice=0, tokens=9)
    assert await shipper_of(bench).drain(1.0)
    (batch,), (report,) = bench.accounting.recorded, bench.accounting.reports
    assert report is not None
    billed = [event.usage for event in batch]
    assert report.counters == EngineCounters(2, sum(one.prompt_tokens for one in billed), 0, 14)
    assert sum(one.completion_tokens for one in billed) == 14
    assert (report.replica, report.epoch, report.closed) == ("replica-1", "epoch-1", True)


async def test_a_batch_that_leaves_events_behind_says_nothing_of_the_engine(bench: Bench) -> None:
    """Its figures would be of events that accounting does not have yet."""
    for number in range(BATCH_LIMIT + 3):
        bench.journal.finished(event_of(number))
    assert await shipper_of(bench).drain(5.0)
    assert [report is None for report in bench.accounting.reports] == [True, False]


async def test_a_run_that_ends_at_rest_says_so_once(bench: Bench) -> None:
    """Nothing is left to ship, so the last figures go alone; a run that told nothing has no last figures either."""
    shipper = shipper_of(bench)
    assert await shipper.drain(1.0)
    assert bench.accounting.reports == []
    running = asyncio.create_task(shipper.run())
    bench.journal.finished(event_of(1))
    await eventually(lambda: bench.journal.backlog == 0)
    running.cancel()
    assert await shipper.drain(1.0)
    assert [len(batch) for batch in bench.accounting.recorded] == [1, 0]
    assert [report is not None and report.closed for report in bench.accounting.reports] == [False, True]


async def test_a_stop_does_not_wait_to_say_that_the_run_is_over(bench: Bench) -> None:
    """Everything is shipped: what is not told leaves a lower bound, and nobody waits for it."""
    shipper = shipper_of(bench)
    bench.journal.finished(event_of(1))
    running = asyncio.create_task(shipper.run())
    await eventually(lambda: bench.journal.backlog == 0)
    running.cancel()
    bench.accounting.away = unavailable("accounting")
    async with asyncio.timeout(20):
        assert await shipper.drain(30.0)
