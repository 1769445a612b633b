"""Users who manage their own API keys, over HTTP: what they may do, and that nobody learns of anybody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.identity_harness import EMAIL, Answer, Installation, installation

pytestmark = pytest.mark.behaviour


@pytest.fixture
async def naru(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as running:
        yield running


async def token_of(naru: Installation, email: str = EMAIL, **fields: Any) -> str:
    """A token of a new user."""
    await naru.new_user(email, **fields)
    return str((await naru.login(email))["access_token"])


async def made(naru: Installation, token: str, **fields: Any) -> dict[str, Any]:
    """A new key, with its text."""
    answer = await naru.ask("POST", "/api/keys", fields, token=token)
    assert answer.status == 200, answer
    return dict(answer.body)


async def becomes(naru: Installation, key: str, path: str, status: int) -> Answer:
    """What the key gets once it gets this status."""
    async with asyncio.timeout(20):
        while (answer := await naru.ask("GET", path, token=key)).status != status:
            await asyncio.sleep(0.01)
    return answer


async def test_a_user_lives_with_a_key(naru: Installation) -> None:
    """A user makes a key, sees it and no other, changes what it is for, rotates it and revokes it."""
    ann, bob = await token_of(naru), await token_of(naru, "bob@example.com")
    me = (await naru.ask("GET", "/api/auth/me", token=ann)).body["user"]["user_id"]
    mine = await made(naru, ann, description="laptop")
    await made(naru, bob)
    key, path = mine["api_key"], f"/api/keys/{mine['api_key']['key_id']}"
    assert (key["user_id"], key["workspace_id"], key["role"]) == (me, naru.workspace_id, "user")
    assert (await naru.ask("GET", "/v1/models", token=mine["secret_key"])).status == 200
    listed = (await naru.ask("GET", "/api/keys", token=ann)).body["api_keys"]
    assert [one["key_id"] for one in listed] == [key["key_id"]]
    changed = await naru.ask("PATCH", path, {"description": "desk", "metadata": {"room": "4"}}, token=ann)
    assert (changed.status, changed.body["description"], changed.body["metadata"]) == (200, "desk", {"room": "4"})
    rotated = await naru.ask("POST", f"{path}/rotate", {"grace_period": "0s"}, token=ann)
    assert rotated.status == 200
    await becomes(naru, mine["secret_key"], "/v1/models", 401)
    await becomes(naru, rotated.body["secret_key"], "/v1/models", 200)
    assert (await naru.ask("DELETE", path, token=ann)).body["state"] == "revoked"
    await becomes(naru, rotated.body["secret_key"], "/v1/models", 401)


async def test_no_more_than_the_user_has(naru: Installation) -> None:
    """No role, tier, owner, workspace or service account but their own, and no longer life for a key that has an end."""
    ann = await token_of(naru, tier="trial")
    other = (await naru.ask("POST", "/api/workspaces", {"name": "other", "tier": "pro"}, token=naru.key)).body
    bob = (await naru.new_user("bob@example.com"))["user_id"]
    before = await naru.contents()
    for wish in (
        {"role": "workspace_admin"},
        {"role": "admin"},
        {"tier": "free"},
        {"tier": "unlimited"},
        {"workspace_id": other["workspace_id"]},
        {"user_id": bob},
        {"service_account": "dev-team"},
    ):
        answer = await naru.ask("POST", "/api/keys", wish, token=ann)
        assert (answer.status, answer.code) == (403, "permission_denied"), wish
    assert (await naru.ask("GET", f"/api/keys?user_id={bob}", token=ann)).status == 403
    assert await naru.contents() == before
    me = (await naru.ask("GET", "/api/auth/me", token=ann)).body["user"]["user_id"]
    given = {"user_id": me, "expire_time": "2100-01-01T00:00:00Z", "scopes": {"models": ["small"]}}
    mine = (await made(naru, naru.key, **given))["api_key"]
    path = f"/api/keys/{mine['key_id']}"
    for change in ({"tier": "pro"}, {"expire_time": None}, {"scopes": None}, {"scopes": {"models": ["*"]}}):
        assert (await naru.ask("PATCH", path, change, token=ann)).status == 403, change
    for verb in ("block", "unblock"):
        assert (await naru.ask("POST", f"{path}/{verb}", token=ann)).status == 403
    assert (await naru.ask("GET", path, token=ann)).body == mine


async def test_a_strangers_key_is_as_one_there_is_not(naru: Installation) -> None:
    """To a user another's key, one of nobody, one of another workspace and one that does not exist are one answer."""
    ann, bob = await token_of(naru), await token_of(naru, "bob@example.com")
    other = (await naru.ask("POST", "/api/workspaces", {"name": "other"}, token=naru.key)).body["workspace_id"]
    ids = [
        (await made(naru, bob))["api_key"]["key_id"],
        (await made(naru, naru.key))["api_key"]["key_id"],
        (await made(naru, naru.key, workspace_id=other))["api_key"]["key_id"],
        "nobody000000",
    ]
    before = await naru.contents()
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"description": "mine"}),
        ("POST", "/rotate", {}),
        ("DELETE", "", None),
    ):
        answers = [await naru.ask(method, f"/api/keys/{one}{path}", body, token=ann) for one in ids]
        shapes = [str(answer.body).replace(one, "ID") for one, answer in zip(ids, answers, strict=True)]
        assert {answer.status for answer in answers} == {404}
        assert len(set(shapes)) == 1, shapes
    assert await naru.contents() == before


