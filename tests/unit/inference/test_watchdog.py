"""How the death of an engine is noticed."""

from __future__ import annotations

import asyncio

from inference.watchdog import Watchdog
from naru.logs import get_logger
from tests.support.generation_bench import order_of
from tests.support.scripted_engine import ScriptedEngine


def watchdog_of(engine: ScriptedEngine) -> Watchdog:
    return Watchdog(engine, get_logger("test"), poll_seconds=0.01, probe_seconds=0.01, probe_timeout=0.01)


async def test_a_dead_engine_is_noticed() -> None:
    """Within a poll."""
    engine = ScriptedEngine()
    waiting = asyncio.create_task(watchdog_of(engine).wait_for_death())
    await asyncio.sleep(0.03)
    assert not waiting.done()
    engine.alive = False
    assert "died" in str(await asyncio.wait_for(waiting, 20))


async def test_an_engine_that_hangs_over_its_work_is_noticed() -> None:
    """One that does not answer while it has work is as good as dead; without work it is not asked."""
    engine = ScriptedEngine()
    engine.answers = False
    waiting = asyncio.create_task(watchdog_of(engine).wait_for_death())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await engine.submit(await engine.prepare(order_of().request), lambda _: None)
    assert "did not answer" in str(await asyncio.wait_for(waiting, 20))
