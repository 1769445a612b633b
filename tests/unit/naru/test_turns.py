"""Work on many items lets others run in between."""

from __future__ import annotations

import asyncio

from naru.turns import in_turns


async def test_what_is_made_is_in_order() -> None:
    assert await in_turns(str, range(1_000)) == [str(number) for number in range(1_000)]
    assert await in_turns(str, []) == []


async def test_others_run_in_between() -> None:
    done: list[int] = []
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(len(done))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await in_turns(done.append, range(300))
    watching.cancel()
    assert seen == [64, 128, 192, 256]
