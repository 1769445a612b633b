"""Brings usage events from the journal to accounting, for as long as it takes, and what the engine counted beside them.

The engine counts a request, and its event is journalled, in one turn of the loop. So when a batch is all that the journal
has to ship, what the engine has counted by then is exactly what accounting has once it took the batch; then, and only then,
the engine's figures go with it. They are cumulative: a batch that gets lost on its way, or comes twice, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from inference.admission import Accounting
from inference.events import EngineReport, EventKey, UsageEvent
from inference.journal import Journal
from naru.errors import NaruError, Reason
from naru.logs import Logger

BATCH_LIMIT = 1024
"""Most events of one call."""

_INTERVAL = 0.25
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0


class Shipper:
    """Ships the journal, oldest events first.

    Args:
        journal: What to ship.
        accounting: Where to.
        count: Asks the engine what it has counted.
        logger: Where trouble is told.
    """

    def __init__(
        self, journal: Journal, accounting: Accounting, count: Callable[[], EngineReport], logger: Logger
    ) -> None:
        self._journal = journal
        self._accounting = accounting
        self._count = count
        self._logger = logger
        self._limit = BATCH_LIMIT
        self._turn = asyncio.Lock()
        self._told: EngineReport | None = None

    async def run(self) -> None:
        """Ships what comes: a lone event at once, more of them four times a second. Runs for ever."""
        wait = _FIRST_WAIT
        while True:
            await self._journal.wait_unshipped()
            if await self._ship():
                wait = _FIRST_WAIT
                # Small batches are dear: one costs accounting three transactions, however many events are in it.
                await asyncio.sleep(_INTERVAL)
            else:
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    async def drain(self, grace: float) -> bool:
        """Ships what is left, trying for `grace` seconds; says whether all of it got there. The rest stays journalled.

        The engine must have ended: what it counted is told as its last figures.
        """
        try:
            async with asyncio.timeout(grace):
                while self._journal.backlog:
                    if not await self._ship(closed=True):
                        await asyncio.sleep(_FIRST_WAIT)
                # Once: without it the figures are a lower bound, which is no reason to hold up a stop.
                if self._told is not None and not self._told.closed:
                    await self._ship(closed=True)
        except TimeoutError:
            self._logger.warning("journal not shipped", events=self._journal.backlog)
        return self._journal.backlog == 0

    async def _ship(self, *, closed: bool = False) -> bool:
        async with self._turn:
            events = self._journal.unshipped(self._limit)
            if not events and not closed:
                return True
            report = replace(self._count(), closed=closed) if len(events) == self._journal.backlog else None
            try:
                answers = await self._accounting.record_usage(events, report)
            except NaruError as error:
                return self._failed(events, error)
            self._limit = BATCH_LIMIT
            self._told = report or self._told
            return self._settle(events, answers)

    def _settle(self, events: Sequence[UsageEvent], answers: Sequence[NaruError | None]) -> bool:
        settled: list[EventKey] = []
        for event, refusal in zip(events, answers, strict=True):
            if refusal is None or self._put_aside(event, refusal):
                settled.append(event.key)
        self._journal.acknowledge(settled)
        return len(settled) == len(events)

    def _failed(self, events: Sequence[UsageEvent], error: NaruError) -> bool:
        # What the engine counted goes with the next call: nothing waits that anybody would be billed for.
        log = self._logger.warning if events else self._logger.debug
        log("usage not shipped", events=len(events), reason=error.reason)
        if error.reason is Reason.INVALID_ARGUMENT:
            # One event may spoil the whole call: halve it until that one is alone, so that the others get through.
            if len(events) == 1:
                return self._settle(events, [error])
            self._limit = max(len(events) // 2, 1)
        return False

    def _put_aside(self, event: UsageEvent, refusal: NaruError) -> bool:
        try:
            self._journal.quarantine(event, refusal)
        except OSError:
            self._logger.exception("usage event not quarantined", event_id=event.event_id)
            return False
        return True
