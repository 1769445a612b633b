"""What the stores of people promise, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from authsvc import audit, migrations
from authsvc.deletions_store import DeletionStore
from authsvc.key_store import KeyChanges
from authsvc.keys import SecretDigest
from authsvc.records import ApiKey, Workspace
from authsvc.sessions_store import KEPT_SECONDS, SessionStore
from authsvc.store import KeyStore
from authsvc.tables import api_keys, memberships, metadata, refresh_tokens, sessions
from authsvc.user_records import Invite, Membership, Seat, Session, User
from authsvc.users_store import UserStore
from authsvc.workspaces_store import WorkspaceStore
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.identity import Role
from naru.testing.clock import FakeClock
from tests.support.auth_store import bootstrap, entry, insert_key, people_audit, revoke_key, told

NOW = 1_800_000_000.25
FIRST = Workspace("w1", "default", "free", NOW)
SECOND = Workspace("w2", "second", "pro", NOW)
USER = User("u1", "ann@example.com", NOW, "안", tier="team", default_workspace_id="w2")
KEY = ApiKey("key000000001", "w1", NOW)
DIGEST = SecretDigest(3, b"d" * 32)


def session(number: int, **changes: Any) -> Session:
    return replace(Session(f"s{number}", "u1", "192.0.2.1", NOW, NOW + 100), **changes)


class Stores:
    """All of them on one database, with two workspaces and a user in the first."""

    def __init__(self, database: Database) -> None:
        self.keys, self.users = KeyStore(database), UserStore(database)
        self.sessions, self.workspaces = SessionStore(database), WorkspaceStore(database)
        self.database = database

    async def sequence(self) -> int:
        return (await self.keys.position()).sequence


async def filled(database: Database) -> Stores:
    stores = Stores(database)
    assert await bootstrap(stores.keys, FIRST, KEY, DIGEST)
    await stores.workspaces.insert_workspace(SECOND, entry("workspace.create"))
    assert await stores.users.insert_user(USER, "hash", Membership("w1", "u1", Role.USER, NOW), ())
    return stores


@pytest.fixture
async def stores(database: Database) -> Stores:
    return await filled(database)


async def reason_of(call: Any) -> Reason:
    with pytest.raises(NaruError) as failure:
        await call
    return failure.value.reason


async def downgrade(database: Database, revision: str) -> None:
    """Takes the schema back to `revision`."""

    def run(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.set_main_option("path_separator", "os")
        config.attributes.update(connection=connection, version_table=migrations.VERSION_TABLE)
        command.downgrade(config, revision)

    async with database.writing() as connection:
        await connection.run_sync(run)


async def test_a_user_comes_back_whole(stores: Stores) -> None:
    """Every field of a user and of a membership survives."""
    assert await stores.users.get_user("u1") == USER
    assert await stores.users.find_by_email(USER.email) == (USER, "hash")
    assert await stores.users.find_by_email("Ann@example.com") is None
    assert await stores.users.memberships_of("u1") == [
        Membership("w1", "u1", Role.USER, NOW, "default", "ann@example.com")
    ]


async def test_racing_users_of_one_address(stores: Stores) -> None:
    """Of several with one address one is added, whole, and the others leave nothing."""
    made = [replace(USER, user_id=f"x{n}", email="race@example.com") for n in range(5)]
    results = await asyncio.gather(
        *(
            stores.users.insert_user(user, "h", Membership("w1", user.user_id, Role.USER, NOW), [told()])
            for user in made
        ),
        return_exceptions=True,
    )
    assert results.count(True) == 1
    refused = [result for result in results if isinstance(result, NaruError)]
    assert {error.reason for error in refused} == {Reason.ALREADY_EXISTS}
    assert len(await stores.workspaces.list_members("w1", after="", limit=10)) == 2


async def test_one_first_administrator(stores: Stores) -> None:
    """Of several first administrators at once one is made."""
    made = [replace(USER, user_id=f"a{n}", email=f"a{n}@example.com", role=Role.ADMIN) for n in range(5)]
    added = await asyncio.gather(
        *(
            stores.users.insert_user(
                user, "h", Membership("w1", user.user_id, Role.USER, NOW), [told()], only_admin=True
            )
            for user in made
        )
    )
    assert sum(added) == 1


async def test_an_invite_is_used_once(stores: Stores) -> None:
    """Of several who use an invite at once one gets in."""
    invite = Invite("i1", "w1", Role.USER, NOW, NOW + 10, "")
    await stores.users.insert_invite(invite, DIGEST, entry("invite.create"))
    assert await stores.users.find_invite("i1") == (invite, DIGEST)
    made = [replace(USER, user_id=f"i{n}", email=f"i{n}@example.com") for n in range(4)]
    added = await asyncio.gather(
        *(
            stores.users.insert_user(
                user, "h", Membership("w1", user.user_id, Role.USER, NOW), [told()], invite_id="i1"
            )
            for user in made
        )
    )
    assert sum(added) == 1
    assert await stores.users.find_invite("i1") is None


async def test_changes_of_a_user_are_numbered(stores: Stores) -> None:
    """Updating, blocking, passwords, memberships and the end of sessions each get the next number, for that user."""
    await stores.sessions.insert_session(session(1), DIGEST, "hash")
    start = await stores.sequence()
    assert (await stores.users.update_user(replace(USER, name="Ann"), NOW, told))[1] == start + 1
    assert await stores.users.set_password("u1", "new", NOW, told) == start + 2
    await stores.sessions.insert_session(session(2), DIGEST, "new")
    assert await stores.sessions.revoke_session(session(2), NOW) == start + 3
    assert await stores.sessions.revoke_session(session(2), NOW) is None
    assert await stores.sessions.revoke_sessions("u1", NOW, told) == (0, None)
    assert await stores.workspaces.set_member(Membership("w2", "u1", Role.USER, NOW), told) == start + 4
    assert await stores.workspaces.remove_member("w2", "u1", NOW, told) == start + 5
    assert await stores.workspaces.remove_member("w2", "u1", NOW, told) is None
    numbered = await stores.keys.invalidations_after(start, 10)
    assert [(one.key_id, one.user_id) for one in numbered] == [("", "u1")] * 5


async def test_another_tier_concerns_all_of_a_workspace(stores: Stores) -> None:
    """A workspace's keys and members are told of another tier; another name concerns nobody."""
    start = await stores.sequence()
    assert (await stores.workspaces.update_workspace("w1", name="renamed", tier="free", now=NOW, tell=told))[1] is None
    workspace, sequence = await stores.workspaces.update_workspace("w1", name="renamed", tier="pro", now=NOW, tell=told)
    assert (workspace.tier, sequence) == ("pro", start + 2)
    numbered = await stores.keys.invalidations_after(start, 10)
    assert [(one.key_id, one.user_id) for one in numbered] == [("", "u1"), (KEY.key_id, "")]
    taken = stores.workspaces.update_workspace("w2", name="renamed", tier="pro", now=NOW, tell=told)
    assert await reason_of(taken) is Reason.ALREADY_EXISTS
    unknown = stores.workspaces.update_workspace("w9", name="x", tier="pro", now=NOW, tell=told)
    assert await reason_of(unknown) is Reason.NOT_FOUND


