"""One call for all who ask the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class SharedCalls(Generic[Key, Answer]):
    """Calls under way, by what they ask."""

    def __init__(self) -> None:
        self._calls: dict[Key, asyncio.Task[Answer]] = {}

    async def answer(self, key: Key, call: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """What the call for `key` answers, or raises: the one under way, else a new one made by `call`."""
        task = self._calls.get(key)
        if task is None:
            task = asyncio.create_task(call())
            self._calls[key] = task
            task.add_done_callback(lambda _: self._calls.pop(key, None))
        # One caller that goes away must not cancel the call for the others.
        return await asyncio.shield(task)