async def test_a_users_key_makes_no_keys(naru: Installation) -> None:
    """A key of a user's, which somebody may have found, neither lists nor makes nor changes keys: users log in for that."""
    mine = await made(naru, await token_of(naru))
    key_id, key = mine["api_key"]["key_id"], mine["secret_key"]
    before = await naru.contents(without=("api_keys",))
    for method, path, body in (
        ("GET", "/api/keys", None),
        ("POST", "/api/keys", {}),
        ("GET", f"/api/keys/{key_id}", None),
        ("POST", f"/api/keys/{key_id}/rotate", {}),
        ("DELETE", "/api/keys/nobody000000", None),
    ):
        assert (await naru.ask(method, path, body, token=key)).status == 403, (method, path)
    assert await naru.contents(without=("api_keys",)) == before


async def test_a_users_key_does_not_log_them_out(naru: Installation) -> None:
    """Whoever found a key ends no session with it, whatever its role; its user, logged in, does, and an administrator's key."""
    user, ann = await naru.new_user(), (await naru.login(EMAIL))["access_token"]
    path = f"/api/users/{user['user_id']}/sessions"
    seat = f"/api/workspaces/{naru.workspace_id}/members/{user['user_id']}"
    assert (await naru.ask("PUT", seat, {"role": "workspace_admin"}, token=naru.key)).status == 200
    for role in ("user", "workspace_admin"):
        key = (await made(naru, naru.key, user_id=user["user_id"], role=role))["secret_key"]
        refused = await naru.ask("DELETE", path, token=key)
        assert (refused.status, refused.code) == (403, "permission_denied"), role
    assert (await naru.ask("DELETE", path, token=ann)).body == {"sessions": 1}
    await naru.login(EMAIL)
    assert (await naru.ask("DELETE", path, token=naru.key)).body == {"sessions": 1}


async def test_an_operator_may_switch_it_off(tmp_path: Path) -> None:
    """With NARU_AUTHSVC_USER_KEYS 0 users make no keys; what they have they go on managing."""
    async with installation(tmp_path, user_keys=0) as naru:
        ann = await token_of(naru)
        me = (await naru.ask("GET", "/api/auth/me", token=ann)).body["user"]["user_id"]
        refused = await naru.ask("POST", "/api/keys", {}, token=ann)
        assert (refused.status, refused.code) == (403, "permission_denied")
        mine = (await made(naru, naru.key, user_id=me))["api_key"]["key_id"]
        assert (await naru.ask("POST", f"/api/keys/{mine}/rotate", {}, token=ann)).status == 200
        assert (await naru.ask("DELETE", f"/api/keys/{mine}", token=ann)).status == 200