async def test_no_session_begins_with_a_password_that_was(stores: Stores) -> None:
    """A session needs the password that was checked, and a user who is not blocked."""
    assert not await stores.sessions.insert_session(session(1), DIGEST, "another")
    await stores.users.update_user(replace(USER, blocked=True), NOW, told)
    assert not await stores.sessions.insert_session(session(1), DIGEST, "hash")
    assert (await stores.sessions.look_up_session("s1")).session is None


async def test_an_ipv6_network_is_known_as_one_address(stores: Stores) -> None:
    """Where an account was logged in from counts as the throttle counts: a /64 and a mapped address are one."""
    await stores.sessions.insert_session(session(1), DIGEST, "hash")
    await stores.sessions.insert_session(session(2, client_address="2001:db8::1"), DIGEST, "hash")
    for address in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::ab:cd"):
        assert await stores.sessions.began_from(USER.email, address), address
        assert not await stores.sessions.began_from("bob@example.com", address)
    for address in ("192.0.2.2", "2001:db8:0:1::1", ""):
        assert not await stores.sessions.began_from(USER.email, address), address


async def test_a_refresh_token_is_spent_once(stores: Stores) -> None:
    """Of several that spend a token at once one does, and there is one successor."""
    await stores.sessions.insert_session(session(1), DIGEST, "hash")
    spent = await asyncio.gather(*(stores.sessions.spend_refresh("s1", 1, DIGEST, NOW + 1) for _ in range(5)))
    assert sum(spent) == 1
    found = await stores.sessions.look_up_refresh("s1", 1)
    assert found is not None
    assert (found.spend_time, found.newest, found.session, found.blocked) == (NOW + 1, 2, session(1), False)
    assert await stores.sessions.look_up_refresh("s1", 3) is None


