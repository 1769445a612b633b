"""Work that a caller who goes away must not leave half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

Result = TypeVar("Result")


class Undisturbed:
    """Does things one at a time, each to its end, whatever becomes of who asked for it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns or raises. Cancelling this does not cancel the work."""
        task = asyncio.get_running_loop().create_task(self._one(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for what is being done."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Nothing else is done inside the block, which runs in the caller's own task."""
        return self._turn

    async def _one(self, work: Coroutine[Any, Any, Result]) -> Result:
        async with self._turn:
            return await work