async def test_nobody_fills_the_database_with_keys(tmp_path: Path) -> None:
    """Of many at once no more are made than a user may have; to revoke one makes no room today, and administrators need none."""
    async with installation(tmp_path, user_keys=3) as naru:
        ann, bob = await token_of(naru), await token_of(naru, "bob@example.com")
        first = {"description": "first", "request_id": "0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1"}
        mine = (await made(naru, ann, **first))["api_key"]
        asked = await asyncio.gather(*(naru.ask("POST", "/api/keys", {}, token=ann) for _ in range(6)))
        assert sorted(answer.status for answer in asked) == [200, 200, 400, 400, 400, 400]
        refused = max(asked, key=lambda answer: answer.status)
        assert refused.code == "failed_precondition"
        assert "3 that work or were made within the last 24 hours" in refused.body["error"]["message"]
        assert (await made(naru, ann, **first))["api_key"] == mine
        assert (await naru.ask("DELETE", f"/api/keys/{mine['key_id']}", token=ann)).status == 200
        assert (await naru.ask("POST", "/api/keys", {}, token=ann)).status == 400
        assert (await naru.ask("POST", "/api/keys", {}, token=bob)).status == 200
        _ = await made(naru, naru.key, user_id=mine["user_id"])


async def test_no_key_outlives_the_key_that_makes_it(naru: Installation) -> None:
    """A workspace admin's key that ends makes and changes none to end later; an administrator's may."""
    ends, later = "2100-01-01T00:00:00Z", "2101-01-01T00:00:00Z"
    boss = await made(naru, naru.key, role="workspace_admin", expire_time=ends)
    for wish in ({}, {"expire_time": later}):
        assert (await naru.ask("POST", "/api/keys", wish, token=boss["secret_key"])).status == 403
    child = (await made(naru, boss["secret_key"], expire_time=ends))["api_key"]["key_id"]
    for change in ({"expire_time": None}, {"expire_time": later}):
        assert (await naru.ask("PATCH", f"/api/keys/{child}", change, token=boss["secret_key"])).status == 403
    assert (await naru.ask("PATCH", f"/api/keys/{child}", {"expire_time": None}, token=naru.key)).status == 200


async def test_a_key_falls_with_its_user(naru: Installation) -> None:
    """A key does no more than its user may now: demoted, it is a user's key within a second, promoted again it is what it was."""
    user = await naru.new_user()
    path, seat = f"/api/users/{user['user_id']}", f"/api/workspaces/{naru.workspace_id}/members/{user['user_id']}"
    boss = (await made(naru, naru.key, user_id=user["user_id"], role="workspace_admin"))["secret_key"]
    chief = (await made(naru, naru.key, user_id=user["user_id"], role="admin"))["secret_key"]

    async def may(expected: tuple[int, int, int]) -> None:
        """Status of: the boss's key lists members; the chief's key does; the chief's key lists tiers' budgets."""
        members = f"/api/workspaces/{naru.workspace_id}/members"
        for key, where, status in zip((boss, chief, chief), (members, members, "/api/users"), expected, strict=True):
            await becomes(naru, key, where, status)

    await may((403, 403, 403))
    assert (await naru.ask("PUT", seat, {"role": "workspace_admin"}, token=naru.key)).status == 200
    await may((200, 200, 200))
    new = {"email": "new@example.com"}
    assert (await naru.ask("POST", "/api/users", new, token=chief)).status == 403
    assert (await naru.ask("PUT", path, {"email": EMAIL, "role": "admin"}, token=naru.key)).status == 200
    await may((200, 200, 200))
    async with asyncio.timeout(20):
        while (await naru.ask("POST", "/api/users", {"email": "bad"}, token=chief)).status != 400:
            await asyncio.sleep(0.01)
    assert (await naru.ask("PUT", path, {"email": EMAIL}, token=naru.key)).status == 200
    assert (await naru.ask("PUT", seat, {"role": "user"}, token=naru.key)).status == 200
    await may((403, 403, 403))
    assert (await naru.ask("GET", "/v1/models", token=chief)).status == 200
    assert (await naru.ask("DELETE", seat, token=naru.key)).status == 200
    await becomes(naru, boss, "/v1/models", 401)


async def test_the_first_administrator_has_the_tier_of_the_first_key(naru: Installation) -> None:
    """Logged in, the administrator is not held to the limits of the workspace's default tier."""
    token = await naru.admin()
    answer = await naru.ask("GET", "/api/auth/me", token=token)
    assert answer.body["principal"]["tier"] == "unlimited"
    assert (await naru.ask("GET", "/api/auth/me", token=naru.key)).body["principal"]["tier"] == "unlimited"
