"""Work on many items that would keep the event loop from everybody else for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

# What is done with one takes about 10 µs.
_ITEMS_A_TURN = 64


async def in_turns(make: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """What `make` makes of each, in order. Others have their turn of the loop after every 64 items."""
    made: list[Made] = []
    for start in range(0, len(items), _ITEMS_A_TURN):
        if start:
            await asyncio.sleep(0)
        made += map(make, items[start : start + _ITEMS_A_TURN])
    return made
