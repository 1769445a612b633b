"""Calls that travel together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from naru.coalescing import Coalescer
from naru.errors import NaruError, unavailable
from naru.lifecycle import Background


async def test_one_call_at_a_time_takes_all_that_waits() -> None:
    """What is asked in one turn, or while a call runs, is one call, unless it is too large; everybody gets their own answer."""
    calls: list[list[int]] = []
    running = 0

    async def send(items: Sequence[int]) -> list[int]:
        nonlocal running
        running += 1
        assert running == 1
        calls.append(list(items))
        await asyncio.sleep(0.01)
        running -= 1
        return [item * 10 for item in items]

    background = Background(lambda *_: None)
    coalescer = Coalescer(send, background, most=3)
    first = [asyncio.create_task(coalescer.ask(number)) for number in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.create_task(coalescer.ask(number)) for number in range(2, 8)]
    await asyncio.sleep(0)
    later[2].cancel()
    assert await asyncio.gather(*first, *later[:2], *later[3:]) == [0, 10, 20, 30, 50, 60, 70]
    # Nobody asks for whoever went away before the call.
    assert calls == [[0, 1], [2, 3], [5, 6, 7]]
    await background.close()


async def test_a_crowd_is_halved_where_two_calls_may_be_made() -> None:
    """Few go together, and wait for the call before; many go in two calls, and a further one when there are enough for it."""
    gates = [asyncio.Event() for _ in range(6)]
    calls: list[list[int]] = []

    async def send(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        await gates[len(calls) - 1].wait()
        return [item * 10 for item in items]

    background = Background(lambda *_: None)
    coalescer = Coalescer(send, background, most=9, calls=2, least=3)
    asked: list[asyncio.Task[int]] = []

    async def ask(*items: int) -> None:
        asked.extend(asyncio.create_task(coalescer.ask(item)) for item in items)
        for _ in range(4):
            await asyncio.sleep(0)

    await ask(1, 2, 3, 4, 5)
    # Too few for two calls; and then too few for one beside the first.
    assert calls == [[1, 2, 3, 4, 5]]
    await ask(6, 7)
    assert len(calls) == 1
    await ask(8)
    assert calls[1:] == [[6, 7, 8]]
    await ask(*range(9, 16))
    assert len(calls) == 2
    gates[1].set()
    await ask()
    assert calls[2:] == [list(range(9, 16))]
    gates[0].set()
    gates[2].set()
    await ask()
    await ask(*range(16, 23))
    assert calls[3:] == [[16, 17, 18, 19], [20, 21, 22]]
    for gate in gates:
        gate.set()
    assert await asyncio.gather(*asked) == [item * 10 for item in range(1, 23)]
    await background.close()


async def test_one_who_goes_away_does_not_cancel_the_others() -> None:
    """A caller that is cancelled leaves the shared call running; a failed call fails for all."""
    gate = asyncio.Event()

    async def send(items: Sequence[int]) -> list[int]:
        await gate.wait()
        if 13 in items:
            raise unavailable("accounting")
        return list(items)

    background = Background(lambda *_: None)
    coalescer = Coalescer(send, background, most=9)
    leaving, staying = (asyncio.create_task(coalescer.ask(number)) for number in (1, 2))
    await asyncio.sleep(0.01)
    leaving.cancel()
    gate.set()
    assert await staying == 2
    failures = await asyncio.gather(coalescer.ask(13), coalescer.ask(14), return_exceptions=True)
    assert [type(failure) for failure in failures] == [NaruError, NaruError]
    await background.close()


async def test_a_poke_makes_a_call_unless_one_is_made_anyway() -> None:
    """What goes along with calls does not wait for long, and needs no call of its own while others are made."""
    calls: list[list[int]] = []

    async def send(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        return list(items)

    background = Background(lambda *_: None)
    coalescer = Coalescer(send, background, most=3)
    coalescer.poke()
    coalescer.poke()
    await asyncio.sleep(0.2)
    assert calls == [[]]
    coalescer.poke()
    assert await coalescer.ask(1) == 1
    await asyncio.sleep(0.2)
    assert calls == [[], [1]]
    await background.close()
