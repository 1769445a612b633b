"""When keys were used last: gathered in memory and handed on once a minute, so that no request costs a write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from naru.clock import Clock
from naru.errors import NaruError
from naru.logs import get_logger

INTERVAL_SECONDS = 60.0
_MOST = 10_000
_log = get_logger(__name__)

Send = Callable[[Mapping[str, float]], Awaitable[None]]
"""Takes times of last use, in seconds since the Unix epoch, by key id. Raises NaruError."""


class KeyUses:
    """The uses since they were handed on last. Keep `run` in the background, and `flush` at the end.

    Args:
        send: Who they are handed on to, at most 10,000 at a time.
        clock: Tells the time.
        interval: Seconds between.
    """

    def __init__(self, send: Send, clock: Clock, *, interval: float = INTERVAL_SECONDS) -> None:
        self._send = send
        self._clock = clock
        self._interval = interval
        self._uses: dict[str, float] = {}

    def note(self, key_id: str) -> None:
        """The key was used now; empty: none was."""
        if key_id:
            self._uses[key_id] = self._clock.time()

    def add(self, uses: Mapping[str, float]) -> None:
        """Somebody else saw these uses."""
        for key_id, time in uses.items():
            self._uses[key_id] = max(time, self._uses.get(key_id, 0.0))

    async def run(self) -> None:
        """Hands them on for ever."""
        while True:
            await asyncio.sleep(self._interval)
            await self.flush()

    async def flush(self) -> None:
        """Hands them on now. What cannot be handed on is kept for the next time."""
        taken, self._uses = self._uses, {}
        rows = list(taken.items())
        for start in range(0, len(rows), _MOST):
            try:
                await self._send(dict(rows[start : start + _MOST]))
            except NaruError as error:
                _log.debug("cannot hand on when keys were used", error=error.message)
                self.add(dict(rows[start:]))
                return
            except BaseException:
                # A service that stops cancels `run`, and flushes once more.
                self.add(dict(rows[start:]))
                raise
