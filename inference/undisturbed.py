"""Work that a caller who goes away must not leave half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from naru.errors import unavailable

Result = TypeVar("Result")
_CANCEL_SECONDS = 1.0


class Undisturbed:
    """Does things one at a time, each to its end, whatever becomes of who asked for it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns or raises, or NaruError SERVICE_UNAVAILABLE when closing cancels it. Cancelling this does not."""
        task = asyncio.get_running_loop().create_task(self._one(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise unavailable("inference", "The inference service stopped before this was done.") from None
            raise

    async def close(self, seconds: float) -> None:
        """Waits at most so many seconds for what is being done, and cancels the rest: an engine that is lost never answers."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(tuple(self._tasks), timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_CANCEL_SECONDS)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Nothing else is done inside the block, which runs in the caller's own task."""
        return self._turn

    async def _one(self, work: Coroutine[Any, Any, Result]) -> Result:
        async with self._turn:
            return await work
