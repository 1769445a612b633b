"""What the store promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from authsvc import migrations
from authsvc.deletions_store import DeletionStore
from authsvc.keys import SecretDigest
from authsvc.records import ApiKey, KeyFilters, PageStart, RequestMark, Workspace
from authsvc.rows import REQUEST_ID_SECONDS
from authsvc.store import KeyStore, StoredSecret
from authsvc.tables import memberships, metadata
from authsvc.user_records import Membership, User
from authsvc.users_store import UserStore
from naru.database import Database
from naru.errors import NaruError, Reason, not_found
from naru.identity import Role, Scopes
from naru.testing.clock import FakeClock
from tests.integration.authsvc.harness import refused
from tests.support.auth_store import bootstrap, insert_key, people_audit, revoke_key

NOW = 1_800_000_000.123456
WORKSPACE = Workspace("w1", "default", "free", NOW)
DIGEST = SecretDigest(3, b"d" * 32)
REQUEST_ID = "0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1"


def key(number: int, **changes: Any) -> ApiKey:
    made = ApiKey(f"key{number:09d}", WORKSPACE.workspace_id, NOW + number, f"number {number}")
    return replace(made, **changes)


async def add_user(database: Database) -> None:
    """The user "u1", a member of the workspace."""
    user = User("u1", "ann@example.com", NOW)
    assert await UserStore(database).insert_user(user, "hash", Membership("w1", "u1", Role.USER, NOW), [])


@pytest.fixture
async def filled(store: KeyStore) -> KeyStore:
    """A store with one workspace and key 0 in it."""
    assert await bootstrap(store, WORKSPACE, key(0), DIGEST)
    return store


async def test_a_key_comes_back_whole(filled: KeyStore, database: Database) -> None:
    """Every field of a key survives, times to the microsecond."""
    await add_user(database)
    made = ApiKey(
        key_id="x7Gq01abcdEF",
        workspace_id=WORKSPACE.workspace_id,
        create_time=NOW,
        description="개발팀의 열쇠",
        user_id="u1",
        service_account="dev-team",
        role=Role.WORKSPACE_ADMIN,
        tier="pro",
        scopes=Scopes(("a*",), ("/v1/models",), ("10.0.0.0/8",)),
        expire_time=NOW + 0.000001,
    )
    assert await insert_key(filled, made, DIGEST) == (made, True)
    assert await filled.get_key(made.key_id) == made
    found = (await filled.look_up([made.key_id], NOW))[made.key_id]
    assert (found.key, found.secrets, found.workspace_tier) == (made, (StoredSecret(DIGEST),), "free")


async def test_no_key_is_made_for_a_user_who_is_deleted(filled: KeyStore, database: Database) -> None:
    """Whoever makes it: it waits until the deletion that came first has ended, and there is no such user then."""
    await add_user(database)
    seat = sa.select(memberships).where(memberships.c.user_id == "u1")
    async with database.writing() as connection:
        # Holds the deletion up when it has the user and their keys.
        await connection.execute(seat.with_for_update())
        deleting = asyncio.create_task(DeletionStore(database, people_audit(FakeClock(NOW))).delete_user("u1", NOW))
        await asyncio.wait([deleting], timeout=0.2)
        making = asyncio.create_task(insert_key(filled, key(1, user_id="u1"), DIGEST))
        done, _ = await asyncio.wait([deleting, making], timeout=0.2)
        assert not done
    await deleting
    assert await refused(making) == not_found("user", "u1")
    assert await filled.get_key(key(1).key_id) is None


async def test_an_unknown_key_is_none(filled: KeyStore) -> None:
    """A key that is not there is None, with the position of the numbering all the same."""
    found = (await filled.look_up(["nobody000000"], NOW))["nobody000000"]
    assert (found.key, found.secrets) == (None, ())
    assert found.position == await filled.position()
    assert await filled.get_key("nobody000000") is None


async def test_a_key_needs_its_workspace(filled: KeyStore) -> None:
    """A key of a workspace that does not exist is not stored."""
    error = await refused(insert_key(filled, key(1, workspace_id="nowhere"), DIGEST))
    assert error == not_found("workspace", "nowhere")
    assert await filled.get_key(key(1).key_id) is None


async def test_revoking_is_numbered_once(filled: KeyStore, database: Database) -> None:
    """A revocation gets the next number; revoking again changes neither time nor number."""
    before = await filled.position()
    revoked, sequence = await revoke_key(database, key(0).key_id, NOW + 5)
    assert revoked.revoke_time == NOW + 5
    assert sequence == before.sequence + 1
    assert await revoke_key(database, key(0).key_id, NOW + 9) == (revoked, None)
    after = (await filled.look_up([key(0).key_id], NOW))[key(0).key_id]
    assert after.position == replace(before, sequence=sequence)
    assert after.key == revoked
    assert [(i.sequence, i.key_id) for i in await filled.invalidations_after(before.sequence, 10)] == [
        (sequence, key(0).key_id)
    ]


async def test_revoking_nobody_numbers_nothing(filled: KeyStore, database: Database) -> None:
    """Revoking an unknown key fails and leaves the numbering where it was."""
    before = await filled.position()
    with pytest.raises(NaruError) as failure:
        await revoke_key(database, "nobody000000", NOW)
    assert failure.value.reason is Reason.NOT_FOUND
    assert await filled.position() == before


async def test_racing_revocations_leave_no_gap(filled: KeyStore, database: Database) -> None:
    """Revocations at the same time get numbers without gap or repetition, and a key's own race numbers it once."""
    keys = [key(number) for number in range(1, 9)]
    for made in keys:
        await insert_key(filled, made, DIGEST)
    results = await asyncio.gather(*(revoke_key(database, made.key_id, NOW) for made in keys * 2))
    numbers = sorted(sequence for _, sequence in results if sequence is not None)
    assert numbers == list(range(1, 9))
    listed = await filled.invalidations_after(0, 100)
    assert [invalidation.sequence for invalidation in listed] == numbers
    assert {invalidation.key_id for invalidation in listed} == {made.key_id for made in keys}


