"""What KeyManager decides where there is more than one workspace, and what it tells the feed."""

from __future__ import annotations

import asyncio
import random
from itertools import count

import pytest
import sqlalchemy as sa

from authsvc.audit import Auditor, Origin
from authsvc.invalidations import InvalidationFeed
from authsvc.key_changes import KeyChanger, KeyUpdate
from authsvc.key_store import KeyChanges
from authsvc.keys import Pepper, Peppers
from authsvc.management import KeyManager, KeyWish
from authsvc.records import KeyFilters
from authsvc.store import KeyStore
from authsvc.tables import workspaces
from naru.database import Database
from naru.errors import NaruError, Reason, not_found
from naru.identity import Principal, Role
from naru.ids import uuid7
from naru.testing.clock import FakeClock

ADMIN = Principal("w1", Role.ADMIN, key_id="admin0000000")
PEPPERS = Peppers([Pepper(1, b"p" * 32)])
AUDITOR = Auditor(origin=lambda: Origin("service:test"), clock=FakeClock(), new_id=uuid7)
HERE = Principal("w1", Role.WORKSPACE_ADMIN, key_id="here00000000")
ELSEWHERE = Principal("other", Role.WORKSPACE_ADMIN, key_id="elsewhere000")


@pytest.fixture
def store(database: Database) -> KeyStore:
    """An empty store."""
    return KeyStore(database)


@pytest.fixture
def feed(store: KeyStore) -> InvalidationFeed:
    """A feed that nobody polls for."""
    return InvalidationFeed(store, FakeClock(), heartbeat_seconds=60)


@pytest.fixture
async def manager(database: Database, store: KeyStore) -> KeyManager:
    """A manager of the workspaces "w1" and "other"."""
    ids = count(1)
    manager = KeyManager(
        store=store,
        auditor=AUDITOR,
        peppers=PEPPERS,
        clock=FakeClock(),
        random_bytes=random.Random(1).randbytes,
        new_id=lambda: f"w{next(ids)}",
        user_keys=100,
    )
    await manager.bootstrap("", additional=False)
    async with database.writing() as connection:
        await connection.execute(
            sa.insert(workspaces).values(workspace_id="other", name="other", tier="pro", create_time=0)
        )
    return manager


@pytest.fixture
def changer(database: Database, store: KeyStore, feed: InvalidationFeed) -> KeyChanger:
    """Changes the manager's keys."""
    return KeyChanger(
        store=store,
        changes=KeyChanges(database),
        feed=feed,
        auditor=AUDITOR,
        peppers=PEPPERS,
        clock=FakeClock(),
        random_bytes=random.Random(2).randbytes,
    )


@pytest.mark.parametrize("change", ["get", "update", "rotate", "block", "unblock", "revoke"])
async def test_a_foreign_key_looks_like_none(
    manager: KeyManager, changer: KeyChanger, store: KeyStore, change: str
) -> None:
    """Whoever manages another workspace hears of a key what it hears of one that does not exist, whatever it asks for."""
    made = await manager.create(ADMIN, KeyWish())
    update = (KeyUpdate(description="mine"),) if change == "update" else ()
    for key_id in (made.key.key_id, "nobody000000"):
        with pytest.raises(NaruError) as failure:
            await getattr(changer, change)(ELSEWHERE, key_id, *update)
        assert failure.value == not_found("api_key", key_id)
    assert await store.get_key(made.key.key_id) == made.key


async def test_workspace_admins_see_only_their_own(manager: KeyManager) -> None:
    """The same unfiltered list shows an administrator all keys and a workspace admin those of its workspace."""
    here = (await manager.create(HERE, KeyWish())).key
    there = (await manager.create(ELSEWHERE, KeyWish())).key
    seen = {}
    for caller in (ADMIN, HERE, ELSEWHERE):
        page = await manager.list_page(caller, KeyFilters(), page_size=0, page_token="")
        seen[caller.key_id] = {key.key_id for key in page.keys} & {here.key_id, there.key_id}
    assert seen == {
        ADMIN.key_id: {here.key_id, there.key_id},
        HERE.key_id: {here.key_id},
        ELSEWHERE.key_id: {there.key_id},
    }


async def test_an_administrator_makes_keys_anywhere(manager: KeyManager) -> None:
    """An administrator names any workspace; a workspace admin only its own, before it is known whether there is one."""
    assert (await manager.create(ADMIN, KeyWish(workspace_id="other"))).key.workspace_id == "other"
    assert (await manager.create(HERE, KeyWish(workspace_id="w1"))).key.workspace_id == "w1"
    for foreign in ("other", "nowhere"):
        with pytest.raises(NaruError) as failure:
            await manager.create(HERE, KeyWish(workspace_id=foreign))
        assert failure.value.reason is Reason.PERMISSION_DENIED


async def test_a_request_id_belongs_to_its_caller(manager: KeyManager) -> None:
    """Two callers may choose the same request id: neither sees the other's key."""
    wish = KeyWish(request_id="0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1")
    here = await manager.create(HERE, wish)
    there = await manager.create(ELSEWHERE, wish)
    assert here.key.key_id != there.key.key_id
    assert there.text
    assert (await manager.create(HERE, wish)).key == here.key


async def test_revoking_wakes_the_watchers(manager: KeyManager, changer: KeyChanger, feed: InvalidationFeed) -> None:
    """A watcher hears of a revocation made in this process without a poll."""
    made = await manager.create(ADMIN, KeyWish())
    notices = feed.watch()
    await anext(notices)
    waiting = asyncio.create_task(anext(notices))
    await asyncio.sleep(0)
    await changer.revoke(ADMIN, made.key.key_id)
    async with asyncio.timeout(20):
        assert (await waiting).key_ids == (made.key.key_id,)
    await notices.aclose()
