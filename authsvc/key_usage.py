"""What authenticating leaves behind, written once a minute rather than by each request."""

from __future__ import annotations

from collections.abc import Mapping

from authsvc.key_store import KeyChanges, Redigest
from naru.clock import Clock
from naru.key_uses import INTERVAL_SECONDS, KeyUses

_REDIGESTS_MAX = 10_000


class KeyUsage:
    """When keys were used, and whose digest is still under an earlier pepper.

    Args:
        changes: Where both are written.
        clock: Tells the time.
        interval: Seconds between.
    """

    def __init__(self, changes: KeyChanges, clock: Clock, *, interval: float = INTERVAL_SECONDS) -> None:
        self._changes = changes
        self._clock = clock
        self._redigests: dict[str, Redigest] = {}
        self._uses = KeyUses(self._write, clock, interval=interval)

    def used(self, key_id: str) -> None:
        """The key was used now."""
        self._uses.note(key_id)

    def reported(self, uses: Mapping[str, float]) -> None:
        """Another service saw these uses, by key id. A clock that is ahead of ours makes none later than now."""
        now = self._clock.time()
        self._uses.add({key_id: min(time, now) for key_id, time in uses.items()})

    def outdated(self, redigest: Redigest) -> None:
        """A digest is to be replaced. One that is left out comes again when its key is used again."""
        if len(self._redigests) < _REDIGESTS_MAX:
            self._redigests[redigest.key_id] = redigest

    async def run(self) -> None:
        """Writes for ever."""
        await self._uses.run()

    async def flush(self) -> None:
        """Writes now. Raises nothing when the database is away."""
        await self._uses.flush()

    async def _write(self, uses: Mapping[str, float]) -> None:
        await self._changes.note_uses(uses)
        redigests, self._redigests = self._redigests, {}
        await self._changes.redigest(list(redigests.values()))