async def test_a_number_is_never_seen_before_a_lower_one(filled: KeyStore, database: Database) -> None:
    """While one revocation is not committed, no other gets a number: a reader never skips one that appears late."""
    await insert_key(filled, key(1), DIGEST)
    async with database.writing() as connection:
        await connection.execute(sa.text("UPDATE installation SET sequence = sequence + 1"))
        racing = asyncio.create_task(revoke_key(database, key(1).key_id, NOW))
        done, _ = await asyncio.wait([racing], timeout=0.2)
        assert not done
        assert (await filled.position()).sequence == 0
    assert (await racing)[1] == 2


async def test_invalidations_are_read_in_pages(filled: KeyStore, database: Database) -> None:
    """Invalidations come lowest first, from after a number on, no more than asked for."""
    for number in range(1, 5):
        await insert_key(filled, key(number), DIGEST)
        await revoke_key(database, key(number).key_id, NOW)
    assert [i.sequence for i in await filled.invalidations_after(1, 2)] == [2, 3]
    assert await filled.invalidations_after(4, 2) == []


async def test_keys_are_listed_newest_first(filled: KeyStore) -> None:
    """Pages follow one another without gap or repetition, also among keys of one moment."""
    for number in range(1, 6):
        await insert_key(filled, key(number, create_time=NOW + number // 3), DIGEST)
    seen: list[ApiKey] = []
    after = None
    while page := await filled.list_keys(KeyFilters("w1"), after=after, limit=2, now=NOW):
        seen += page
        after = PageStart(page[-1].create_time, page[-1].key_id)
    assert [k.key_id for k in seen] == [key(number).key_id for number in (5, 4, 3, 2, 1, 0)]


async def test_lists_leave_out_what_was_not_asked_for(filled: KeyStore, database: Database) -> None:
    """A list has the keys of its workspace only, and revoked ones only when asked for."""
    await insert_key(filled, key(1), DIGEST)
    await revoke_key(database, key(0).key_id, NOW)

    async def listed(workspace_id: str, show_revoked: bool) -> list[str]:
        page = await filled.list_keys(KeyFilters(workspace_id, show_revoked), after=None, limit=10, now=NOW)
        return [k.key_id for k in page]

    assert await listed("", False) == [key(1).key_id]
    assert await listed("w1", True) == [key(1).key_id, key(0).key_id]
    assert await listed("w2", True) == []


async def test_a_tiers_keys_have_it_or_inherit_it(filled: KeyStore) -> None:
    """A key without a tier of its own has its workspace's; one that ends by the given time is left out."""
    await insert_key(filled, key(1, tier="pro", expire_time=NOW + 10), DIGEST)
    await insert_key(filled, key(2, tier="free"), DIGEST)

    async def listed(tier: str, now: float, *, show_revoked: bool = False) -> list[str]:
        filters = KeyFilters(tier=tier, show_revoked=show_revoked)
        return [k.key_id for k in await filled.list_keys(filters, after=None, limit=10, now=now)]

    assert await listed("free", NOW) == [key(2).key_id, key(0).key_id]
    assert await listed("pro", NOW) == await listed("pro", NOW + 9.999999) == [key(1).key_id]
    assert await listed("pro", NOW + 10) == []
    assert await listed("pro", NOW + 10, show_revoked=True) == [key(1).key_id]


async def test_a_request_is_done_once(filled: KeyStore) -> None:
    """The same request within a day returns the key made before; a day later it makes a new one."""
    mark = RequestMark("key:a", REQUEST_ID, b"b" * 32)
    assert await insert_key(filled, key(1), DIGEST, mark) == (key(1), True)
    again = key(2, create_time=key(1).create_time + REQUEST_ID_SECONDS - 1)
    assert await insert_key(filled, again, DIGEST, mark) == (key(1), False)
    assert await filled.get_key(again.key_id) is None
    later = key(3, create_time=key(1).create_time + REQUEST_ID_SECONDS)
    assert await insert_key(filled, later, DIGEST, mark) == (later, True)
    assert await filled.get_key(key(1).key_id) == key(1)


async def test_a_request_id_with_another_body_is_refused(filled: KeyStore) -> None:
    """The same id with another body fails; the same id of another caller is another request."""
    await insert_key(filled, key(1), DIGEST, RequestMark("key:a", REQUEST_ID, b"b" * 32))
    with pytest.raises(NaruError) as failure:
        await insert_key(filled, key(2), DIGEST, RequestMark("key:a", REQUEST_ID, b"c" * 32))
    assert failure.value.reason is Reason.ALREADY_EXISTS
    assert await insert_key(filled, key(3), DIGEST, RequestMark("key:b", REQUEST_ID, b"c" * 32)) == (key(3), True)


async def test_racing_requests_make_one_key(filled: KeyStore) -> None:
    """The same request several times at once makes one key, and every answer is that key."""
    mark = RequestMark("key:a", REQUEST_ID, b"b" * 32)
    results = await asyncio.gather(*(insert_key(filled, key(n), DIGEST, mark) for n in range(1, 7)))
    assert len({made.key_id for made, _ in results}) == 1
    assert sum(is_new for _, is_new in results) == 1


async def test_racing_bootstraps_have_one_winner(store: KeyStore) -> None:
    """Of bootstraps at once, under different names too, one wins and the others leave nothing behind."""
    won = await asyncio.gather(
        *(
            bootstrap(store, Workspace(f"w{n}", f"name {n}", "free", NOW), key(n, workspace_id=f"w{n}"), DIGEST)
            for n in range(5)
        )
    )
    assert sum(won) == 1
    winner = f"w{won.index(True)}"
    first = await store.bootstrapped_workspace("")
    assert first is not None
    assert first.workspace_id == winner
    keys = await store.list_keys(KeyFilters(show_revoked=True), after=None, limit=10, now=NOW)
    assert [k.workspace_id for k in keys] == [winner]
    assert await store.bootstrapped_workspace(f"name {won.index(False)}") is None


async def test_peppers_in_use_are_known(filled: KeyStore, database: Database) -> None:
    """The versions of the peppers that live keys need are told; those of revoked keys are not."""
    await insert_key(filled, key(1), SecretDigest(4, b"d" * 32))
    assert await filled.pepper_versions(NOW) == {3: 1, 4: 1}
    await revoke_key(database, key(1).key_id, NOW)
    assert await filled.pepper_versions(NOW) == {3: 1}


async def test_the_migrations_make_the_tables(database: Database) -> None:
    """The migrations end in just the schema that the code describes."""

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE})
        return list(compare_metadata(context, metadata))

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_the_epoch_stays(database: Database, store: KeyStore) -> None:
    """The epoch is made once: migrating again and opening again keep it."""
    before = await store.position()
    await migrations.MIGRATIONS.upgrade(database)
    assert await store.position() == before
    assert before.epoch
