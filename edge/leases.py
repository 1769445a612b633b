"""What keeps reservations right when requests take long, break, or are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge.accounts import EventRef
from edge.generation import BrokenGeneration, GenerationRequest
from edge.ports import Quota
from naru.errors import NaruError
from naru.logs import get_logger

_log = get_logger(__name__)


class Leases:
    """Keeps the leases of requests alive that no replica has accepted yet; from then on the replica does."""

    def __init__(self, quota: Quota, *, interval: float = 20.0) -> None:
        self._quota = quota
        self._interval = interval
        self._held: set[EventRef] = set()

    def hold(self, event: EventRef) -> None:
        """Renews from now on."""
        self._held.add(event)

    def drop(self, event: EventRef) -> None:
        """Renews no more."""
        self._held.discard(event)

    async def run(self) -> None:
        """Renews for ever; a service keeps this running in the background."""
        while True:
            await asyncio.sleep(self._interval)
            if self._held:
                try:
                    await self._quota.renew(tuple(self._held))
                except NaruError as error:
                    _log.warning("cannot renew leases", number=len(self._held), error=error.message)


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
