"""Many small calls as few larger ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from naru.lifecycle import Background

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_POKE_SECONDS = 0.02


class Coalescer(Generic[Item, Answer]):
    """Makes calls of all that is asked meanwhile, and gives everybody their own answer.

    What is asked in one turn of the loop goes together; what is asked while a call waits for its answer goes together after it.
    So the more is asked, the larger are the calls: many small ones at once would cost more than the other side has time for.
    But where all goes in one call, all that ask wait for it together, and for everything after it: the two sides, and whoever
    comes next, work in turn. With `calls` of 2 a crowd is halved, and one half is on its way while the other is answered.

    Args:
        send: Makes the call; answers in the order of the items.
        background: Owns the calls: one caller that goes away does not cancel the others'.
        most: Items per call.
        calls: How many may be under way at a time. They are made in order.
        least: Items of a call that is made beside another.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        background: Background,
        *,
        most: int,
        calls: int = 1,
        least: int = 1,
    ) -> None:
        self._send = send
        self._background = background
        self._most = most
        self._least = least
        self._calls = calls
        self._calling = 0
        self._flushing = False
        self._poke: asyncio.TimerHandle | None = None
        self._due = False
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []

    async def ask(self, item: Item) -> Answer:
        """The answer for `item`. Raises what `send` raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future))
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)
        return await future

    def poke(self) -> None:
        """Makes a call soon, if only of no items: for what goes along with calls. It waits a little for company."""
        if self._poke is None:
            self._poke = asyncio.get_running_loop().call_later(_POKE_SECONDS, self._poked)

    def _poked(self) -> None:
        self._due = True
        self._flush()

    def _flush(self) -> None:
        self._flushing = False
        while self._may_call():
            waiting = len(self._waiting)
            parts = max(1, min(self._calls - self._calling, waiting // self._least))
            size = min(self._most, -(-waiting // parts))
            # Whoever went away meanwhile is not asked for.
            batch = [one for one in self._waiting[:size] if not one[1].done()]
            del self._waiting[:size]
            if batch or self._due:
                if self._poke is not None:
                    self._poke.cancel()
                self._poke, self._due = None, False
                self._calling += 1
                self._background.spawn("coalesced call", self._call(batch)).add_done_callback(self._ended)

    def _may_call(self) -> bool:
        if not self._calling:
            return self._due or bool(self._waiting)
        return self._calling < self._calls and len(self._waiting) >= self._least

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._calling -= 1
        self._flush()

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
