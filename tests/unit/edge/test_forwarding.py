"""What a stream hands on as it comes, without waking a task for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from edge.generation import Delta, Event, Finished, FinishOutcome, SessionLost
from edge.streams import ReplicaStream
from naru.errors import NaruError, Reason, unavailable
from naru.usage import Usage
from tests.unit.edge.test_buffers import ACCEPTED, Heard, stream

DONE = Finished(FinishOutcome.COMPLETED, Usage())


class Taker:
    """Takes what is handed on; `room` says whether it wants more."""

    def __init__(self) -> None:
        self.steps: list[list[Event]] = []
        self.room = True
        self.failure: Exception | None = None

    def __call__(self, events: Sequence[Event]) -> bool:
        self.steps.append(list(events))
        if self.failure is not None:
            raise self.failure
        return self.room


async def forwarding(opened: ReplicaStream, taker: Taker) -> asyncio.Task[None]:
    """A task that waits for more."""
    task = asyncio.create_task(opened.forward(taker))
    await asyncio.sleep(0)
    return task


async def turns(count: int = 3) -> None:
    """Lets the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_in_one_turn_is_handed_on_together() -> None:
    """First what came before, then step by step; the task itself wakes for none of it."""
    opened, taker = stream(Heard()), Taker()
    opened.put(ACCEPTED, 0.0)
    task = await forwarding(opened, taker)
    a, b, c = (Delta(0, text, number) for number, text in enumerate("abc", 1))
    opened.put(a, 0.0)
    opened.put(b, 0.0)
    await asyncio.sleep(0)
    opened.put(c, 0.0)
    await asyncio.sleep(0)
    assert taker.steps == [[ACCEPTED], [a, b], [c]]
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    opened.put(DONE, 0.0)
    assert list(await opened.receive()) == [DONE]


async def test_no_more_than_is_wanted() -> None:
    """When there is no room it returns, and what comes then waits for the next time, in order."""
    opened, taker = stream(Heard()), Taker()
    opened.put(ACCEPTED, 0.0)
    task = await forwarding(opened, taker)
    taker.room = False
    first, second, third = (Delta(0, text, number) for number, text in enumerate("abc", 1))
    opened.put(first, 0.0)
    await asyncio.sleep(0)
    opened.put(second, 0.0)
    await task
    opened.put(third, 0.0)
    await turns()
    assert taker.steps == [[ACCEPTED], [first]]
    await opened.forward(taker)
    assert taker.steps[2:] == [[second, third]]


async def test_a_loss_is_told_after_what_came() -> None:
    """What came before it is handed on."""
    opened, taker = stream(Heard()), Taker()
    opened.put(ACCEPTED, 0.0)
    task = await forwarding(opened, taker)
    opened.put(Delta(0, "a", 1), 0.0)
    opened.lose(1.0)
    with pytest.raises(SessionLost):
        await task
    assert [len(step) for step in taker.steps] == [1, 1]


async def test_an_error_of_the_taker_is_the_forwarders() -> None:
    """Whoever forwards gets it; nothing more is handed on."""
    opened, taker = stream(Heard()), Taker()
    opened.put(ACCEPTED, 0.0)
    task = await forwarding(opened, taker)
    taker.failure = ConnectionResetError()
    opened.put(Delta(0, "a", 1), 0.0)
    await asyncio.sleep(0)
    opened.put(Delta(0, "b", 2), 0.0)
    with pytest.raises(ConnectionResetError):
        await task
    await turns()
    assert len(taker.steps) == 2


async def test_an_error_of_the_service_ends_it() -> None:
    """As `receive` raises it."""
    opened, taker = stream(Heard()), Taker()
    opened.put(ACCEPTED, 0.0)
    task = await forwarding(opened, taker)
    opened.fail(unavailable("inference"))
    with pytest.raises(NaruError) as failure:
        await task
    assert failure.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_silence_is_told_and_waited_through() -> None:
    """After the keep-alive time it hands on nothing, and then what comes."""
    opened, taker = stream(Heard(), keep_alive=15.0), Taker()
    opened.put(ACCEPTED, 0.0)
    task = await forwarding(opened, taker)
    opened.tick(15.0)
    await turns()
    assert taker.steps == [[ACCEPTED], []]
    opened.put(DONE, 16.0)
    await asyncio.sleep(0)
    assert taker.steps[2:] == [[DONE]]
    task.cancel()
    await asyncio.wait([task])


async def test_one_that_has_no_room_for_long_is_cut() -> None:
    """A taker that does not come back is cut like any reader; one that waits for more is not."""
    heard = Heard()
    opened, taker = stream(heard, stall=30.0, keep_alive=100.0), Taker()
    opened.put(ACCEPTED, 0.0)
    task = await forwarding(opened, taker)
    opened.tick(50.0)
    assert heard.interruptions == []
    taker.room = False
    opened.put(Delta(0, "a", 1), 50.0)
    await task
    for now in (51.0, 80.0):
        opened.tick(now)
    assert heard.interruptions == []
    opened.tick(81.0)
    assert [error.reason for error in heard.interruptions] == [Reason.CANCELLED]
