"""What was deleted and revoked stays so when the schema goes down and up, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

from authsvc.deletions_store import DeletionStore
from authsvc.invites_store import InviteStore
from authsvc.keys import SecretDigest
from authsvc.migrations import MIGRATIONS
from authsvc.records import ApiKey, Workspace
from authsvc.store import KeyStore
from authsvc.user_records import Invite, Membership, User
from authsvc.users_store import UserStore
from authsvc.workspaces_store import WorkspaceStore
from naru.database import Database
from naru.identity import Role
from naru.testing.clock import FakeClock
from tests.support.auth_store import bootstrap, entry, insert_key, people_audit, told

NOW = 1_800_000_000.5
DIGEST = SecretDigest(1, b"d" * 32)


async def test_what_is_deleted_stays_so(database: Database, store: KeyStore) -> None:
    """An earlier schema knows nothing of deletions: there the user is blocked, keys and invites are ended; and up again."""
    users, workspaces, invites = UserStore(database), WorkspaceStore(database), InviteStore(database)
    deletions = DeletionStore(database, people_audit(FakeClock()))
    assert await bootstrap(store, Workspace("w1", "default", "free", NOW), ApiKey("key000000000", "w1", NOW), DIGEST)
    await workspaces.insert_workspace(Workspace("w2", "team", "free", NOW), entry("workspace.create"))
    assert await users.insert_user(
        User("u1", "ann@example.com", NOW), "hash", Membership("w1", "u1", Role.USER, NOW), []
    )
    await insert_key(store, ApiKey("key000000001", "w1", NOW, user_id="u1"), DIGEST)
    await insert_key(store, ApiKey("key000000002", "w2", NOW), DIGEST)
    for invite_id in ("i1", "i2"):
        invite = Invite(invite_id, "w1", Role.USER, NOW, NOW + 60)
        await users.insert_invite(invite, DIGEST, entry("invite.create"))
    await invites.revoke("i1", "", NOW + 1, told)
    await deletions.delete_user("u1", NOW + 2)
    await deletions.delete_workspace("w2", NOW + 2)

    await MIGRATIONS.downgrade(database, "0003")
    async with database.reading() as connection:
        rows = await connection.execute(sa.text("SELECT invite_id FROM invites WHERE use_time IS NULL"))
        assert rows.scalars().all() == ["i2"]
        assert (await connection.execute(sa.text("SELECT blocked, email FROM users"))).one() == (True, "u1")
    await MIGRATIONS.upgrade(database)
    assert await users.find_invite("i1") is None
    assert await users.find_invite("i2") is not None
    for key_id in ("key000000001", "key000000002"):
        key = await store.get_key(key_id)
        assert key is not None
        assert key.revoke_time == NOW + 2
    assert await users.insert_user(
        User("u2", "ann@example.com", NOW), "hash", Membership("w1", "u2", Role.USER, NOW), []
    )
