"""The audit of users, workspaces, memberships, invites and sessions, over HTTP, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from authsvc.tables import api_keys, audit_entries, invites, refresh_tokens, users
from naru import api_key
from naru.ids import uuid7
from naru.testing import databases
from tests.support.identity_harness import EMAIL, PASSWORD, Installation, installation

pytestmark = pytest.mark.behaviour
# pytest finds fixtures by name in this module.
postgres = databases.postgres
database_url = databases.database_url

ADDRESS = "203.0.113.7"
BOB = "bob@example.com"
NEW_PASSWORD = "another horse battery"
SECRETS = {"password", "current_password", "new_password", "code", "invite_code", "access_token", "refresh_token"}
LIVED = ({"sessions": 1}, {"sessions": 0})


@dataclass(frozen=True)
class Told:
    """An entry. Of `before` and `after` what an update changed, or some of what was made or removed."""

    action: str
    actor: str
    object_id: str
    workspace_id: str = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None

    def fits(self, row: sa.Row[Any]) -> bool:
        """Whether the row is that entry."""
        expected = (self.action, self.actor, self.object_id, self.workspace_id)
        same = (row.action, row.actor, row.object_id, row.workspace_id) == expected
        if row.before is not None and row.after is not None:
            names = {name for name in row.after if row.after[name] != row.before[name]}
            return same and ({n: row.before[n] for n in names}, {n: row.after[n] for n in names}) == (
                self.before,
                self.after,
            )
        facts = ((self.before, row.before), (self.after, row.after))
        return same and all(
            (wanted is None) is (found is None) and (wanted or {}).items() <= (found or {}).items()
            for wanted, found in facts
        )


class World:
    """An installation, everything secret that it said or was told, and the entries that were looked at."""

    def __init__(self, naru: Installation) -> None:
        self.naru = naru
        self.secrets = {PASSWORD, NEW_PASSWORD, naru.admin_password, naru.key}
        self._seen: set[str] = set()

    async def ask(self, method: str, path: str, body: Any = None, token: str = "", status: int = 200) -> Any:
        """What is answered, with that status."""
        headers = {"X-Forwarded-For": ADDRESS}
        answer = await self.naru.ask(method, path, body, token=token, headers=headers)
        assert answer.status == status, (method, path, answer)
        for name in SECRETS & answer.body.keys():
            self.secrets |= {answer.body[name], answer.body[name][-43:]} - {""}
        return answer.body

    async def login(self, password: str, email: str = EMAIL) -> Any:
        """A new session's tokens, of which the audit tells nothing."""
        given = await self.ask("POST", "/api/auth/login", {"email": email, "password": password})
        await self.tells()
        return given

    async def tells(self, *expected: Told, address: str = ADDRESS) -> None:
        """Checks that just these entries are new."""
        async with self.naru.database.reading() as connection:
            rows = (await connection.execute(sa.select(audit_entries).order_by(audit_entries.c.action))).all()
        new = [row for row in rows if row.entry_id not in self._seen]
        assert len(new) == len(expected), new
        for told, row in zip(sorted(expected, key=lambda one: one.action), new, strict=True):
            assert told.fits(row), (told, row)
            assert (row.client_address, bool(row.request_id)) == (address, True)
        self._seen |= {row.entry_id for row in new}


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    async with installation(tmp_path, database_url=database_url, registration="invite") as naru:
        world = World(naru)
        async with naru.database.reading() as connection:
            admin_id = (await connection.execute(sa.select(users.c.user_id))).scalar_one()
        first, operator = naru.workspace_id, "service:operator"
        await world.tells(
            Told("installation.bootstrap", operator, first, first, None, {}),
            Told("user.create", operator, admin_id, "", None, {"email": naru.admin_email, "role": "admin"}),
            Told("member.set", operator, admin_id, first, None, {"role": "workspace_admin"}),
            address="127.0.0.1",
        )
        yield world


