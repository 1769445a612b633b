"""Reports that are sent in batches, while nobody waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from naru.clock import Clock
from naru.errors import NaruError
from naru.logs import get_logger

Item = TypeVar("Item")
_log = get_logger(__name__)


class Shipper(Generic[Item]):
    """Sends items in batches without keeping anybody waiting: bounded, tried again, given up when too old.

    Args:
        send: Delivers a batch; raises NaruError when it should be tried again.
        interval: Seconds between batches.
        most: Items per batch.
        capacity: Items that may wait; more are dropped.
        max_age: Seconds after which an item is dropped.
        dropped: Called with how many were dropped.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[Item]], Awaitable[None]],
        clock: Clock,
        *,
        interval: float,
        most: int,
        capacity: int,
        max_age: float,
        dropped: Callable[[int], None],
    ) -> None:
        self._name = name
        self._send = send
        self._clock = clock
        self._interval = interval
        self._most = most
        self._capacity = capacity
        self._max_age = max_age
        self._dropped = dropped
        self._waiting: deque[tuple[float, Item]] = deque()
        self._filled = asyncio.Event()

    def put(self, item: Item) -> None:
        """Takes an item, or drops it when too many wait."""
        if len(self._waiting) >= self._capacity:
            self._dropped(1)
            return
        self._waiting.append((self._clock.monotonic(), item))
        self._filled.set()

    async def run(self) -> None:
        """Ships for ever; a service keeps this running in the background."""
        pause = self._interval
        while True:
            await self._filled.wait()
            await asyncio.sleep(pause)
            pause = self._interval if await self._ship() else min(pause * 2 + 0.05, 5.0)

    async def flush(self) -> None:
        """Sends what waits, once, without trying again; for the end of the process."""
        while self._waiting and await self._ship():
            pass

    async def _ship(self) -> bool:
        oldest = self._clock.monotonic() - self._max_age
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        current = [entry for entry in batch if entry[0] >= oldest]
        if len(current) < len(batch):
            self._dropped(len(batch) - len(current))
            _log.warning("gave up sending", what=self._name, items=len(batch) - len(current))
        try:
            if current:
                await self._send([item for _, item in current])
        except NaruError as error:
            _log.debug("cannot send, will try again", what=self._name, error=error.message)
            self._waiting.extendleft(reversed(current))
            return False
        except asyncio.CancelledError:
            # The process stops: `flush` sends it once more.
            self._waiting.extendleft(reversed(current))
            raise
        if not self._waiting:
            self._filled.clear()
        return True
