"""When what came for streams is handed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge.rounds import Busy, Rounds


class HandClock:
    """Shows what it was set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        """Never asked for."""
        raise NotImplementedError

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


class Bench:
    """The rounds of one session, and a stream in it that notes what it was handed; handing on takes `seconds`."""

    def __init__(self, clock: HandClock, busy: Busy) -> None:
        self.clock = clock
        self.rounds = Rounds(clock, busy)
        self.came: list[int] = []
        self.handed: list[list[int]] = []
        self.seconds = 0.0

    def message(self, number: int) -> None:
        """A message with something for the stream arrives."""
        self.rounds.message()
        if not self.came:
            self.rounds.soon(self._hand_on)
        self.came.append(number)

    def _hand_on(self) -> None:
        self.clock.now += self.seconds
        self.handed.append(self.came)
        self.came = []


async def turns() -> None:
    """Enough of the loop for a round that waits for nothing."""
    for _ in range(3):
        await asyncio.sleep(0)


async def after(bench: Bench, *, rounds: float, rest: float) -> None:
    """A message whose round takes `rounds` seconds, and `rest` seconds of other things until the next one."""
    bench.seconds = rounds
    bench.message(0)
    await turns()
    bench.clock.now += rest
    bench.handed.clear()
    bench.seconds = 0.0


async def test_every_message_is_handed_on_in_the_next_turn_while_there_is_time() -> None:
    """Also where rounds take three quarters of it."""
    bench = Bench(HandClock(), Busy())
    for rounds, rest in ((0.001, 0.009), (0.0075, 0.0025)):
        await after(bench, rounds=rounds, rest=rest)
        bench.message(1)
        await turns()
        assert bench.handed == [[1]]


async def test_two_messages_are_handed_on_together_where_there_is_none() -> None:
    """A round waits for the next message, whenever rounds took nearly all of the time before it; the one after does not."""
    bench = Bench(HandClock(), Busy())
    await after(bench, rounds=0.010, rest=0.001)
    bench.message(1)
    await turns()
    assert bench.handed == []
    bench.clock.now += 0.001
    bench.message(2)
    await turns()
    assert bench.handed == [[1, 2]]
    bench.clock.now += 0.009
    bench.message(3)
    await turns()
    assert bench.handed == [[1, 2], [3]]


async def test_a_round_waits_no_longer_than_a_moment() -> None:
    """Where no other message comes."""
    bench = Bench(HandClock(), Busy())
    await after(bench, rounds=0.010, rest=0.001)
    bench.message(1)
    async with asyncio.timeout(10):
        while not bench.handed:
            await asyncio.sleep(0.001)
    assert bench.handed == [[1]]
    bench.message(2)
    await turns()
    assert bench.handed == [[1], [2]]


async def test_sessions_of_a_loop_are_busy_together() -> None:
    """The rounds of one leave no time for those of another."""
    clock, busy = HandClock(), Busy()
    one, other = Bench(clock, busy), Bench(clock, busy)
    await after(other, rounds=0.0, rest=0.0)
    await after(one, rounds=0.010, rest=0.001)
    other.message(1)
    await turns()
    assert other.handed == []
    other.message(2)
    await turns()
    assert other.handed == [[1, 2]]


async def test_all_that_was_asked_for_is_called_once() -> None:
    """In the order in which it was asked for; what a call asks for, in the next round."""
    rounds = Rounds(HandClock(), Busy())
    called: list[str] = []

    def calling(name: str, then: Callable[[], None] = lambda: None) -> Callable[[], None]:
        def call() -> None:
            called.append(name)
            then()

        return call

    rounds.soon(calling("a", lambda: rounds.soon(calling("c"))))
    rounds.soon(calling("b"))
    await asyncio.sleep(0)
    assert called == ["a", "b"]
    await turns()
    assert called == ["a", "b", "c"]
