"""When those who send requests are told that the engine is away, and that it is back."""

from __future__ import annotations

import asyncio

from inference.availability import Availability
from tests.support.generation_bench import eventually
from tests.support.scripted_engine import ScriptedEngine


class Engine(ScriptedEngine):
    """Away as a test says."""

    away = False

    def available(self) -> bool:
        """See `Engine.available`."""
        return not self.away


async def test_going_away_and_coming_back_are_announced() -> None:
    """Once each."""
    engine, told = Engine(), list[bool]()
    availability = Availability(engine)
    announcing = asyncio.create_task(availability.announce(lambda: told.append(availability.away()), 0.001))
    for away in (True, False, True, False):
        engine.away = away
        await eventually(lambda: told[-1:] == [engine.away])
    await asyncio.sleep(0.02)
    announcing.cancel()
    assert told == [True, False, True, False]


async def test_an_absence_that_only_a_message_told_of_is_taken_back() -> None:
    """Between two looks it went away, somebody was told, and it came back: nobody would ask it anything any more."""
    engine, told = Engine(), list[bool]()
    availability = Availability(engine)
    announcing = asyncio.create_task(availability.announce(lambda: told.append(availability.away()), 0.05))
    await asyncio.sleep(0)
    engine.away = True
    assert availability.away()
    engine.away = False
    await eventually(lambda: told)
    await asyncio.sleep(0.12)
    announcing.cancel()
    assert told == [False]
