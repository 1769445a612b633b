"""Ways to put load on something, and what to read off it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence


async def saturate(call: Callable[[int], Awaitable[int]], *, workers: int, seconds: float) -> float:
    """Items per second that `call` gets through, with so many calls in flight."""
    done, stop = 0, time.monotonic() + seconds

    async def work(worker: int) -> None:
        nonlocal done
        turn = worker
        while time.monotonic() < stop:
            items = await call(turn)
            done += items
            turn += workers

    started = time.monotonic()
    await asyncio.gather(*(work(worker) for worker in range(workers)))
    return done / (time.monotonic() - started)


async def pace(call: Callable[[int], Awaitable[int]], *, calls_per_second: float, seconds: float) -> list[float]:
    """How long each of so many calls a second takes, begun on time whether the ones before have ended or not."""
    latencies: list[float] = []

    async def timed(turn: int, due: float) -> None:
        await call(turn)
        # From when it was due: a machine that is late is slow.
        latencies.append(time.monotonic() - due)

    started, tasks = time.monotonic(), []
    for turn in range(int(calls_per_second * seconds)):
        due = started + turn / calls_per_second
        await asyncio.sleep(max(due - time.monotonic(), 0))
        tasks.append(asyncio.create_task(timed(turn, due)))
    await asyncio.gather(*tasks)
    return sorted(latencies)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the ordered values does not exceed."""
    return values[min(int(len(values) * share), len(values) - 1)]
