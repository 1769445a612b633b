"""Many small calls as few larger ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from naru.clock import Clock
from naru.errors import NaruError
from naru.lifecycle import Background
from naru.logs import get_logger

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_log = get_logger(__name__)


class Coalescer(Generic[Item, Answer]):
    """Sends what is asked in the same turn of the loop as one call, and gives everybody their own answer.

    Args:
        send: Makes the call; answers in the order of the items.
        background: Owns the calls: one caller that goes away does not cancel the others'.
        most: Items per call.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        background: Background,
        *,
        most: int,
    ) -> None:
        self._send = send
        self._background = background
        self._most = most
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []

    async def ask(self, item: Item) -> Answer:
        """The answer for `item`. Raises what `send` raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((item, future))
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self._most):
            _ = self._background.spawn("coalesced call", self._call(waiting[start : start + self._most]))

    async def _call(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} items")
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    if isinstance(error, Exception):
                        future.set_exception(error)
                    else:
                        future.cancel()
            if isinstance(error, Exception):
                return
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


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
