"""Logging in and out over HTTP, through a real edge and a real authsvc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.identity_harness import EMAIL, PASSWORD, Installation, installation


@pytest.fixture
async def naru(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as running:
        yield running


async def test_a_token_works_like_a_key(naru: Installation) -> None:
    """Whoever logs in may use models and the platform's API, as what they are in their workspace."""
    user = await naru.new_user(tier="pro")
    given = await naru.login("Ann@Example.com")
    assert (given["token_type"], given["expires_in"]) == ("Bearer", 900)
    token = given["access_token"]
    models = await naru.ask("GET", "/v1/models", token=token)
    assert (models.status, models.body["object"]) == (200, "list")
    messages = [{"role": "user", "content": "Hi."}]
    models_there = [model["id"] for model in models.body["data"]]
    chat = await naru.ask("POST", "/v1/chat/completions", {"model": models_there[0], "messages": messages}, token=token)
    assert chat.status == 200, chat
    me = (await naru.ask("GET", "/api/auth/me", token=token)).body
    assert me["user"] == user
    assert me["principal"]["role"] == "user"
    assert (me["principal"]["tier"], me["principal"]["workspace_id"]) == ("pro", naru.workspace_id)
    assert [seat["workspace_id"] for seat in me["memberships"]] == [naru.workspace_id]
    assert (await naru.ask("GET", "/api/users", token=token)).status == 403
    assert (await naru.ask("POST", "/admin/api/login", {"email": EMAIL, "password": PASSWORD})).status == 200


async def test_unknown_and_wrong_are_one_answer(naru: Installation) -> None:
    """An unknown address, a wrong password and a blocked account get the same answer, word for word."""
    user = await naru.new_user()
    blocked = await naru.new_user("blocked@example.com")
    changed = await naru.ask("PUT", f"/api/users/{blocked['user_id']}", blocked_body(blocked), token=naru.key)
    assert changed.status == 200, changed
    assert changed.body["blocked"]
    before = await naru.contents()
    answers = [
        await naru.ask("POST", "/api/auth/login", {"email": email, "password": password})
        for email, password in (
            ("nobody@example.com", PASSWORD),
            (user["email"], "wrong password"),
            (blocked["email"], PASSWORD),
            (user["email"], ""),
        )
    ]
    assert {answer.status for answer in answers} == {401}
    assert [answer.body for answer in answers] == [answers[0].body] * 4
    assert answers[0].code == "invalid_credentials"
    assert await naru.contents() == before


def blocked_body(user: dict[str, object]) -> dict[str, object]:
    return {"email": user["email"], "blocked": True}


async def test_refreshing_rotates(naru: Installation) -> None:
    """A refresh token gives new tokens once; a lost answer is given again; a later reuse ends the session."""
    await naru.new_user()
    first = await naru.login(EMAIL)
    second = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert second.status == 200
    assert second.body["refresh_token"] != first["refresh_token"]
    again = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert again.body["refresh_token"] == second.body["refresh_token"]
    naru.clock.advance(11)
    reused = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert (reused.status, reused.code) == (401, "invalid_credentials")
    family = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": second.body["refresh_token"]})
    assert family.status == 401
    await refused_soon(naru, str(second.body["access_token"]))


