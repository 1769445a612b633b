"""Several replicas on one database, SQLite or PostgreSQL, sign with the same keys."""

from __future__ import annotations

import asyncio

from authsvc.keys import Pepper, Peppers
from authsvc.sessions_store import SessionStore
from authsvc.signing import KeyRing
from authsvc.user_records import StoredSigningKey
from naru.database import Database
from naru.testing.clock import FakeClock
from tests.support.signing import ROTATION_SECONDS, key_ring


async def test_of_replicas_that_begin_at_once_one_makes_the_key(database: Database) -> None:
    """Each knows the other's tokens at once, the first time and at a rotation, although both saw that a key was missing."""
    clock, store = FakeClock(), ReadTogether(database)
    one, other = ring_on(store, clock), ring_on(store, clock)
    for keys in (1, 2):
        store.reads = 0
        await asyncio.gather(one.turn(), other.turn())
        assert len(one.published) == keys
        assert [key.kid for key in one.published] == [key.kid for key in other.published]
        assert one.signing().kid == other.signing().kid
        clock.advance(ROTATION_SECONDS)


async def test_a_key_that_nobody_can_open_is_replaced(database: Database) -> None:
    """One sealed under a pepper that is gone signs nothing, and holds up no new one."""
    clock, store = FakeClock(), SessionStore(database)
    lost, ring = ring_on(store, clock, pepper=1), ring_on(store, clock, pepper=2)
    await lost.turn()
    await ring.turn()
    assert len(ring.published) == 1
    assert ring.signing().kid != lost.signing().kid


async def test_tokens_of_unknown_keys_have_the_store_read_once(database: Database) -> None:
    """However many name however many keys that nobody knows, at once or one after the other: once in five seconds."""
    clock, store = FakeClock(), CountedReads(database)
    ring = ring_on(store, clock)
    await ring.turn()
    for reads in (1, 2, 3):
        await asyncio.gather(*(ring.look_for(f"unknown-{number}") for number in range(20)))
        await ring.look_for("unknown-20")
        assert store.reads == reads
        clock.advance(5)


class CountedReads(SessionStore):
    """Counts how often it is read."""

    reads = 0

    async def list_signing_keys(self) -> list[StoredSigningKey]:
        """All signing keys."""
        self.reads += 1
        return await super().list_signing_keys()


class ReadTogether(SessionStore):
    """The first two to read both have read before either goes on."""

    reads = 0

    async def list_signing_keys(self) -> list[StoredSigningKey]:
        """All signing keys."""
        keys = await super().list_signing_keys()
        self.reads += 1
        while self.reads < 2:
            await asyncio.sleep(0)
        return keys


def ring_on(store: SessionStore, clock: FakeClock, pepper: int = 1) -> KeyRing:
    return key_ring(store, Peppers([Pepper(pepper, bytes([pepper]) * 32)]), clock)
