"""Accounts of people whom others vouch for, in SQLite and in PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa

from authsvc.audit import Auditor, Origin
from authsvc.deletions_store import DeletionStore
from authsvc.foreign_store import ForeignStore
from authsvc.people_audit import PeopleAudit
from authsvc.records import Workspace
from authsvc.tables import audit_entries, installation, memberships, users, workspaces
from authsvc.user_records import Membership, User
from naru.database import Database
from naru.identity import Role
from naru.ids import uuid7
from naru.testing.clock import FakeClock
from tests.support.auth_store import people_audit

NOW = 1_800_000_000.0


async def add_workspace(database: Database, workspace: Workspace) -> None:
    values = {"workspace_id": workspace.workspace_id, "name": workspace.name, "tier": workspace.tier, "create_time": 0}
    async with database.writing() as connection:
        await connection.execute(sa.insert(workspaces).values(values))


async def add_first_workspace(database: Database) -> str:
    await add_workspace(database, Workspace("first", "default", "free", 0.0))
    async with database.writing() as connection:
        await connection.execute(sa.update(installation).values(first_workspace_id="first"))
    return "first"


async def count(database: Database, table: Any) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one())


async def make(store: ForeignStore, user_id: str, workspace_id: str) -> None:
    audit = PeopleAudit(Auditor(origin=lambda: Origin("service:edge"), clock=FakeClock(NOW), new_id=uuid7))
    user = User(user_id, f"{uuid7()}@oidc.invalid", NOW, name="Bob", default_workspace_id=workspace_id)
    seat = Membership(workspace_id, user_id, Role.USER, NOW)
    await store.insert(user, seat, audit.user_created(user, seat), audit.member(None, seat))


async def test_an_account_is_made_once(database: Database) -> None:
    """Of many who come at once one makes it; a second workspace adds a membership; each is told of by the audit once."""
    first = await add_first_workspace(database)
    await add_workspace(database, Workspace("other", "Other", "pro", 0.0))
    foreign, user_id, before = ForeignStore(database), uuid7(), await count(database, audit_entries)
    await asyncio.gather(*(make(foreign, user_id, first) for _ in range(8)))
    await asyncio.gather(*(make(foreign, user_id, "other") for _ in range(8)))
    assert await count(database, users) == 1
    assert await count(database, memberships) == 2
    assert await count(database, audit_entries) == before + 3
    async with database.writing() as connection:
        is_other = workspaces.c.workspace_id == "other"
        await connection.execute(sa.update(workspaces).where(is_other).values(delete_time=1))
    for workspace_id in ("gone", "other"):
        await make(foreign, uuid7(), workspace_id)
        assert await count(database, users) == 1, "without the workspace there is no account"


async def test_workspaces_are_found_by_id_or_name_in_the_order_asked_for(database: Database) -> None:
    """An id wins over a name that is the same; without a wish it is the installation's first."""
    first = await add_first_workspace(database)
    await add_workspace(database, Workspace("w-1", "one", "pro", 0.0))
    await add_workspace(database, Workspace("w-2", "w-1", "free", 0.0))
    foreign, user_id = ForeignStore(database), uuid7()

    async def found(*wanted: str) -> list[str]:
        return [place.workspace_id for place in (await foreign.look_up(user_id, wanted)).places]

    assert await found() == [first]
    assert await found("w-1") == ["w-1"]
    assert await found("one") == ["w-1"]
    assert await found("w-2", "one", "w-1", "nowhere", first) == ["w-2", "w-1", first]
    assert await found("nowhere") == []
    stored = await foreign.look_up(user_id, ("one",))
    assert (stored.known, stored.blocked, stored.tier, stored.places[0].member) == (False, False, "", False)
    await make(foreign, user_id, "w-1")
    stored = await foreign.look_up(user_id, ("one", first))
    assert stored.known
    assert [(place.workspace_id, place.tier, place.member) for place in stored.places] == [
        ("w-1", "pro", True),
        (first, "free", False),
    ]


async def test_who_was_deleted_does_not_come_back(database: Database) -> None:
    """Neither a user nor a workspace is made again by a token that still names it."""
    first = await add_first_workspace(database)
    await add_workspace(database, Workspace("other", "Other", "pro", 0.0))
    foreign, user_id = ForeignStore(database), uuid7()
    await make(foreign, user_id, first)
    audit = PeopleAudit(Auditor(origin=lambda: Origin("service:edge"), clock=FakeClock(NOW), new_id=uuid7))
    deletions = DeletionStore(database, audit)
    await deletions.delete_user(user_id, NOW)
    stored = await foreign.look_up(user_id, (first,))
    assert (stored.known, stored.blocked) == (True, True)
    await deletions.delete_workspace("other", NOW)
    assert (await foreign.look_up(uuid7(), ("other",))).places == ()


async def test_nobody_joins_who_is_being_deleted(database: Database) -> None:
    """Who comes with a token to another workspace at that moment, or was looked up before, is no member of it after."""
    first = await add_first_workspace(database)
    await add_workspace(database, Workspace("other", "Other", "pro", 0.0))
    foreign, user_id = ForeignStore(database), uuid7()
    await make(foreign, user_id, first)
    seat = sa.select(memberships).where(memberships.c.user_id == user_id)
    async with database.writing() as connection:
        # Holds the deletion up when it has the user.
        await connection.execute(seat.with_for_update())
        deleting = asyncio.create_task(DeletionStore(database, people_audit(FakeClock(NOW))).delete_user(user_id, NOW))
        await asyncio.wait([deleting], timeout=0.2)
        coming = asyncio.create_task(make(foreign, user_id, "other"))
        done, _ = await asyncio.wait([deleting, coming], timeout=0.2)
        assert not done
    await asyncio.gather(deleting, coming)
    entries = await count(database, audit_entries)
    await make(foreign, user_id, first)
    assert (await count(database, memberships), await count(database, audit_entries)) == (0, entries)
