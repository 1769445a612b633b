"""When what came for streams is handed on: once for all streams of a message, or of several while that is all the loop does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from naru.clock import Clock

_BUSY = 0.8
"""The part of the time between two messages from which on rounds take too much of it."""
_GATHER_SECONDS = 0.005


class Busy:
    """How long rounds took so far, in seconds, of all sessions on one loop."""

    def __init__(self) -> None:
        self.seconds = 0.0


class Rounds:
    """Calls what was asked for since the last round, in the next turn of the loop.

    Where rounds leave the loop hardly any time, messages wait to be read, and each would cost every client a write of its own.
    A round then waits for one more message, so that two steps leave in one write; but not for long.

    Args:
        clock: Measures rounds.
        busy: Shared by all sessions of a loop.
    """

    def __init__(self, clock: Clock, busy: Busy) -> None:
        self._clock = clock
        self._busy = busy
        self._behind = False
        self._waiting: list[Callable[[], None]] = []
        self._later: asyncio.TimerHandle | None = None
        self._last_message = 0.0
        self._busy_then = 0.0

    def message(self) -> None:
        """Hears that a message of the session is about to be read."""
        now = self._clock.monotonic()
        self._behind = self._busy.seconds - self._busy_then > _BUSY * (now - self._last_message)
        self._last_message, self._busy_then = now, self._busy.seconds
        if self._later is not None:
            self._later.cancel()
            self._later = None
            asyncio.get_running_loop().call_soon(self._run)

    def soon(self, call: Callable[[], None]) -> None:
        """Calls it in the next round. It must not raise."""
        if not self._waiting:
            loop = asyncio.get_running_loop()
            if self._behind:
                self._later = loop.call_later(_GATHER_SECONDS, self._run)
            else:
                loop.call_soon(self._run)
        self._waiting.append(call)

    def _run(self) -> None:
        self._later = None
        waiting, self._waiting = self._waiting, []
        began = self._clock.monotonic()
        for call in waiting:
            call()
        self._busy.seconds += self._clock.monotonic() - began
