"""How usage events get to accounting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference.events import EventKey
from inference.shipper import BATCH_LIMIT, Shipper
from naru.errors import invalid_argument, unavailable
from naru.logs import get_logger
from tests.support.generation_bench import Bench, eventually, new_bench
from tests.support.usage_events import event_of


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = new_bench(tmp_path)
    yield bench
    bench.journal.close()


def shipper_of(bench: Bench) -> Shipper:
    return Shipper(bench.journal, bench.accounting, get_logger("test"))


async def test_events_are_shipped_in_batches_within_a_tenth_of_a_second(bench: Bench) -> None:
    """Events that come together go together, soon, and are acknowledged in the journal."""
    running = asyncio.create_task(shipper_of(bench).run())
    await asyncio.sleep(0)
    started = asyncio.get_running_loop().time()
    for number in range(5):
        bench.journal.finished(event_of(number))
    await eventually(lambda: bench.journal.backlog == 0)
    assert asyncio.get_running_loop().time() - started < 0.1
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
        async def record_usage(self, events: list[object]) -> list[None]:
            if event_of(5) in events:
                raise invalid_argument("events", "One of them is wrong.")
            recorded.extend(events)
            return [None] * len(events)

    recorded: list[object] = []
    for number in range(8):
        bench.journal.finished(event_of(number))
    shipper = Shipper(bench.journal, Picky(), get_logger("test"))  # type: ignore[arg-type]  # it needs this call only
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
