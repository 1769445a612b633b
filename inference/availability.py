"""Tells those who send requests when the engine cannot serve them for a while, and when it can again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inference.engine import Engine

_POLL_SECONDS = 0.5


async def announce_availability(
    engine: Engine, changed: Callable[[], None], poll_seconds: float = _POLL_SECONDS
) -> None:
    """Calls `changed` whenever `Engine.available` is another, for ever."""
    known = True
    while True:
        if engine.available() != known:
            known = not known
            changed()
        await asyncio.sleep(poll_seconds)
