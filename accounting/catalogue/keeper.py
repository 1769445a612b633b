"""Keeps the catalogue of this process like the one in the database, within a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from accounting.catalogue.catalogue import Catalogue
from accounting.catalogue.store import Snapshot
from accounting.catalogue.tier_file import BUILT_IN
from accounting.limits import Tier
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.logs import Logger

_INTERVAL_SECONDS = 0.3


class CatalogueSource(Protocol):
    """Where tiers, budgets and prices are kept. Raises NaruError SERVICE_UNAVAILABLE when that is away."""

    async def revision(self) -> int:
        """A number that is another one after each change."""

    async def load(self) -> Snapshot:
        """Everything, as it was at one moment."""


def tiers_in_force(stored: Iterable[Tier], file_tiers: Mapping[str, Tier]) -> dict[str, Tier]:
    """Tiers by name: those of the configuration's file before those that are stored before the built-in ones."""
    return {**BUILT_IN, **{tier.name: tier for tier in stored}, **file_tiers}


class CatalogueKeeper:
    """Holds the catalogue that is in force.

    Args:
        store: Where it is kept.
        file_tiers: Tiers of the configuration's file, by name.
        clock: Measures outages.
        logger: Hears when one begins and ends.
    """

    def __init__(self, store: CatalogueSource, file_tiers: Mapping[str, Tier], clock: Clock, logger: Logger) -> None:
        self._store = store
        self._file_tiers = dict(file_tiers)
        self._clock = clock
        self._logger = logger
        self._catalogue = Catalogue(tiers_in_force((), self._file_tiers))
        self._revision: int | None = None
        self._lock = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self._failure: NaruError | None = None

    @property
    def current(self) -> Catalogue:
        """The last that is known. Before the first refresh: the configuration's tiers alone."""
        return self._catalogue

    async def refresh(self) -> None:
        """Takes over what changed; what was changed before the call is in force after it.

        Calls that wait at the same time share one look at the database.

        Raises:
            NaruError: SERVICE_UNAVAILABLE when the database is away; the catalogue stays as it was.
        """
        self._asked += 1
        mine = self._asked
        async with self._lock:
            # A look that began before this call may have missed what our caller changed; one that began after it has not.
            if self._answered < mine:
                asked, failure = self._asked, None
                try:
                    await self._look()
                except NaruError as error:
                    failure = error
                self._answered, self._failure = asked, failure
            failed = self._failure
        if failed is not None:
            raise failed

    async def run(self) -> None:
        """Refreshes every 0.3 seconds, for ever. While the database is away, what is known stays in force."""
        away_since: float | None = None
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            try:
                await self.refresh()
            except NaruError as error:
                if error.reason is not Reason.SERVICE_UNAVAILABLE:
                    raise
                if away_since is None:
                    away_since = self._clock.monotonic()
                    self._logger.warning("going on with the last known tiers, budgets and prices", error=error.message)
            else:
                if away_since is not None:
                    seconds = round(self._clock.monotonic() - away_since, 1)
                    self._logger.info("tiers, budgets and prices are up to date again", seconds=seconds)
                away_since = None

    async def _look(self) -> None:
        if await self._store.revision() == self._revision:
            return
        found = await self._store.load()
        tiers = tiers_in_force(found.tiers, self._file_tiers)
        self._catalogue = Catalogue(tiers, found.budgets, found.prices, found.credit)
        self._revision = found.revision
