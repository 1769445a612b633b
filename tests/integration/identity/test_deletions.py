"""Users and workspaces that are deleted, and invites that are listed and revoked, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from authsvc.tables import audit_entries
from naru.ids import uuid7
from naru.testing import databases
from tests.support.identity_harness import EMAIL, PASSWORD, Installation, installation

pytestmark = pytest.mark.behaviour

postgres = databases.postgres
database_url = databases.database_url


@pytest.fixture
async def naru(tmp_path: Path, database_url: str) -> AsyncIterator[Installation]:
    async with installation(tmp_path, database_url=database_url, registration="invite") as running:
        yield running


async def done(naru: Installation, method: str, path: str, body: Any = None, token: str = "") -> Any:
    """The body of an answer that must be 200."""
    answer = await naru.ask(method, path, body, token=token or naru.key)
    assert answer.status == 200, (method, path, answer)
    return answer.body


async def refused(
    naru: Installation, method: str, path: str, status: int, code: str, token: str = "", body: Any = None
) -> None:
    """What changes nothing."""
    before = await naru.contents()
    answer = await naru.ask(method, path, body, token=token or naru.key)
    assert (answer.status, answer.code) == (status, code), (method, path, answer)
    assert await naru.contents() == before


async def ends(naru: Installation, *credentials: str) -> None:
    """Waits until none of these is good any more."""
    async with asyncio.timeout(20):
        for credential in credentials:
            while (await naru.ask("GET", "/v1/models", token=credential)).status != 401:
                await asyncio.sleep(0.01)


async def told(naru: Installation, *actions: str) -> list[Any]:
    """The last entries of the audit, which must be these, in whatever order."""
    async with naru.database.reading() as connection:
        query = sa.select(audit_entries).order_by(audit_entries.c.entry_id.desc()).limit(len(actions))
        rows = list((await connection.execute(query)).all())
    assert sorted(row.action for row in rows) == sorted(actions)
    return rows


async def test_a_deleted_user_is_gone_at_once(naru: Installation) -> None:
    """Sessions and keys die, memberships end, the address is free, the audit tells, and the id is found nowhere."""
    ann = await naru.new_user()
    given = await naru.login(EMAIL)
    made = await done(naru, "POST", "/api/keys", {"description": "laptop"}, given["access_token"])
    key, key_id = made["secret_key"], made["api_key"]["key_id"]
    for credential in (key, given["access_token"]):
        assert (await naru.ask("GET", "/v1/models", token=credential)).status == 200
    path = f"/api/users/{ann['user_id']}"
    assert await done(naru, "DELETE", path) == {}
    await ends(naru, key, given["access_token"])
    assert (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": given["refresh_token"]})).status == 401
    assert (await naru.ask("POST", "/api/auth/login", {"email": EMAIL, "password": PASSWORD})).status == 401
    rows = await told(naru, "user.delete", "api_key.revoke", "member.remove")
    assert {row.object_id for row in rows} == {ann["user_id"], key_id}
    (deleted,) = [row for row in rows if row.action == "user.delete"]
    assert (deleted.before["email"], deleted.before["sessions"], deleted.after) == (EMAIL, 1, None)
    await refused(naru, "GET", path, 404, "not_found")
    await refused(naru, "DELETE", path, 404, "not_found")
    seat = f"/api/workspaces/{naru.workspace_id}/members/{ann['user_id']}"
    for method, where in (("PUT", path), ("POST", f"{path}/password"), ("PUT", seat), ("DELETE", f"{path}/sessions")):
        body = {"email": EMAIL} if where == path else {}
        assert (await naru.ask(method, where, body, token=naru.key)).status == 404, where
    assert (await naru.ask("POST", "/api/keys", {"user_id": ann["user_id"]}, token=naru.key)).status == 404
    listed = await done(naru, "GET", "/api/users")
    assert ann["user_id"] not in {user["user_id"] for user in listed["users"]}
    assert (await done(naru, "GET", f"/api/keys/{key_id}"))["state"] == "revoked"
    again = await naru.new_user()
    assert again["user_id"] != ann["user_id"]
    assert (await done(naru, "GET", "/api/keys", token=(await naru.login(EMAIL))["access_token"]))["api_keys"] == []


async def test_nothing_personal_stays_of_a_deleted_user(naru: Installation) -> None:
    """Outside the audit their address, where they were, and what they wrote is found nowhere; an invite for them ends."""
    home = "198.51.100.77"
    used = (await done(naru, "POST", "/api/invites", {"email": EMAIL}))["code"]
    wish = {"email": EMAIL, "password": PASSWORD, "name": "Ann Smith", "invite_code": used}
    given = await naru.ask("POST", "/api/auth/register", wish, headers={"X-Forwarded-For": home})
    ann = (await done(naru, "GET", "/api/auth/me", token=given.body["access_token"]))["user"]["user_id"]
    notes = {"description": "Ann's laptop", "metadata": {"home": "Ann's flat"}}
    for key in ("ends with her", "ended before"):
        made = await done(naru, "POST", "/api/keys", notes, given.body["access_token"])
        if key == "ended before":
            await done(naru, "DELETE", f"/api/keys/{made['api_key']['key_id']}")
    refreshed = await done(naru, "POST", "/api/auth/refresh", {"refresh_token": given.body["refresh_token"]}, "none")
    again = (await done(naru, "POST", "/api/invites", {"email": EMAIL}))["code"]
    await done(naru, "DELETE", f"/api/users/{ann}")
    rows = await told(naru, "user.delete", "api_key.revoke", "member.remove", "invite.revoke")
    assert {row.before["sessions"] for row in rows if row.action == "user.delete"} == {1}
    left = await naru.contents(without=("audit_entries",))
    assert (left["sessions"], left["refresh_tokens"]) == ([], [])
    assert ann in str(left)
    for text in (EMAIL, "Ann", home):
        assert text not in str(left), text
    for code in (used, again):
        other = {"email": "eve@example.com", "password": PASSWORD, "invite_code": code}
        assert (await naru.ask("POST", "/api/auth/register", other)).status == 403
    late = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": refreshed["refresh_token"]})
    assert (late.status, late.code) == (401, "invalid_credentials")


async def test_a_user_is_deleted_while_they_refresh(naru: Installation) -> None:
    """Neither waits for the other for ever: each deletion succeeds, and a refresh gets its tokens or the one 401."""
    for turn in range(8):
        user = await naru.new_user(f"u{turn}@example.com")
        tokens = [(await naru.login(user["email"]))["refresh_token"] for _ in range(2)]
        deleted, *refreshed = await asyncio.gather(
            naru.ask("DELETE", f"/api/users/{user['user_id']}", token=naru.key),
            *(naru.ask("POST", "/api/auth/refresh", {"refresh_token": token}) for token in tokens),
        )
        assert deleted.status == 200
        assert {answer.status for answer in refreshed} <= {200, 401}
        for token in tokens:
            assert (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": token})).status == 401


async def test_somebody_is_left_to_manage(naru: Installation) -> None:
    """Nobody deletes themselves, and of two administrators who end each other one stays; a blocked one does not count."""
    admin = await naru.admin()
    user = (await done(naru, "GET", "/api/auth/me", token=admin))["user"]
    me, mine = user["user_id"], {"email": user["email"]}
    for less in ({"role": "user"}, {"role": "admin", "blocked": True}):
        await refused(naru, "PUT", f"/api/users/{me}", 400, "failed_precondition", body=mine | less)
    assert (await done(naru, "GET", f"/api/users/{me}"))["role"] == "admin"
    await refused(naru, "DELETE", f"/api/users/{me}", 400, "failed_precondition", admin)
    await refused(naru, "DELETE", f"/api/users/{me}", 400, "failed_precondition")
    boss = await naru.new_user("boss@example.com", role="admin")
    path = f"/api/users/{boss['user_id']}"
    await done(naru, "PUT", path, {"email": "boss@example.com", "role": "admin", "blocked": True})
    await refused(naru, "DELETE", f"/api/users/{me}", 400, "failed_precondition")
    await done(naru, "PUT", path, {"email": "boss@example.com", "role": "admin"})
    answers = await asyncio.gather(
        naru.ask("PUT", f"/api/users/{me}", mine | {"role": "user"}, token=naru.key),
        naru.ask("PUT", path, {"email": "boss@example.com", "role": "user"}, token=naru.key),
    )
    assert sorted(answer.status for answer in answers) == [200, 400]
    for where, email in ((f"/api/users/{me}", user["email"]), (path, "boss@example.com")):
        await done(naru, "PUT", where, {"email": email, "role": "admin"})
    answers = await asyncio.gather(
        *(naru.ask("DELETE", f"/api/users/{one}", token=naru.key) for one in (me, boss["user_id"]))
    )
    assert sorted(answer.status for answer in answers) == [200, 400]


async def test_a_deleted_workspace_is_gone_at_once(naru: Installation) -> None:
    """With members it stays; without, its keys and invites die, its name is free, and nothing is made in it any more."""
    team = (await done(naru, "POST", "/api/workspaces", {"name": "team"}))["workspace_id"]
    path = f"/api/workspaces/{team}"
    ann = await naru.new_user()
    await done(naru, "PUT", f"{path}/members/{ann['user_id']}", {})
    made = await done(naru, "POST", "/api/keys", {"workspace_id": team})
    code = (await done(naru, "POST", "/api/invites", {"workspace_id": team}))["code"]
    assert (await naru.ask("GET", "/v1/models", token=made["secret_key"])).status == 200
    await refused(naru, "DELETE", path, 400, "failed_precondition")
    await done(naru, "DELETE", f"{path}/members/{ann['user_id']}")
    assert await done(naru, "DELETE", path) == {}
    await ends(naru, made["secret_key"])
    rows = await told(naru, "workspace.delete", "api_key.revoke", "invite.revoke")
    assert {row.workspace_id for row in rows} == {team}
    await refused(naru, "GET", path, 404, "not_found")
    await refused(naru, "DELETE", path, 404, "not_found")
    for method, where, body in (
        ("PUT", path, {"name": "crew"}),
        ("PUT", f"{path}/members/{ann['user_id']}", {}),
        ("POST", "/api/keys", {"workspace_id": team}),
        ("POST", "/api/invites", {"workspace_id": team}),
        ("POST", "/api/users", {"email": "new@example.com", "default_workspace_id": team}),
    ):
        assert (await naru.ask(method, where, body, token=naru.key)).status == 404, (method, where)
    wish = {"email": "bob@example.com", "password": PASSWORD, "invite_code": code}
    assert (await naru.ask("POST", "/api/auth/register", wish)).status == 403
    assert team not in {one["workspace_id"] for one in (await done(naru, "GET", "/api/workspaces"))["workspaces"]}
    assert (await done(naru, "POST", "/api/workspaces", {"name": "team"}))["workspace_id"] != team
    await refused(naru, "DELETE", f"/api/workspaces/{naru.workspace_id}", 400, "failed_precondition")


async def test_what_is_made_while_a_workspace_is_deleted(naru: Installation) -> None:
    """Keys and members that come at the same moment are either there before, or not made: none is left in a deleted one."""
    ann = await naru.new_user()
    for turn in range(5):
        team = (await done(naru, "POST", "/api/workspaces", {"name": f"team-{turn}"}))["workspace_id"]
        made, joined, deleted = await asyncio.gather(
            naru.ask("POST", "/api/keys", {"workspace_id": team}, token=naru.key),
            naru.ask("PUT", f"/api/workspaces/{team}/members/{ann['user_id']}", {}, token=naru.key),
            naru.ask("DELETE", f"/api/workspaces/{team}", token=naru.key),
        )
        assert deleted.status in (200, 400)
        if made.status == 200 and deleted.status == 200:
            await ends(naru, made.body["secret_key"])
        assert joined.status == (404 if deleted.status == 200 else 200)


async def test_invites_are_listed_and_revoked(naru: Installation) -> None:
    """Newest first, page by page; used, revoked and expired ones on request; a revoked code lets nobody in."""
    made = [await done(naru, "POST", "/api/invites", body) for body in ({}, {"email": "bob@example.com"}, {}, {})]
    ids = [one["invite"]["invite_id"] for one in made]
    first = await done(naru, "GET", "/api/invites?page_size=3")
    rest = await done(naru, "GET", f"/api/invites?page_size=3&page_token={first['next_page_token']}")
    assert [one["invite_id"] for one in (*first["invites"], *rest["invites"])] == ids[::-1]
    assert "code" not in str(first)
    assert [one["invite_id"] for one in (await done(naru, "GET", "/api/invites?email=BOB@example.com"))["invites"]] == [
        ids[1]
    ]
    revoked = await done(naru, "DELETE", f"/api/invites/{ids[0]}")
    assert revoked["revoke_time"]
    (entry,) = await told(naru, "invite.revoke")
    assert (entry.object_id, entry.before["revoke_time"], entry.workspace_id) == (ids[0], None, naru.workspace_id)
    assert await done(naru, "DELETE", f"/api/invites/{ids[0]}") == revoked
    await told(naru, "invite.revoke", "invite.create")
    wish = {"email": "bob@example.com", "password": PASSWORD}
    gone = await naru.ask("POST", "/api/auth/register", wish | {"invite_code": made[0]["code"]})
    assert (gone.status, gone.code) == (403, "permission_denied")
    await done(naru, "POST", "/api/auth/register", wish | {"invite_code": made[1]["code"]}, "none")
    await refused(naru, "DELETE", f"/api/invites/{ids[1]}", 400, "failed_precondition")
    await refused(naru, "DELETE", f"/api/invites/{uuid7()}", 404, "not_found")
    assert [one["invite_id"] for one in (await done(naru, "GET", "/api/invites"))["invites"]] == [ids[3], ids[2]]
    naru.clock.advance(7 * 86_400)
    assert (await done(naru, "GET", "/api/invites"))["invites"] == []
    ended = (await done(naru, "GET", "/api/invites?show_ended=true"))["invites"]
    assert [bool(one.get("use_time")) for one in ended] == [False, False, True, False]


async def test_invites_of_another_workspace(naru: Installation) -> None:
    """A workspace's admin sees and revokes those to it; of others an invite is as one there is not."""
    team = (await done(naru, "POST", "/api/workspaces", {"name": "team"}))["workspace_id"]
    boss = (await done(naru, "POST", "/api/keys", {"workspace_id": team, "role": "workspace_admin"}))["secret_key"]
    theirs = (await done(naru, "POST", "/api/invites", {"workspace_id": team}))["invite"]["invite_id"]
    others = (await done(naru, "POST", "/api/invites", {}))["invite"]["invite_id"]
    assert [one["invite_id"] for one in (await done(naru, "GET", "/api/invites", token=boss))["invites"]] == [theirs]
    where = f"/api/invites?workspace_id={naru.workspace_id}"
    await refused(naru, "GET", where, 403, "permission_denied", boss)
    answers = []
    for one in (others, uuid7()):
        answer = await naru.ask("DELETE", f"/api/invites/{one}", token=boss)
        answers.append((answer.status, str(answer.body).replace(one, "ID")))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404
    assert (await done(naru, "DELETE", f"/api/invites/{theirs}", token=boss))["invite_id"] == theirs
