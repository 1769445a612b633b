"""Users, workspaces, memberships and invites over HTTP: who may do what, and what bad input does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from naru.ids import uuid7
from tests.support.identity_harness import EMAIL, PASSWORD, Answer, Installation, installation

pytestmark = pytest.mark.behaviour


@pytest.fixture
async def naru(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as running:
        yield running


async def register(naru: Installation, email: str = EMAIL, **fields: Any) -> Answer:
    return await naru.ask("POST", "/api/auth/register", {"email": email, "password": PASSWORD, **fields})


async def invite(naru: Installation, token: str, **fields: Any) -> str:
    answer = await naru.ask("POST", "/api/invites", fields, token=token)
    assert answer.status == 200, answer
    return str(answer.body["code"])


async def me(naru: Installation, token: str, project: str = "") -> dict[str, Any]:
    answer = await naru.ask("GET", "/api/auth/me", token=token, headers={"OpenAI-Project": project} if project else {})
    assert answer.status == 200, answer
    return dict(answer.body)


async def test_registration_is_off(naru: Installation) -> None:
    """Unless an operator says otherwise nobody can register, with an invite neither."""
    before = await naru.contents(without=("invites", "audit_entries"))
    code = await invite(naru, naru.key)
    for answer in (await register(naru), await register(naru, invite_code=code)):
        assert (answer.status, answer.code) == (403, "permission_denied")
    assert await naru.contents(without=("invites", "audit_entries")) == before


async def test_open_registration(tmp_path: Path) -> None:
    """Anybody may register once per address, joins the first workspace as a user, and is logged in."""
    async with installation(tmp_path, registration="open") as naru:
        made = await register(naru, "Ｂob@Example.COM", name="Bob")
        assert made.status == 200
        seen = await me(naru, made.body["access_token"])
        assert (seen["user"]["email"], seen["user"]["name"]) == ("bob@example.com", "Bob")
        assert (seen["principal"]["role"], seen["principal"]["workspace_id"]) == ("user", naru.workspace_id)
        assert (
            await naru.ask("POST", "/api/auth/refresh", {"refresh_token": made.body["refresh_token"]})
        ).status == 200
        again = await register(naru, "bob@example.com")
        assert (again.status, again.code) == (409, "already_exists")
        answers = await asyncio.gather(*(register(naru, "race@example.com") for _ in range(4)))
        assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]


async def test_registration_by_invite(tmp_path: Path) -> None:
    """An invite lets one person in, of its address where it names one, for seven days."""
    async with installation(tmp_path, registration="invite") as naru:
        made = await naru.ask("POST", "/api/workspaces", {"name": "team"}, token=naru.key)
        team = made.body["workspace_id"]
        named = await invite(naru, naru.key, email="ANN@example.com", workspace_id=team, role="workspace_admin")
        assert (await register(naru)).status == 403
        assert (await register(naru, "eve@example.com", invite_code=named)).status == 403
        assert (await register(naru, invite_code=named[:-1] + ("A" if named[-1] != "A" else "B"))).status == 403
        token = (await register(naru, invite_code=named)).body["access_token"]
        principal = (await me(naru, token))["principal"]
        assert (principal["workspace_id"], principal["role"], principal["tier"]) == (team, "workspace_admin", "free")
        anybody = await invite(naru, token)
        answers = await asyncio.gather(*(register(naru, f"u{n}@example.com", invite_code=anybody) for n in range(4)))
        assert sorted(answer.status for answer in answers) == [200, 403, 403, 403]
        assert (await naru.ask("POST", "/api/invites", {"workspace_id": naru.workspace_id}, token=token)).status == 403
        late = await invite(naru, token)
        naru.clock.advance(7 * 86_400 + 1)
        assert (await register(naru, "late@example.com", invite_code=late)).status == 403


async def test_roles(naru: Installation) -> None:
    """What a user, a workspace's admin and an administrator may do with users and workspaces."""
    other = (await naru.ask("POST", "/api/workspaces", {"name": "other"}, token=naru.key)).body["workspace_id"]
    ann, bob, cid = [await naru.new_user(f"{name}@example.com") for name in ("ann", "bob", "cid")]
    seat = f"/api/workspaces/{naru.workspace_id}/members"
    promoted = await naru.ask("PUT", f"{seat}/{bob['user_id']}", {"role": "workspace_admin"}, token=await naru.admin())
    assert (promoted.status, promoted.body["role"], promoted.body["email"]) == (200, "workspace_admin", bob["email"])
    moved = f"/api/workspaces/{other}/members/{cid['user_id']}"
    assert (await naru.ask("PUT", moved, {}, token=naru.key)).status == 200
    assert (await naru.ask("DELETE", f"{seat}/{cid['user_id']}", token=naru.key)).status == 200
    user, manager = [(await naru.login(one["email"]))["access_token"] for one in (ann, bob)]
    admin = await naru.admin()
    new = {"email": "new@example.com"}
    for method, path, body, statuses in (
        ("GET", "/api/users", None, (403, 200, 200)),
        ("GET", f"/api/users/{ann['user_id']}", None, (403, 200, 200)),
        ("GET", f"/api/users/{cid['user_id']}", None, (403, 404, 200)),
        ("GET", f"/api/users/{uuid7()}", None, (403, 404, 404)),
        ("POST", "/api/users", new, (403, 403, 200)),
        ("PUT", f"/api/users/{ann['user_id']}", {"email": ann["email"], "name": "Ann"}, (403, 403, 200)),
        ("POST", f"/api/users/{cid['user_id']}/password", {}, (403, 403, 200)),
        ("DELETE", f"/api/users/{cid['user_id']}/sessions", None, (403, 403, 200)),
        ("POST", "/api/invites", {"workspace_id": other}, (403, 403, 200)),
        ("POST", "/api/workspaces", {"name": "new"}, (403, 403, 200)),
        ("PUT", f"/api/workspaces/{other}", {"name": "renamed"}, (403, 403, 200)),
        ("GET", f"/api/workspaces/{naru.workspace_id}", None, (200, 200, 200)),
        ("GET", f"/api/workspaces/{other}", None, (404, 404, 200)),
        ("GET", seat, None, (403, 200, 200)),
        ("GET", f"/api/workspaces/{other}/members", None, (403, 403, 200)),
        ("PUT", f"{seat}/{ann['user_id']}", {"role": "user"}, (403, 200, 200)),
        ("PUT", f"{seat}/{ann['user_id']}", {"role": "admin"}, (403, 400, 400)),
        ("PUT", f"{seat}/{cid['user_id']}", {}, (403, 404, 200)),
        ("PUT", f"/api/workspaces/{other}/members/{ann['user_id']}", {}, (403, 403, 200)),
        ("DELETE", f"/api/workspaces/{other}/members/{cid['user_id']}", None, (403, 403, 200)),
        ("DELETE", f"{seat}/{uuid7()}", None, (403, 404, 404)),
    ):
        for token, status in zip((user, manager, admin), statuses, strict=True):
            answer = await naru.ask(method, path, body, token=token)
            assert answer.status == status, (method, path, answer)
        assert (await naru.ask(method, path, body)).status == 401
    listed = (await naru.ask("GET", "/api/users", token=manager)).body["users"]
    assert {one["email"] for one in listed} >= {ann["email"], bob["email"]}


