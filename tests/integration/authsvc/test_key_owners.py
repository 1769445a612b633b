"""What a key is worth that belongs to a user: no more than the user, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from authsvc.audit import Auditor, Origin
from authsvc.authentication import Authenticator
from authsvc.key_store import KeyChanges
from authsvc.key_usage import KeyUsage
from authsvc.keys import NewKey, Pepper, Peppers, new_key
from authsvc.management import KeyManager, KeyWish, MadeKey
from authsvc.records import ApiKey, KeyFilters, Workspace
from authsvc.store import KeyStore
from authsvc.tables import api_keys
from authsvc.user_records import Membership, User
from authsvc.users_store import UserStore
from authsvc.workspaces_store import WorkspaceStore
from naru.database import Database
from naru.errors import NaruError, Reason, invalid_api_key, not_found
from naru.identity import Principal, Role
from naru.ids import uuid7
from naru.lifecycle import Lifecycle
from naru.testing.clock import FakeClock
from tests.integration.authsvc.harness import refused, refused_field
from tests.support.auth_store import bootstrap, entry, insert_key, revoke_key, told

PEPPERS = Peppers([Pepper(1, b"p" * 32)])
ADMIN = Principal("w1", Role.ADMIN, key_id="admin0000000")


class World:
    """Workspaces "w1" and "w2", an administrator, and a member of "w1" who owns a key there."""

    def __init__(self, database: Database) -> None:
        self.clock = FakeClock()
        self.store, self.users = KeyStore(database), UserStore(database)
        self.workspaces = WorkspaceStore(database)
        usage = KeyUsage(KeyChanges(database), self.clock)
        self.authenticator = Authenticator(self.store, PEPPERS, self.clock, usage, Lifecycle().background)
        self.manager = KeyManager(
            store=self.store,
            auditor=Auditor(origin=lambda: Origin("service:test"), clock=self.clock, new_id=uuid7),
            peppers=PEPPERS,
            clock=self.clock,
            random_bytes=os.urandom,
            new_id=uuid7,
            user_keys=3,
        )
        self.user = User("u1", "ann@example.com", self.clock.time())
        self.text = ""

    async def fill(self) -> None:
        now, first = self.clock.time(), new_key(PEPPERS, os.urandom)
        key = ApiKey(first.key_id, "w1", now)
        assert await bootstrap(self.store, Workspace("w1", "default", "pro", now), key, first.digest)
        await self.workspaces.insert_workspace(Workspace("w2", "second", "free", now), entry("workspace.create"))
        boss = User("u0", "boss@example.com", now, role=Role.ADMIN)
        assert await self.users.insert_user(boss, "hash", Membership("w1", "u0", Role.USER, now), [])
        assert await self.users.insert_user(self.user, "hash", Membership("w1", "u1", Role.USER, now), [])
        self.text = (await self.manager.create(ADMIN, KeyWish(user_id="u1"))).text

    async def change_user(self, **changes: Any) -> None:
        """Replaces what the user is."""
        self.user = replace(self.user, **changes)
        await self.users.update_user(self.user, self.clock.time(), told)

    async def tier(self) -> str:
        """The tier that the user's key has."""
        return (await self.authenticator.resolve(self.text)).principal.tier

    async def is_refused(self) -> bool:
        """Whether the user's key is refused, as any wrong key is."""
        return await refused(self.authenticator.resolve(self.text)) == invalid_api_key()


@pytest.fixture
async def world(database: Database) -> World:
    world = World(database)
    await world.fill()
    return world


async def test_a_blocked_users_keys_are_refused(world: World) -> None:
    """While a user is blocked their keys are refused as any wrong key is; after that they work again."""
    assert await world.tier() == "pro"
    await world.change_user(blocked=True)
    assert await world.is_refused()
    await world.change_user(blocked=False)
    assert await world.tier() == "pro"


async def test_the_tier_is_the_keys_else_the_users_else_the_workspaces(world: World) -> None:
    """The lists by tier say the same as the authenticator."""

    async def listed(tier: str) -> bool:
        page = await world.manager.list_page(ADMIN, KeyFilters(tier=tier), page_size=0, page_token="")
        return "u1" in {key.user_id for key in page.keys}

    assert (await world.tier(), await listed("pro")) == ("pro", True)
    await world.change_user(tier="team")
    assert (await world.tier(), await listed("team"), await listed("pro")) == ("team", True, False)
    made = await world.manager.create(ADMIN, KeyWish(user_id="u1", tier="own"))
    assert (await world.authenticator.resolve(made.text)).principal.tier == "own"


