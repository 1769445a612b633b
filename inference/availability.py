"""Tells those who send requests when the engine cannot serve them for a while, and when it can again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inference.engine import Engine

_POLL_SECONDS = 0.5


class Availability:
    """Whether an engine is away, as each message to a caller says."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._told_away = False

    def away(self) -> bool:
        """Whether it is, for a message that is about to leave."""
        away = not self._engine.available()
        self._told_away = self._told_away or away
        return away

    async def announce(self, changed: Callable[[], None], poll_seconds: float = _POLL_SECONDS) -> None:
        """Calls `changed` whenever the engine goes away or is back, for ever.

        One that was away between two looks counts as well where a message said so: nobody asks it anything until told otherwise.
        """
        known = False
        while True:
            away = not self._engine.available()
            if away != known or (self._told_away and not away):
                known, self._told_away = away, False
                changed()
            await asyncio.sleep(poll_seconds)
