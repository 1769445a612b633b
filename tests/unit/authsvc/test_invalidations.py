"""The feed of invalidations, without the polling that other tests have running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import sqlalchemy as sa

from authsvc.invalidations import STALE_SECONDS, InvalidationFeed, Notice
from authsvc.keys import SecretDigest
from authsvc.records import ApiKey, Workspace
from authsvc.store import KeyStore
from authsvc.tables import installation, invalidations
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.testing.clock import FakeClock
from tests.support.auth_store import bootstrap, revoke_key

KEY = ApiKey("key000000000", "w1", 1.0)


@pytest.fixture
async def store(database: Database) -> KeyStore:
    """A store with one key."""
    store = KeyStore(database)
    assert await bootstrap(store, Workspace("w1", "default", "free", 1.0), KEY, SecretDigest(1, b"d" * 32))
    return store


async def soon(notices: AsyncGenerator[Notice, None]) -> Notice:
    async with asyncio.timeout(20):
        return await anext(notices)


async def test_a_revocation_made_here_needs_no_poll(store: KeyStore, database: Database) -> None:
    """An announced revocation reaches a waiting watcher although nobody polls and no heartbeat is due."""
    feed = InvalidationFeed(store, FakeClock(), heartbeat_seconds=60)
    notices = feed.watch()
    first = await soon(notices)
    waiting = asyncio.create_task(soon(notices))
    await asyncio.sleep(0)
    _, sequence = await revoke_key(database, KEY.key_id, 2.0)
    assert sequence is not None
    feed.announce(sequence)
    notice = await waiting
    assert (notice.key_ids, notice.position.sequence) == ((KEY.key_id,), first.position.sequence + 1)
    await notices.aclose()


async def test_polling_finds_what_others_did(store: KeyStore, database: Database) -> None:
    """A revocation that nobody announced reaches a waiting watcher by the next poll."""
    feed = InvalidationFeed(store, FakeClock(), heartbeat_seconds=60, poll_seconds=0.01)
    polling = asyncio.create_task(feed.run())
    notices = feed.watch()
    await soon(notices)
    await revoke_key(database, KEY.key_id, 2.0)
    assert (await soon(notices)).key_ids == (KEY.key_id,)
    await notices.aclose()
    polling.cancel()
    await asyncio.wait([polling])


async def test_a_watcher_far_behind_reads_in_pages(store: KeyStore, database: Database) -> None:
    """However much a slow watcher missed, one message holds at most 500 keys, and none is left out."""
    feed = InvalidationFeed(store, FakeClock(), heartbeat_seconds=60)
    notices = feed.watch()
    await soon(notices)
    async with database.writing() as connection:
        await connection.execute(sa.update(installation).values(sequence=1_201))
        rows = [{"sequence": number, "key_id": f"{number:012}", "time": 0} for number in range(1, 1_202)]
        await connection.execute(sa.insert(invalidations), rows)
    feed.announce(1_201)
    pages = [await soon(notices) for _ in range(3)]
    assert [len(page.key_ids) for page in pages] == [500, 500, 201]
    assert [key_id for page in pages for key_id in page.key_ids] == [row["key_id"] for row in rows]
    assert pages[-1].position.sequence == 1_201
    await notices.aclose()


async def test_a_numbering_that_went_back_ends_the_watches(store: KeyStore, database: Database) -> None:
    """In a database that was restored numbers come a second time: nobody waits for them at the place of the first."""
    feed = InvalidationFeed(store, FakeClock(), heartbeat_seconds=0.2, poll_seconds=0.01)
    await revoke_key(database, KEY.key_id, 2.0)
    notices = feed.watch()
    assert (await soon(notices)).position.sequence == 1
    async with database.writing() as connection:
        await connection.execute(sa.delete(invalidations))
        await connection.execute(sa.update(installation).values(sequence=0))
    polling = asyncio.create_task(feed.run())
    with pytest.raises(NaruError) as failure:
        async with asyncio.timeout(20):
            while True:
                await anext(notices)
    assert failure.value.reason is Reason.SERVICE_UNAVAILABLE
    again = feed.watch()
    first = await soon(again)
    assert first.position.sequence == 0
    assert await soon(again) == first
    await again.aclose()
    polling.cancel()
    # It may be in the middle of asking the database, which is closed next.
    await asyncio.wait([polling])


async def test_old_knowledge_is_no_heartbeat(store: KeyStore) -> None:
    """When no poll succeeded for two seconds a watch fails instead of claiming that nothing was revoked."""
    clock = FakeClock()
    feed = InvalidationFeed(store, clock, heartbeat_seconds=0.01)
    before = feed.reachable
    notices = feed.watch()
    first = await soon(notices)
    assert (before, feed.reachable) == (False, True)
    clock.advance(STALE_SECONDS)
    assert await soon(notices) == first
    clock.advance(0.001)
    with pytest.raises(NaruError) as failure:
        await soon(notices)
    assert failure.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_closing_ends_waiting_and_later_watches(store: KeyStore) -> None:
    """A closed feed ends the watches that wait, and those that come afterwards once they know where it stands."""
    feed = InvalidationFeed(store, FakeClock(), heartbeat_seconds=60)
    notices = feed.watch()
    await soon(notices)
    waiting = asyncio.create_task(soon(notices))
    await asyncio.sleep(0)
    feed.close()
    late = feed.watch()
    await soon(late)
    for ending in (waiting, soon(late)):
        with pytest.raises(NaruError) as failure:
            await ending
        assert failure.value.reason is Reason.SERVICE_UNAVAILABLE