async def test_no_user_has_too_many(world: World, database: Database) -> None:
    """Of several at once no more are made than there is room for; what ended makes room after a day."""
    ann = Principal("w1", Role.USER, user_id="u1")

    async def made() -> list[str]:
        """The keys that a user gets who asks for four at once."""
        asked = await asyncio.gather(*(world.manager.create(ann, KeyWish()) for _ in range(4)), return_exceptions=True)
        reasons = {answer.reason for answer in asked if isinstance(answer, NaruError)}
        assert reasons == {Reason.FAILED_PRECONDITION}
        return [answer.key.key_id for answer in asked if isinstance(answer, MadeKey)]

    gone, kept = await made()
    await revoke_key(database, gone, world.clock.time())
    assert await made() == []
    world.clock.advance(86_401)
    (another,) = await made()
    assert another not in (gone, kept)
    assert (await world.manager.create(ADMIN, KeyWish(user_id="u1"))).text


async def test_a_key_ends_with_the_membership(world: World) -> None:
    """Whoever leaves a workspace has no key there any more, until they join it again; administrators belong everywhere."""
    await world.workspaces.remove_member("w1", "u1", world.clock.time(), told)
    assert await world.is_refused()
    await world.workspaces.set_member(Membership("w2", "u1", Role.USER, world.clock.time()), told)
    assert await world.is_refused(), "a member of another workspace"
    await world.change_user(role=Role.ADMIN)
    assert await world.tier() == "pro"
    await world.change_user(role=Role.USER)
    await world.workspaces.set_member(Membership("w1", "u1", Role.USER, world.clock.time()), told)
    assert await world.tier() == "pro"


async def test_a_key_may_what_its_user_may_now(world: World) -> None:
    """The lower of its role and its user's in its workspace, whichever changed last; a key of nobody keeps its own."""
    now = world.clock.time()
    keys = {role: (await world.manager.create(ADMIN, KeyWish(user_id="u1", role=role))).text for role in Role}
    free = (await world.manager.create(ADMIN, KeyWish(role=Role.ADMIN))).text

    async def roles() -> list[Role]:
        """What each of the user's keys may do, from that of a user up."""
        return [(await world.authenticator.resolve(text)).principal.role for text in keys.values()]

    user, manager, admin = Role
    assert await roles() == [user, user, user]
    await world.workspaces.set_member(Membership("w1", "u1", manager, now), told)
    assert await roles() == [user, manager, manager]
    await world.change_user(role=admin)
    assert await roles() == [user, manager, admin]
    await world.workspaces.remove_member("w1", "u1", now, told)
    assert await roles() == [user, manager, admin], "administrators belong everywhere"
    await world.workspaces.set_member(Membership("w1", "u1", user, now), told)
    await world.change_user(role=user)
    assert await roles() == [user, user, user]
    assert (await world.authenticator.resolve(free)).principal.role is admin


async def test_a_key_of_a_user_that_is_not_there_is_refused(world: World, database: Database) -> None:
    """Such keys can be from a time at which nobody checked."""
    made: NewKey = new_key(PEPPERS, os.urandom)
    await insert_key(world.store, ApiKey(made.key_id, "w1", world.clock.time()), made.digest)
    async with database.writing() as connection:
        is_made = api_keys.c.key_id == made.key_id
        await connection.execute(sa.update(api_keys).where(is_made).values(user_id="gone"))
    assert await refused(world.authenticator.resolve(made.text)) == invalid_api_key()


async def test_a_key_is_made_for_members(world: World) -> None:
    """An unknown user is not found, one of another workspace is named; who may not ask learns neither."""
    assert await refused(world.manager.create(ADMIN, KeyWish(user_id="nobody"))) == not_found("user", "nobody")
    elsewhere = KeyWish(user_id="u1", workspace_id="w2")
    assert await refused_field(world.manager.create(ADMIN, elsewhere)) == "user_id"
    manager = Principal("w1", Role.WORKSPACE_ADMIN, user_id="u2")
    for user_id in ("u1", "nobody"):
        error = await refused(world.manager.create(manager, KeyWish(user_id=user_id)))
        assert error.reason is Reason.PERMISSION_DENIED
    await world.change_user(role=Role.ADMIN)
    assert (await world.manager.create(ADMIN, elsewhere)).text
