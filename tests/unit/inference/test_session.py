"""What a session promises whoever holds it, free of gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference.engine import ChoiceOutput
from inference.events import Accepted, Finished, Refused
from inference.outbox import OutboxLimits
from inference.session import Sessions
from naru.errors import NaruError, Reason, invalid_argument
from naru.usage import Outcome
from tests.support.generation_bench import Bench, eventually, new_bench, order_of


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = new_bench(tmp_path)
    yield bench
    await bench.generations.drain(0.0)
    bench.journal.close()


def sessions_of(bench: Bench, limits: OutboxLimits | None = None) -> Sessions:
    return Sessions(bench.generations, bench.metrics, limits)


def nothing() -> None:
    """Has nothing to abandon."""


async def test_two_streams_share_the_batch_of_a_step(bench: Bench) -> None:
    """Accepted of both, then one batch per step with the frames of both, then their ends."""
    session = sessions_of(bench).open(nothing)
    session.submit(5, order_of(1))
    session.submit(6, order_of(2))
    await eventually(lambda: len(bench.engine.submitted) == 2)
    accepted = await session.take()
    assert accepted is not None
    assert sorted((stream, type(event)) for stream, event in accepted) == [(5, Accepted), (6, Accepted)]
    first, second = bench.engine.submitted
    for text in ("a", "b"):
        first.emit(text)
        second.emit(text.upper())
        batch = await session.take()
        assert batch is not None
        assert [event.text for _, event in batch if isinstance(event, ChoiceOutput)] == [text, text.upper()]
    first.emit("", finish_reason="stop")
    last = await session.take()
    assert last is not None
    assert [(stream, type(event)) for stream, event in last] == [(5, ChoiceOutput), (5, Finished)]
    session.close()


async def test_a_running_stream_number_cannot_be_used_again(bench: Bench) -> None:
    """A duplicate is an error of the whole session, which cancels what runs."""
    session = sessions_of(bench).open(nothing)
    session.submit(5, order_of(1))
    with pytest.raises(NaruError) as error:
        session.submit(5, order_of(2))
    assert error.value.reason is Reason.INVALID_ARGUMENT
    await eventually(lambda: bench.engine.submitted)
    session.fail(error.value)
    with pytest.raises(NaruError):
        await session.take()
    await eventually(lambda: bench.journal.backlog)
    assert bench.engine.submitted[0].cancelled


async def test_cancel_of_an_unknown_stream_is_ignored(bench: Bench) -> None:
    """Cancels may come late or be wrong; the others go on."""
    session = sessions_of(bench).open(nothing)
    session.submit(1, order_of(1))
    session.cancel(99)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a", finish_reason="stop")
    session.cancel(1)
    assert bench.journal.unshipped(1)[0].outcome is Outcome.COMPLETED
    session.close()


async def test_a_lost_session_cancels_and_meters_its_streams_only(bench: Bench) -> None:
    """What another session runs goes on."""
    sessions = sessions_of(bench)
    lost, kept = sessions.open(nothing), sessions.open(nothing)
    lost.submit(1, order_of(1))
    await eventually(lambda: bench.engine.submitted)
    kept.submit(1, order_of(2))
    await eventually(lambda: len(bench.engine.submitted) == 2)
    bench.engine.submitted[0].emit("a")
    lost.close()
    lost.close()
    await eventually(lambda: bench.journal.backlog)
    (event,) = bench.journal.unshipped(10)
    assert (event.event_id, event.outcome, event.usage.completion_tokens) == (order_of(1).event_id, Outcome.ABORTED, 2)
    assert not bench.engine.submitted[1].cancelled
    kept.close()


async def test_a_finished_session_tells_what_came_of_its_streams(bench: Bench) -> None:
    """A caller that stops asking still hears the end of each stream, then the end of the session."""
    session = sessions_of(bench).open(nothing)
    session.submit(1, order_of(1))
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a")
    session.finish()
    heard = []
    while (batch := await session.take()) is not None:
        heard += batch
    assert isinstance(heard[-1][1], Finished)
    assert heard[-1][1].outcome is Outcome.ABORTED


async def test_whoever_finishes_may_be_gone(bench: Bench) -> None:
    """What it reserved for a request that was still being prepared is given back, although the edge had reserved it."""
    session = sessions_of(bench).open(nothing)
    bench.engine.prepare_gate.clear()
    session.submit(1, order_of(1))
    await eventually(lambda: bench.engine.prepared)
    session.finish()
    await eventually(lambda: bench.accounting.released == [order_of(1).key])


async def test_a_request_that_makes_no_sense_is_refused_on_its_stream(bench: Bench) -> None:
    """It does not harm the session."""
    session = sessions_of(bench).open(nothing)
    session.refuse(3, invalid_argument("input", "Wrong."))
    assert await session.take() == [(3, Refused(invalid_argument("input", "Wrong.")))]
    session.close()


async def test_a_caller_that_does_not_read_is_abandoned_and_metered(bench: Bench) -> None:
    """Too much waiting: its streams are cancelled, its call is ended, and nothing goes unbilled."""
    abandoned: list[str] = []
    sessions = sessions_of(bench, OutboxLimits(buffer_bytes=5000))
    session = sessions.open(lambda: abandoned.append("abandoned"))
    session.submit(1, order_of(1))
    await eventually(lambda: bench.engine.submitted)
    for _ in range(60):
        bench.engine.submitted[0].emit("x" * 100)
    assert abandoned == ["abandoned"]
    await eventually(lambda: bench.journal.backlog)
    assert bench.journal.unshipped(1)[0].usage.completion_tokens == 61
    assert await session.take() is None


async def test_announcing_and_ending_reaches_every_session(bench: Bench) -> None:
    """At a drain each caller hears of it at once, and its session ends when its streams are over."""
    sessions = sessions_of(bench)
    idle, busy = sessions.open(nothing), sessions.open(nothing)
    busy.submit(1, order_of(1))
    await eventually(lambda: bench.engine.submitted)
    await busy.take()
    sessions.announce()
    assert await idle.take() == []
    assert await busy.take() == []
    sessions.end_when_idle()
    assert await idle.take() is None
    bench.engine.submitted[0].emit("a", finish_reason="stop")
    assert await busy.take() is not None
    assert await busy.take() is None
