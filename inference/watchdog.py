"""Notices that the engine has died or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from inference.engine import Engine
from naru.logs import Logger


class EngineDiedError(Exception):
    """The engine will not work again in this process."""


class Watchdog:
    """Looks at the engine.

    Args:
        engine: What to look at.
        logger: Where its end is told.
        poll_seconds: How often it is asked whether it lives.
        probe_seconds: How often it is asked to answer, while it has work.
        probe_timeout: How long it may take to answer, in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        logger: Logger,
        poll_seconds: float = 0.5,
        probe_seconds: float = 10.0,
        probe_timeout: float = 30.0,
    ) -> None:
        self._engine = engine
        self._logger = logger
        self._poll_seconds = poll_seconds
        self._probe_seconds = probe_seconds
        self._probe_timeout = probe_timeout

    async def wait_for_death(self) -> EngineDiedError:
        """Returns why, once the engine is dead or does not answer."""
        hung = asyncio.create_task(self._wait_hung())
        try:
            while self._engine.healthy():
                if hung.done():
                    return self._tell(f"the engine did not answer for {self._probe_timeout:g} seconds")
                await asyncio.wait([hung], timeout=self._poll_seconds)
            return self._tell("the engine died")
        finally:
            hung.cancel()

    async def unless_dead(self, work: Coroutine[Any, Any, None]) -> None:
        """Does work that needs the engine, and cancels it when that is lost. Raises EngineDiedError, or what `work` raises."""
        working, dying = asyncio.create_task(work), asyncio.create_task(self.wait_for_death())
        try:
            await asyncio.wait([working, dying], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise await dying
            await working
        finally:
            working.cancel()
            dying.cancel()

    async def _wait_hung(self) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            if self._engine.unfinished_requests() and not await self._engine.responsive(self._probe_timeout):
                return

    def _tell(self, message: str) -> EngineDiedError:
        self._logger.error("engine lost", problem=message)
        return EngineDiedError(message)
