"""Requests that run while the limiter knows nothing of them: they hold again what they held."""

from __future__ import annotations

from collections.abc import Sequence

from accounting.limiter.reservations import Reservations
from accounting.quota import Renewal, RunningRequest
from accounting.usage.recording import Recorder
from accounting.usage.recovery_store import RecoveryStore


class Restorer:
    """Restores reservations, of what has not ended."""

    def __init__(self, reservations: Reservations, store: RecoveryStore, recorder: Recorder) -> None:
        self._reservations = reservations
        self._store = store
        self._recorder = recorder

    async def restore(self, running: Sequence[RunningRequest]) -> list[Renewal]:
        """Takes what they hold, in order, whatever the limits say; what was reported to have ended holds nothing.

        Raises NaruError SERVICE_UNAVAILABLE when Redis or the database is away.
        """
        refs = [one.reservation.ref for one in running]
        ended = {one.ref for one in await self._store.settled(refs)}
        restored = iter(await self._reservations.restore([one for one in running if one.reservation.ref not in ended]))
        renewals = [Renewal(None) if ref in ended else next(restored) for ref in refs]
        # A report may have overtaken us, and found nothing to settle.
        await self._recorder.tell(await self._store.settled([ref for ref in refs if ref not in ended]))
        return renewals