async def accounts(world: World, key: str, admin: str, admin_id: str) -> str:
    """Making, changing and blocking a user, passwords, and every way sessions end; the user's id."""
    by_admin, first = f"user:{admin_id}", world.naru.workspace_id
    made = await world.ask("POST", "/api/users", {"email": EMAIL, "name": "Ann"}, admin)
    ann = made["user"]["user_id"]
    facts = {"user_id": ann, "email": EMAIL, "name": "Ann", "role": "user", "blocked": False}
    await world.tells(
        Told("user.create", by_admin, ann, "", None, facts),
        Told("member.set", by_admin, ann, first, None, {"user_id": ann, "role": "user"}),
    )
    await world.login(made["password"])
    path = f"/api/users/{ann}"
    await world.ask("POST", f"{path}/password", {"password": PASSWORD}, admin)
    await world.tells(Told("user.reset_password", by_admin, ann, "", *LIVED))
    token = (await world.login(PASSWORD))["access_token"]
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    await world.ask("POST", "/api/auth/password", change, token)
    await world.tells(Told("user.change_password", f"user:{ann}", ann, "", *LIVED))
    given = await world.login(NEW_PASSWORD)
    await world.ask("POST", "/api/auth/logout", {"refresh_token": given["refresh_token"], "everywhere": True})
    await world.tells(Told("user.revoke_sessions", f"user:{ann}", ann, "", *LIVED))
    await world.login(NEW_PASSWORD)
    for entries in ([Told("user.revoke_sessions", key, ann, "", *LIVED)], []):
        await world.ask("DELETE", f"{path}/sessions", token=world.naru.key)
        await world.tells(*entries)
    spent = {"refresh_token": (await world.login(NEW_PASSWORD))["refresh_token"]}
    await world.ask("POST", "/api/auth/refresh", spent)
    await world.tells()
    world.naru.clock.advance(11)
    ended = {"revoke_time": None}, {"revoke_time": world.naru.clock.time()}
    for entries in ([Told("session.revoke_family", "service:edge", spent["refresh_token"][4:40], "", *ended)], []):
        await world.ask("POST", "/api/auth/refresh", spent, status=401)
        await world.tells(*entries)
    given = await world.login(NEW_PASSWORD)
    await world.ask("POST", "/api/auth/logout", {"refresh_token": given["refresh_token"]})
    await world.tells()
    changed = {"email": EMAIL, "name": "Anna", "tier": "pro", "role": "admin", "blocked": True}
    before = {"name": "Ann", "tier": "", "role": "user", "blocked": False, "default_workspace_id": first}
    after = {"name": "Anna", "tier": "pro", "role": "admin", "blocked": True, "default_workspace_id": ""}
    for entries in ([Told("user.update", by_admin, ann, "", before, after)], []):
        await world.ask("PUT", path, changed, admin)
        await world.tells(*entries)
    return str(ann)


async def places(world: World, admin: str, admin_id: str, ann: str) -> str:
    """Making and changing a workspace, who belongs to it, and registering with an invite to it; its id."""
    by_admin = f"user:{admin_id}"
    team = (await world.ask("POST", "/api/workspaces", {"name": "team"}, admin))["workspace_id"]
    await world.tells(
        Told("workspace.create", by_admin, team, team, None, {"workspace_id": team, "name": "team", "tier": "free"}),
        Told("member.set", by_admin, admin_id, team, None, {"role": "workspace_admin"}),
    )
    changed = {"name": "team", "tier": "free"}, {"name": "crew", "tier": "pro"}
    for entries in ([Told("workspace.update", by_admin, team, team, *changed)], []):
        await world.ask("PUT", f"/api/workspaces/{team}", changed[1], admin)
        await world.tells(*entries)
    seat = f"/api/workspaces/{team}/members/{ann}"
    await world.ask("PUT", seat, {"role": "user"}, admin)
    await world.tells(Told("member.set", by_admin, ann, team, None, {"role": "user"}))
    risen = {"role": "user"}, {"role": "workspace_admin"}
    for entries in ([Told("member.set", by_admin, ann, team, *risen)], []):
        await world.ask("PUT", seat, risen[1], admin)
        await world.tells(*entries)
    await world.ask("DELETE", seat, token=admin)
    await world.tells(Told("member.remove", by_admin, ann, team, {"user_id": ann, "role": "workspace_admin"}))
    invite = await world.ask("POST", "/api/invites", {"workspace_id": team, "email": BOB}, admin)
    invite_id = invite["code"][4:40]
    facts = {"invite_id": invite_id, "workspace_id": team, "role": "user", "email": BOB}
    await world.tells(Told("invite.create", by_admin, invite_id, team, None, facts))
    wish = {"email": BOB, "password": PASSWORD, "invite_code": invite["code"]}
    token = (await world.ask("POST", "/api/auth/register", wish))["access_token"]
    bob = (await world.ask("GET", "/api/auth/me", token=token))["user"]["user_id"]
    await world.tells(
        Told("user.create", f"user:{bob}", bob, "", None, {"email": BOB, "invite_id": invite_id}),
        Told("member.set", f"user:{bob}", bob, team, None, {"role": "user"}),
    )
    await refusals(world, admin, ann, team, token, wish)
    return str(team)


