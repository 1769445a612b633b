"""What most parts of authsvc are made of."""

from __future__ import annotations

from dataclasses import dataclass

from authsvc.audit import Auditor, origin_of
from authsvc.config import AuthsvcConfig
from authsvc.invalidations import InvalidationFeed
from authsvc.keys import Peppers
from authsvc.store import KeyStore
from naru.clock import Clock
from naru.context import current_or_none
from naru.database import Database
from naru.ids import uuid7


@dataclass(frozen=True, slots=True)
class Shared:
    """One of each, for all parts."""

    config: AuthsvcConfig
    database: Database
    store: KeyStore
    feed: InvalidationFeed
    auditor: Auditor
    peppers: Peppers
    clock: Clock

    @classmethod
    def of(cls, config: AuthsvcConfig, database: Database, peppers: Peppers, clock: Clock) -> Shared:
        """Makes what follows from the rest. Nothing is opened or asked."""
        store = KeyStore(database)
        return cls(
            config=config,
            database=database,
            store=store,
            feed=InvalidationFeed(store, clock),
            auditor=Auditor(origin=lambda: origin_of(current_or_none()), clock=clock, new_id=uuid7),
            peppers=peppers,
            clock=clock,
        )