async def test_a_session_tells_where_its_user_is(stores: Stores) -> None:
    """The default workspace comes first, then the ones joined first; unknown sessions tell the position alone."""
    await stores.sessions.insert_session(session(1), DIGEST, "hash")
    await stores.workspaces.set_member(Membership("w2", "u1", Role.WORKSPACE_ADMIN, NOW + 1), told)
    found = await stores.sessions.look_up_session("s1")
    assert found.seats == (Seat("w2", Role.WORKSPACE_ADMIN, "pro"), Seat("w1", Role.USER, "free"))
    assert (found.session, found.role, found.tier, found.blocked) == (session(1), Role.USER, "team", False)
    nobody = await stores.sessions.look_up_session("nobody")
    assert (nobody.session, nobody.seats, nobody.position) == (None, (), await stores.keys.position())


async def test_old_sessions_are_forgotten(stores: Stores) -> None:
    """A session that expired a week ago goes, with its tokens, when its user logs in again."""
    await stores.sessions.insert_session(session(1), DIGEST, "hash")
    later = NOW + 100 + KEPT_SECONDS + 1
    await stores.sessions.insert_session(session(2, create_time=later, expire_time=later + 9), DIGEST, "hash")
    async with stores.database.reading() as connection:
        for table in (sessions, refresh_tokens):
            assert list((await connection.execute(sa.select(table.c.session_id))).scalars()) == ["s2"]


async def test_members_need_a_user_and_a_workspace(stores: Stores) -> None:
    """A membership of nobody, or nowhere, is NOT_FOUND; of two at once for the same user one is made."""
    for workspace_id, user_id in (("w9", "u1"), ("w1", "u9")):
        call = stores.workspaces.set_member(Membership(workspace_id, user_id, Role.USER, NOW), told)
        assert await reason_of(call) is Reason.NOT_FOUND
    member = Membership("w2", "u1", Role.USER, NOW)
    await asyncio.gather(*(stores.workspaces.set_member(member, told) for _ in range(4)))
    assert len(await stores.workspaces.list_members("w2", after="", limit=10)) == 1


async def test_a_member_who_was_sent_away_does_not_come_back_by_a_change(stores: Stores) -> None:
    """A change of a membership that ended, at that moment too, is NOT_FOUND for whoever may not add members."""
    member, is_member = Membership("w1", "u1", Role.WORKSPACE_ADMIN, NOW), memberships.c.user_id == "u1"
    await stores.workspaces.set_member(member, told, may_add=False)
    async with stores.database.writing() as connection:
        await connection.execute(sa.delete(memberships).where(is_member))
        changing = asyncio.create_task(stores.workspaces.set_member(member, told, may_add=False))
        done, _ = await asyncio.wait([changing], timeout=0.2)
        assert not done
    assert await reason_of(changing) is Reason.NOT_FOUND
    assert await stores.workspaces.get_member("w1", "u1") is None


async def test_a_deletion_and_noted_uses_do_not_wait_for_each_other(postgresql: Database) -> None:
    """Both take keys in one order, the deletion also those that were revoked before: neither is ended for the other."""
    stores, changes = await filled(postgresql), KeyChanges(postgresql)
    revoked, between, last = (ApiKey(f"{name}key00000000", "w1", NOW) for name in "BMa")
    for key in (replace(revoked, user_id="u1"), between, replace(last, user_id="u1")):
        await insert_key(stores.keys, key, DIGEST)
    await revoke_key(postgresql, revoked.key_id, NOW)
    async with postgresql.writing() as connection:
        # Holds whoever notes uses up between the user's keys.
        await connection.execute(sa.select(api_keys).where(api_keys.c.key_id == between.key_id).with_for_update())
        uses = {key.key_id: NOW for key in (last, between, revoked)}
        noting = asyncio.create_task(changes.note_uses(uses))
        await asyncio.wait([noting], timeout=0.2)
        deletions = DeletionStore(postgresql, people_audit(FakeClock(NOW)))
        deleting = asyncio.create_task(deletions.delete_user("u1", NOW))
        done, _ = await asyncio.wait([noting, deleting], timeout=0.2)
        assert not done
    await asyncio.gather(noting, deleting)
    keys = [await stores.keys.get_key(key_id) for key_id in uses]
    assert [key and key.last_used_time for key in keys] == [NOW] * 3