async def test_the_grace_ends_with_the_successors_use(naru: Installation) -> None:
    """Once the successor was used, the token before it is a stolen one, however soon it comes."""
    await naru.new_user()
    first = (await naru.login(EMAIL))["refresh_token"]
    second = (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": first})).body["refresh_token"]
    third = (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": second})).body["refresh_token"]
    assert (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": first})).status == 401
    assert (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": third})).status == 401


async def test_a_forged_refresh_token_ends_nothing(naru: Installation) -> None:
    """Whoever knows a session's id but not a secret of it cannot end it."""
    await naru.new_user()
    token = str((await naru.login(EMAIL))["refresh_token"])
    before = await naru.contents()
    for forged in (token[:-43] + "A" * 43, token.replace("-1-", "-2-"), "nrt-x", "", "x" * 200, "\0", "' OR 1=1 --"):
        answer = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": forged})
        assert (answer.status, answer.code) == (401, "invalid_credentials"), forged
        assert (await naru.ask("POST", "/api/auth/logout", {"refresh_token": forged})).status == 200
    assert await naru.contents() == before
    assert (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": token})).status == 200


async def test_logging_out(naru: Installation) -> None:
    """Logging out ends one session, or all; access tokens that the edge knows stop too."""
    user = await naru.new_user()
    one, two, three = [await naru.login(EMAIL) for _ in range(3)]
    for given in (one, two, three):
        assert (await naru.ask("GET", "/v1/models", token=given["access_token"])).status == 200
    assert (await naru.ask("POST", "/api/auth/logout", {"refresh_token": one["refresh_token"]})).body == {}
    await refused_soon(naru, one["access_token"])
    assert (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": one["refresh_token"]})).status == 401
    assert (await naru.ask("GET", "/v1/models", token=two["access_token"])).status == 200
    # The session that is over has no say in the others.
    body = {"refresh_token": one["refresh_token"], "everywhere": True}
    assert (await naru.ask("POST", "/api/auth/logout", body)).status == 200
    assert (await naru.ask("GET", "/v1/models", token=two["access_token"])).status == 200
    await naru.ask("POST", "/api/auth/logout", {"refresh_token": two["refresh_token"], "everywhere": True})
    await refused_soon(naru, three["access_token"])
    assert (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": three["refresh_token"]})).status == 401
    four = await naru.login(EMAIL)
    path = f"/api/users/{user['user_id']}/sessions"
    assert (await naru.ask("DELETE", path, token=four["access_token"])).body == {"sessions": 1}
    await refused_soon(naru, four["access_token"])


async def test_changing_the_password(naru: Installation) -> None:
    """Only with the old one, not with a key; every session ends, and only the new one logs in."""
    await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    change = {"current_password": PASSWORD, "new_password": "another password"}
    wrong = await naru.ask("POST", "/api/auth/password", change | {"current_password": "not it"}, token=token)
    assert (wrong.status, wrong.code) == (401, "invalid_credentials")
    short = await naru.ask("POST", "/api/auth/password", change | {"new_password": "seven77"}, token=token)
    assert (short.status, short.body["error"]["param"]) == (400, "new_password")
    assert (await naru.ask("POST", "/api/auth/password", change, token=naru.key)).status == 403
    assert (await naru.ask("POST", "/api/auth/password", change, token=token)).status == 200
    await refused_soon(naru, token)
    old = await naru.ask("POST", "/api/auth/login", {"email": EMAIL, "password": PASSWORD})
    assert old.status == 401
    await naru.login(EMAIL, "another password")


async def test_an_admins_reset(naru: Installation) -> None:
    """An administrator gives a user a random password, shown once; sessions end. Nobody else may."""
    user = await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    path = f"/api/users/{user['user_id']}/password"
    assert (await naru.ask("POST", path, {}, token=token)).status == 403
    reset = await naru.ask("POST", path, {}, token=await naru.admin())
    assert len(reset.body["password"]) == 24
    await refused_soon(naru, token)
    await naru.login(EMAIL, reset.body["password"])
    assert (await naru.ask("POST", "/api/users/nobody/password", {}, token=naru.key)).status == 404


async def test_a_token_ends(naru: Installation) -> None:
    """An access token is good for its time and the clocks' difference, and a session for thirty days."""
    await naru.new_user()
    given = await naru.login(EMAIL)
    naru.clock.advance(929)
    assert (await naru.ask("GET", "/api/auth/me", token=given["access_token"])).status == 200
    naru.clock.advance(2)
    refreshed = (await naru.ask("POST", "/api/auth/refresh", {"refresh_token": given["refresh_token"]})).body
    assert refreshed["refresh_expires_in"] == 30 * 86_400 - 931
    # The edge goes by its own clock; a new one of its answers comes from authsvc.
    fresh = await naru.ask(
        "GET", "/api/auth/me", token=given["access_token"], headers={"OpenAI-Project": naru.workspace_id}
    )
    assert (fresh.status, fresh.code) == (401, "invalid_api_key")
    naru.clock.advance(30 * 86_400)
    ended = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": refreshed["refresh_token"]})
    assert ended.status == 401


async def test_the_owner_is_not_locked_out(naru: Installation) -> None:
    """Guesses from one address are cut off there, and do not keep the owner out, whose address is known."""
    await naru.new_user()
    home, away = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "198.51.100.7"}
    good, bad = {"email": EMAIL, "password": PASSWORD}, {"email": EMAIL, "password": "guess-guess"}
    assert (await naru.ask("POST", "/api/auth/login", good, headers=home)).status == 200
    statuses = [(await naru.ask("POST", "/api/auth/login", bad, headers=away)).status for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    refused = await naru.ask("POST", "/api/auth/login", good, headers=away)
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert (await naru.ask("POST", "/api/auth/login", good, headers=home)).status == 200
    unknown = {"email": "nobody@example.com", "password": "guess-guess"}
    same = [(await naru.ask("POST", "/api/auth/login", unknown, headers=away)).status for _ in range(7)]
    assert same == statuses
    naru.clock.advance(60)
    assert (await naru.ask("POST", "/api/auth/login", good, headers=away)).status == 200


async def refused_soon(naru: Installation, token: str) -> None:
    """Waits until the edge refuses a token that it knew, for five seconds at most on a busy machine."""
    async with asyncio.timeout(20):
        while (answer := await naru.ask("GET", "/v1/models", token=token)).status == 200:
            await asyncio.sleep(0.01)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
