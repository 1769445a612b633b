"""What keeps reservations right when requests take long, break, or are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge.accounts import EventRef, HeldReservation
from edge.generation import BrokenGeneration, GenerationRequest
from edge.ports import Quota
from naru.errors import NaruError
from naru.logs import get_logger

_log = get_logger(__name__)


class Leases:
    """Keeps the leases of requests alive that no replica has accepted yet; from then on the replica does.

    Args:
        quota: Who is asked.
        interval: Seconds between renewals.
    """

    def __init__(self, quota: Quota, *, interval: float) -> None:
        self._quota = quota
        self._interval = interval
        self._held: dict[EventRef, HeldReservation] = {}

    def hold(self, held: HeldReservation) -> None:
        """Renews from now on."""
        self._held[held.reservation.event] = held

    def drop(self, event: EventRef) -> None:
        """Renews no more."""
        self._held.pop(event, None)

    async def run(self) -> None:
        """Renews for ever; a service keeps this running in the background."""
        while True:
            await asyncio.sleep(self._interval)
            if self._held:
                try:
                    await self._renew()
                except NaruError as error:
                    _log.warning("cannot renew leases", number=len(self._held), error=error.message)

    async def _renew(self) -> None:
        unknown = await self._quota.renew(tuple(self._held))
        waiting = [self._held[event] for event in unknown if event in self._held]
        if waiting:
            _log.warning("accounting lost reservations", number=len(waiting))
            await self._quota.restore(waiting)


class BrokenRequests:
    """Implements `edge.streams.Watcher`: evidence for what broke, capacity back for what was refused too late.

    Args:
        report: Takes the evidence; does not wait.
    """

    def __init__(self, report: Callable[[BrokenGeneration], None], quota: Quota) -> None:
        self._report = report
        self._quota = quota

    def broken(self, broken: BrokenGeneration) -> None:
        """A request that was accepted lost its replica."""
        self._report(broken)

    def refused(self, request: GenerationRequest) -> None:
        """A request that its handler had given up was refused: nothing was generated."""
        self._quota.release(EventRef(request.event_id, request.attempt))