async def test_a_membership_that_changes_is_felt_at_once(naru: Installation) -> None:
    """Who joins, rises or leaves is that at once, with the tokens they have; without any workspace they may do nothing."""
    user = await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    team = (await naru.ask("POST", "/api/workspaces", {"name": "team", "tier": "pro"}, token=naru.key)).body
    assert (await me(naru, token, team["workspace_id"]))["principal"]["workspace_id"] == naru.workspace_id
    path = f"/api/workspaces/{team['workspace_id']}/members/{user['user_id']}"
    await naru.ask("PUT", path, {"role": "workspace_admin"}, token=naru.key)

    async def becomes(project: str, **expected: str) -> None:
        async with asyncio.timeout(20):
            while not expected.items() <= (await me(naru, token, project))["principal"].items():
                await asyncio.sleep(0.01)

    await becomes(team["workspace_id"], workspace_id=team["workspace_id"], role="workspace_admin", tier="pro")
    await becomes("", workspace_id=naru.workspace_id, role="user", tier="free")
    await becomes("proj_of_somebody_else", workspace_id=naru.workspace_id)
    body = {"name": "team", "tier": "enterprise"}
    assert (await naru.ask("PUT", f"/api/workspaces/{team['workspace_id']}", body, token=naru.key)).status == 200
    await becomes(team["workspace_id"], tier="enterprise")
    await naru.ask("DELETE", path, token=naru.key)
    await becomes(team["workspace_id"], workspace_id=naru.workspace_id)
    await naru.ask("DELETE", f"/api/workspaces/{naru.workspace_id}/members/{user['user_id']}", token=naru.key)
    async with asyncio.timeout(20):
        while (answer := await naru.ask("GET", "/v1/models", token=token)).status == 200:
            await asyncio.sleep(0.01)
    assert (answer.status, answer.code) == (403, "permission_denied")


