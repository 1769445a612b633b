"""Whether the service is fit to serve: it is while everything it needs answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from naru.errors import NaruError, Reason
from naru.logs import Logger

_INTERVAL_SECONDS = 1.0


class Readiness:
    """Asks for signs of life and says what came of it.

    Args:
        needs: Each raises NaruError SERVICE_UNAVAILABLE when what it asks is away.
        tell: Told whether the service is fit to serve, when that changes.
    """

    def __init__(
        self, needs: Sequence[Callable[[], Awaitable[None]]], tell: Callable[[bool], Awaitable[None]], logger: Logger
    ) -> None:
        self._needs = needs
        self._tell = tell
        self._logger = logger
        self._ready: bool | None = None

    async def run(self) -> None:
        """Asks every second, for ever."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await self.check()

    async def check(self) -> None:
        """Asks once."""
        missing = [error.message for error in await asyncio.gather(*map(_missing, self._needs)) if error is not None]
        ready = not missing
        if ready != self._ready:
            self._ready = ready
            self._logger.info("ready" if ready else "not ready", missing=missing)
            await self._tell(ready)


async def _missing(need: Callable[[], Awaitable[None]]) -> NaruError | None:
    try:
        await need()
    except NaruError as error:
        if error.reason is not Reason.SERVICE_UNAVAILABLE:
            raise
        return error
    return None