async def refusals(world: World, admin: str, ann: str, team: str, user: str, used: Any) -> None:
    """Refused changes, each with the status it gets; `user` is a token of one, `used` a registration that was made."""
    me = (await world.ask("GET", "/api/auth/me", token=admin))["user"]
    nobody = uuid7()
    new = {"email": "new@example.com"}
    for method, path, body, token, status in (
        ("POST", "/api/users", {"email": EMAIL}, admin, 409),
        ("POST", "/api/users", new, user, 403),
        ("POST", "/api/users", {**new, "default_workspace_id": nobody}, admin, 404),
        ("PUT", f"/api/users/{ann}", {"email": BOB}, admin, 409),
        ("PUT", f"/api/users/{nobody}", new, admin, 404),
        ("PUT", f"/api/users/{me['user_id']}", {"email": me["email"], "blocked": True}, admin, 400),
        ("POST", f"/api/users/{nobody}/password", {}, admin, 404),
        ("POST", f"/api/users/{ann}/password", {"password": "short"}, admin, 400),
        ("POST", "/api/auth/password", {"current_password": "wrong one", "new_password": PASSWORD}, user, 401),
        ("DELETE", f"/api/users/{nobody}/sessions", None, admin, 404),
        ("POST", "/api/invites", {"workspace_id": nobody}, admin, 404),
        ("POST", "/api/auth/register", used, "", 403),
        ("POST", "/api/workspaces", {"name": "crew"}, admin, 409),
        ("PUT", f"/api/workspaces/{team}", {"name": "default"}, admin, 409),
        ("PUT", f"/api/workspaces/{nobody}", {"name": "other"}, admin, 404),
        ("PUT", f"/api/workspaces/{team}/members/{nobody}", {}, admin, 404),
        ("PUT", f"/api/workspaces/{nobody}/members/{ann}", {}, admin, 404),
        ("DELETE", f"/api/workspaces/{team}/members/{nobody}", None, admin, 404),
    ):
        await world.ask(method, path, body, token, status)
        await world.tells()


async def test_every_change_of_people_is_told(world: World) -> None:
    """Each change leaves its entry, what is refused or changes nothing leaves none, and no entry has a secret in it."""
    naru = world.naru
    admin = (await world.login(naru.admin_password, naru.admin_email))["access_token"]
    admin_id = (await world.ask("GET", "/api/auth/me", token=admin))["user"]["user_id"]
    ann = await accounts(world, f"key:{api_key.parse(naru.key).key_id}", admin, admin_id)
    team = await places(world, admin, admin_id, ann)
    listed = await world.ask("GET", f"/api/audit?workspace_id={team}", token=admin)
    assert {entry["action"].partition(".")[0] for entry in listed["entries"]} == {"workspace", "member", "invite"}
    async with naru.database.reading() as connection:
        told = "\n".join(map(repr, (await connection.execute(sa.select(audit_entries))).all()))
        hashes = (await connection.execute(sa.select(users.c.password_hash))).scalars().all()
        digests = [
            digest
            for table in (api_keys, refresh_tokens, invites)
            for digest in (await connection.execute(sa.select(table.c.digest))).scalars()
        ]
    assert len(world.secrets) > 20
    for secret in (*world.secrets, *hashes, *map(repr, digests), *(digest.hex() for digest in digests)):
        assert secret not in told
    for word in ("argon2", "hash", "digest", "nri-", "nrt-", "eyJ"):
        assert word not in told