async def test_an_admin_cannot_shut_themselves_out(naru: Installation) -> None:
    """Blocking oneself or giving up one's own role is refused; another administrator may do it."""
    admin = await naru.admin()
    await naru.new_user("boss@example.com", role="admin")
    mine = (await me(naru, admin))["user"]
    path = f"/api/users/{mine['user_id']}"
    for change in ({"blocked": True, "role": "admin"}, {"role": "user"}):
        answer = await naru.ask("PUT", path, {"email": mine["email"], **change}, token=admin)
        assert (answer.status, answer.code) == (400, "failed_precondition")
    assert (await naru.ask("PUT", path, {"email": mine["email"], "role": "user"}, token=naru.key)).status == 200
    async with asyncio.timeout(20):
        while (await me(naru, admin))["principal"]["role"] == "admin":
            await asyncio.sleep(0.01)


async def test_no_workspaces_admin_shuts_an_administrator_out(naru: Installation) -> None:
    """An administrator whom their only workspace sent away acts in the first one, now and after the next log-in."""
    admin = await naru.admin()
    mine = (await me(naru, admin))["user"]
    boss = await naru.ask("POST", "/api/keys", {"role": "workspace_admin"}, token=naru.key)
    seat = f"/api/workspaces/{naru.workspace_id}/members/{mine['user_id']}"
    assert (await naru.ask("DELETE", seat, token=boss.body["secret_key"])).status == 200
    for token in (admin, await naru.admin()):
        # Another project than before: the edge asks authsvc anew.
        principal = (await me(naru, token, str(uuid7())))["principal"]
        assert (principal["role"], principal["workspace_id"]) == ("admin", naru.workspace_id)
        assert (await naru.ask("GET", "/api/users", token=token)).status == 200
    assert (await naru.ask("PUT", seat, {"role": "workspace_admin"}, token=admin)).status == 200


async def test_another_tier_reaches_an_administrator_without_a_workspace(naru: Installation) -> None:
    """Who acts in the first workspace without being a member has its new tier with the token that they have."""
    boss = await naru.new_user("boss@example.com", role="admin")
    token = (await naru.login("boss@example.com"))["access_token"]
    where = f"/api/workspaces/{naru.workspace_id}"
    assert (await naru.ask("DELETE", f"{where}/members/{boss['user_id']}", token=naru.key)).status == 200
    for tier in ("pro", "enterprise"):
        assert (await naru.ask("PUT", where, {"name": "default", "tier": tier}, token=naru.key)).status == 200
        async with asyncio.timeout(20):
            while (await me(naru, token))["principal"]["tier"] != tier:
                await asyncio.sleep(0.01)


async def test_a_narrowed_key_lets_nobody_in(naru: Installation) -> None:
    """A key narrowed to models or networks makes no user, invite or password, and promotes nobody: they are not narrowed."""
    ann, bob = await naru.new_user(), await naru.new_user("bob@example.com", blocked=True)
    seat = f"/api/workspaces/{naru.workspace_id}/members/{ann['user_id']}"
    calls = (
        ("POST", "/api/users", {"email": "new@example.com"}),
        ("POST", "/api/invites", {}),
        ("POST", f"/api/users/{ann['user_id']}/password", {}),
        ("PUT", f"/api/users/{ann['user_id']}", {"email": ann["email"], "role": "admin"}),
        ("PUT", f"/api/users/{bob['user_id']}", {"email": bob["email"], "blocked": False}),
        ("PUT", seat, {"role": "workspace_admin"}),
    )
    for scopes in ({"models": ["small*"]}, {"source_cidrs": ["127.0.0.0/8"]}):
        for role in ("admin", "workspace_admin"):
            made = await naru.ask("POST", "/api/keys", {"role": role, "scopes": scopes}, token=naru.key)
            for method, path, body in calls:
                answer = await naru.ask(method, path, body, token=made.body["secret_key"])
                assert (answer.status, answer.code) == (403, "permission_denied"), (role, method, path)


NO_ADDRESSES = [
    "",
    "ann",
    "ann@",
    "@example.com",
    "ann@@example.com",
    "ann example@example.com",
    "ann@example.com\0",
    "ann@example.com\r\nX-Admin: yes",
    "\u202eann@example.com",
    "\u0430nn@example.com",  # Cyrillic а
    "ann@ex\u0430mple.com",
    "a" * 65 + "@example.com",
    "ann@" + "e" * 64 + ".com",
    "ann@" + "example." * 40 + "com",
    "'; DROP TABLE users; --@example.com",
    "a" * 1_000_000,
]


async def test_addresses_that_are_none(tmp_path: Path) -> None:
    """An address that is none, or looks like another, is refused wherever it comes, and nothing is written."""
    async with installation(tmp_path, registration="open") as naru:
        before = await naru.contents()
        for email in NO_ADDRESSES:
            for path in ("/api/auth/register", "/api/auth/login"):
                answer = await naru.ask("POST", path, {"email": email, "password": PASSWORD})
                assert (answer.status, answer.body["error"]["param"]) == (400, "email"), (path, email[:50])
            answer = await naru.ask("POST", "/api/users", {"email": email}, token=naru.key)
            assert (answer.status, answer.body["error"]["param"]) == (400, "email"), email[:50]
        assert await naru.contents() == before


