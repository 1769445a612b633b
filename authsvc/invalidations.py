"""Telling every watcher which keys are no longer what they were.

The feed keeps one number, and each watcher keeps one: how far it has read. What lies between is read from the store in
pages when the watcher is ready for it, so a slow watcher holds nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from authsvc.records import Position
from authsvc.store import KeyStore
from naru.clock import Clock
from naru.errors import NaruError, unavailable
from naru.logs import get_logger

POLL_SECONDS = 0.25
"""How often the store is asked for invalidations that other replicas made: a quarter of the second that is promised."""
HEARTBEAT_SECONDS = 2.0
"""How long a watcher goes without a message."""
STALE_SECONDS = 2.0
"""How long ago the last successful poll may be before watchers are told that nothing is known any more."""
_POLL_TIMEOUT_SECONDS = 1.0
_PAGE = 500
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """The keys and users invalidated up to `position`, in the order of their numbers.

    None: a first message or a heartbeat.
    """

    position: Position
    key_ids: tuple[str, ...] = ()
    user_ids: tuple[str, ...] = ()


class InvalidationFeed:
    """Knows the latest number and wakes whoever waits for it to grow.

    Args:
        store: Where the numbers are.
        clock: Tells how old the last poll is.
        heartbeat_seconds: How long a watcher goes without a message.
        poll_seconds: How long after a poll the next one begins.
    """

    def __init__(
        self,
        store: KeyStore,
        clock: Clock,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds
        self._poll_seconds = poll_seconds
        self._latest = 0
        self._polled_at = -math.inf
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def reachable(self) -> bool:
        """Whether the store answered lately, so that what is known of the numbering can be relied on."""
        return self._clock.monotonic() - self._polled_at <= STALE_SECONDS

    def announce(self, sequence: int) -> None:
        """An invalidation of this number has been committed. Wakes the watchers."""
        if sequence > self._latest:
            self._latest = sequence
            self._wake()

    def close(self) -> None:
        """Ends every watch, now and from now on."""
        self._closed = True
        self._wake()

    async def run(self) -> None:
        """Polls the store for ever. While the store is away it goes on trying; watches end meanwhile."""
        answered = True
        while True:
            known = self._latest
            try:
                async with asyncio.timeout(_POLL_TIMEOUT_SECONDS):
                    position = await self._store.position()
            except (NaruError, TimeoutError) as error:
                if answered:
                    _log.warning("the database is away", error=repr(error.__cause__ or error))
                answered = False
                self._wake()  # so that watchers see how old their knowledge is
            else:
                if not answered:
                    _log.info("the database is back")
                answered = True
                self._polled_at = self._clock.monotonic()
                if position.sequence < known:
                    _log.warning("the database was restored to an earlier state", sequence=position.sequence)
                    self._latest = position.sequence
                    self._wake()
                self.announce(position.sequence)
            await asyncio.sleep(self._poll_seconds)

    async def watch(self) -> AsyncGenerator[Notice, None]:
        """Yields where the numbering stands, then each invalidation, and a heartbeat when there is none; until closed.

        Raises:
            NaruError: SERVICE_UNAVAILABLE when the store is away or was restored to an earlier state, and when the process
                stops.
        """
        position = await self._store.position()
        self.announce(position.sequence)
        self._polled_at = self._clock.monotonic()
        yield Notice(position)
        while True:
            grown = await self._wait(position.sequence)
            if self._closed:
                raise unavailable("authsvc", "The service is stopping.")
            if not self.reachable:
                raise unavailable("authsvc", "The database is not available right now.")
            if self._latest < position.sequence:
                # The numbers this watcher has heard of come a second time; a new watch begins with where they stand now.
                raise unavailable("authsvc", "The numbering of invalidations has gone back.")
            if not grown:
                yield Notice(position)
                continue
            page = await self._store.invalidations_after(position.sequence, _PAGE)
            if page:
                position = Position(position.epoch, page[-1].sequence)
                self.announce(position.sequence)
                yield Notice(
                    position,
                    tuple(invalidation.key_id for invalidation in page if invalidation.key_id),
                    tuple(invalidation.user_id for invalidation in page if invalidation.user_id),
                )

    async def _wait(self, sequence: int) -> bool:
        """Waits until there is more than `sequence` (True), the heartbeat is due, or something is wrong (False)."""
        if self._closed or self._latest > sequence:
            return not self._closed
        changed = self._changed
        try:
            async with asyncio.timeout(self._heartbeat_seconds):
                await changed.wait()
        except TimeoutError:
            return False
        return self._latest > sequence

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