async def test_keys_are_deleted_in_the_order_in_which_uses_are_noted(postgresql: Database) -> None:
    """As Python sorts, and not as the language does that a PostgreSQL was made for, of which there is none in tests."""
    await filled(postgresql)
    statements: list[str] = []

    def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(" ".join(statement.split()))

    sa.event.listen(sa.Engine, "before_cursor_execute", hear)
    try:
        await DeletionStore(postgresql, people_audit(FakeClock(NOW))).delete_user("u1", NOW)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hear)
    locks = [one for one in statements if "FROM api_keys" in one]
    assert [one.endswith('ORDER BY api_keys.key_id COLLATE "C" FOR UPDATE') for one in locks] == [True]


async def test_the_migration_goes_back_with_people_in_place(stores: Stores) -> None:
    """Down and up again with users, sessions and invalidations in place keeps keys and workspaces."""
    await stores.sessions.insert_session(session(1), DIGEST, "hash")
    await stores.users.update_user(replace(USER, name="Ann"), NOW, told)
    await downgrade(stores.database, "0001")
    async with stores.database.reading() as connection:
        tables = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    assert "users" not in tables
    await migrations.MIGRATIONS.upgrade(stores.database)
    assert await stores.users.get_user("u1") is None
    assert await stores.keys.get_key(KEY.key_id) == KEY
    assert await stores.keys.get_workspace("w2") == SECOND


INVITE = Invite("i1", "w1", Role.USER, NOW, NOW + 10, "")
OTHER = replace(USER, user_id="u2", email="bob@example.com")
CHANGES: dict[str, Callable[[Stores, Any], Awaitable[Any]]] = {
    "user.create": lambda stores, broken: stores.users.insert_user(
        OTHER, "h", Membership("w1", "u2", Role.USER, NOW), [broken()]
    ),
    "user.update": lambda stores, broken: stores.users.update_user(replace(USER, blocked=True), NOW, broken),
    "user.reset_password": lambda stores, broken: stores.users.set_password("u1", "new", NOW, broken),
    "user.revoke_sessions": lambda stores, broken: stores.sessions.revoke_sessions("u1", NOW, broken),
    "session.revoke_family": lambda stores, broken: stores.sessions.revoke_session(session(1), NOW, broken()),
    "invite.create": lambda stores, broken: stores.users.insert_invite(INVITE, DIGEST, broken()),
    "workspace.create": lambda stores, broken: stores.workspaces.insert_workspace(
        Workspace("w3", "third", "free", NOW), broken()
    ),
    "workspace.update": lambda stores, broken: stores.workspaces.update_workspace(
        "w1", name="renamed", tier="pro", now=NOW, tell=broken
    ),
    "member.set": lambda stores, broken: stores.workspaces.set_member(Membership("w2", "u1", Role.USER, NOW), broken),
    "member.remove": lambda stores, broken: stores.workspaces.remove_member("w1", "u1", NOW, broken),
}


async def contents(database: Database) -> dict[str, list[str]]:
    """All rows of all tables."""
    async with database.reading() as connection:
        return {
            table.name: sorted(map(repr, (await connection.execute(sa.select(table))).all()))
            for table in metadata.sorted_tables
        }


async def test_no_change_without_its_entry(stores: Stores) -> None:
    """A change whose entry cannot be written does not happen, whichever it is."""
    await stores.sessions.insert_session(session(1), DIGEST, "hash")
    known = entry("user.create")
    async with stores.database.writing() as connection:
        await audit.record(connection, known)
    before = await contents(stores.database)
    for action, change in CHANGES.items():
        # The id of another entry; some take it for a name or an address that is taken, and refuse the change for that.
        with pytest.raises((sa.exc.IntegrityError, NaruError)):
            await change(stores, lambda *_: known)
        assert await contents(stores.database) == before, action