async def test_addresses_are_one_however_they_are_written(naru: Installation) -> None:
    """Case and compatibility forms make no other address."""
    await naru.new_user("ann@example.com")
    for email in ("ANN@EXAMPLE.COM", "ａｎｎ@example.com", "Ann@Example.com"):
        await naru.login(email)
        assert (await naru.ask("POST", "/api/users", {"email": email}, token=naru.key)).status == 409


BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("/api/auth/register", {"password": "x" * 1_000_000}, "password"),
    ("/api/auth/login", {"password": "x" * 1_000_000}, "password"),
    ("/api/auth/register", {"password": "x" * 1_025}, "password"),
    ("/api/auth/register", {"password": "seven77"}, "password"),
    ("/api/auth/register", {"name": "n" * 65}, "name"),
    ("/api/auth/register", {"name": "a\0b"}, "name"),
    ("/api/auth/register", {"name": "a\nb"}, "name"),
    ("/api/auth/register", {"role": "admin"}, "role"),
    ("/api/auth/login", {"client_address": "127.0.0.1"}, "client_address"),
    ("/api/auth/login", {"password": 5}, "password"),
    ("/api/auth/login", {"password": {"$ne": ""}}, "password"),
    ("/api/auth/refresh", {"email": EMAIL}, "email"),
    ("/api/users", {"email": EMAIL, "role": "workspace_admin"}, "role"),
    ("/api/users", {"email": EMAIL, "role": "root"}, "role"),
    ("/api/users", {"email": EMAIL, "tier": "t" * 65}, "tier"),
    ("/api/users", {"email": EMAIL, "default_workspace_id": "x" * 10_000}, "default_workspace_id"),
    ("/api/invites", {"role": "admin"}, "role"),
    ("/api/workspaces", {"name": ""}, "name"),
    ("/api/workspaces", {"name": "n" * 65}, "name"),
    ("/api/workspaces", {"name": " team"}, "name"),
    ("/api/workspaces", {"name": "team", "request_id": "not a uuid"}, "request_id"),
]


async def test_bad_fields(tmp_path: Path) -> None:
    """What is too long, too short, of another type or not to be set is a 400 that names it; nothing is written."""
    async with installation(tmp_path, registration="open") as naru:
        before = await naru.contents()
        for path, body, param in BAD_FIELDS:
            opened = path.startswith("/api/auth/")
            sent = ({"email": EMAIL, "password": PASSWORD} if opened and "refresh" not in path else {}) | body
            answer = await naru.ask("POST", path, sent, token="" if opened else naru.key)
            assert (answer.status, answer.body["error"]["param"]) == (400, param), (path, param, answer)
        assert await naru.contents() == before


async def test_text_that_is_no_text(naru: Installation) -> None:
    """Half a character and bytes that are no UTF-8 are a 400, not a fault of ours."""
    before = await naru.contents()
    for body in (b'{"email": "ann@example.com", "password": "\\ud800aaaaaaaa"}', b'{"email": "\xff"}', b"null", b"["):
        assert (await naru.ask("POST", "/api/auth/login", body)).status == 400, body
    assert await naru.contents() == before


async def test_lists_come_in_pages(naru: Installation) -> None:
    """Users, workspaces and members come in pages without gap or repetition; another list's token is refused."""
    names = [f"u{number}@example.com" for number in range(5)]
    for name in names:
        assert (await naru.ask("POST", "/api/users", {"email": name}, token=naru.key)).status == 200
        assert (await naru.ask("POST", "/api/workspaces", {"name": name}, token=naru.key)).status == 200
    members = f"/api/workspaces/{naru.workspace_id}/members"
    for path, rows, field, extra in (
        ("/api/users", "users", "email", "admin@localhost"),
        ("/api/workspaces", "workspaces", "name", "default"),
        (members, "members", "email", "admin@localhost"),
    ):
        seen, token = [], ""
        while True:
            answer = await naru.ask("GET", f"{path}?page_size=2&page_token={token}", token=naru.key)
            assert answer.status == 200, answer
            seen += [row[field] for row in answer.body[rows]]
            token = answer.body["next_page_token"]
            if not token:
                break
            other = "/api/users" if path != "/api/users" else "/api/workspaces"
            wrong = await naru.ask("GET", f"{other}?page_token={token}", token=naru.key)
            assert (wrong.status, wrong.body["error"]["param"]) == (400, "page_token")
        assert seen == sorted([*names, extra])
    assert (await naru.ask("GET", "/api/users?page_size=-1", token=naru.key)).status == 400
    assert (await naru.ask("GET", "/api/users?page_token=AAAA", token=naru.key)).status == 400
