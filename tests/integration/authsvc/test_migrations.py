"""The schema goes up and down with keys in it, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, ProgrammingError

from authsvc.audit_store import AuditQuery, AuditStore
from authsvc.key_store import KeyChanges
from authsvc.keys import SecretDigest
from authsvc.migrations import MIGRATIONS
from authsvc.records import ApiKey, KeyState, Workspace
from authsvc.store import KeyStore, StoredSecret
from naru.database import Database, translated
from naru.errors import NaruError
from naru.identity import Role, Scopes
from tests.support.auth_store import bootstrap, entry, insert_key

NOW = 1_800_000_000.5
DIGEST, NEXT = SecretDigest(1, b"d" * 32), SecretDigest(1, b"e" * 32)
KEY = ApiKey("key000000000", "w1", NOW, "first", role=Role.ADMIN, scopes=Scopes(models=("a*",)), tier="pro")
BLOCKED = ApiKey("key000000001", "w1", NOW + 1, "second", block_time=NOW + 2, metadata={"a": "b"})


async def test_keys_survive_the_schema_going_down_and_up(database: Database, store: KeyStore) -> None:
    """Down to the first schema and up again keys are what they were, but for what that schema cannot hold.

    A blocked key does not come alive by that: it is revoked. An old secret in its grace ends.
    """
    assert await bootstrap(store, Workspace("w1", "default", "free", NOW), KEY, DIGEST)
    await insert_key(store, BLOCKED, DIGEST)
    await KeyChanges(database).rotate(
        KEY.key_id,
        lambda _: None,
        NEXT,
        lambda *_: entry("api_key.rotate", KEY.key_id),
        time=NOW + 3,
        grace=60.0,
        mark=None,
    )
    position = await store.position()
    await MIGRATIONS.downgrade(database, "0001")
    assert not await MIGRATIONS.is_current(database)
    with pytest.raises((NaruError, OperationalError, ProgrammingError)), translated():
        async with database.reading() as connection:
            await connection.execute(sa.text("SELECT * FROM audit_entries"))
    await MIGRATIONS.upgrade(database)
    found = (await store.look_up([KEY.key_id], NOW + 4))[KEY.key_id]
    assert (found.key, found.secrets, found.position) == (KEY, (StoredSecret(NEXT),), position)
    blocked = await store.get_key(BLOCKED.key_id)
    assert blocked == replace(BLOCKED, block_time=None, revoke_time=BLOCKED.block_time, metadata={})
    assert blocked.state(NOW + 4) is KeyState.REVOKED
    assert await AuditStore(database).entries(AuditQuery(), after=None, limit=10) == []


async def test_keys_of_the_first_schema_work_in_the_next(database: Database, store: KeyStore) -> None:
    """What the first schema held is there after the upgrade, active, without notes and never used."""
    await MIGRATIONS.downgrade(database, "0001")
    async with database.writing() as connection:
        await connection.execute(
            sa.text("INSERT INTO workspaces VALUES ('w1', 'default', 'free', 1)"),
        )
        await connection.execute(
            sa.text(
                "INSERT INTO api_keys (key_id, digest, pepper_version, description, workspace_id, role, scopes, create_time)"
                """ VALUES ('key000000000', :digest, 1, 'old', 'w1', 'user', '{"models": ["a*"]}', 1000000)"""
            ),
            {"digest": DIGEST.digest},
        )
    await MIGRATIONS.upgrade(database)
    found = (await store.look_up(["key000000000"], NOW))["key000000000"]
    assert found.key == ApiKey("key000000000", "w1", 1.0, "old", scopes=Scopes(models=("a*",)))
    assert found.key.state(NOW) is KeyState.ACTIVE
    assert found.secrets == (StoredSecret(DIGEST),)


async def test_everything_goes_down_to_nothing(database: Database) -> None:
    """Down to the base and up again ends in the schema of this version."""
    await MIGRATIONS.downgrade(database, "base")
    await MIGRATIONS.upgrade(database)
    assert await MIGRATIONS.is_current(database)
