"""Each status that the routes of keys, people and workspaces refuse with, as an OpenAI client sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from naru.ids import uuid7
from tests.support.identity_harness import EMAIL, Answer, Installation, installation

pytestmark = pytest.mark.behaviour


@pytest.fixture
async def naru(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as running:
        yield running


def is_error(answer: Answer, status: int, kind: str, code: str | None, param: str | None = None) -> bool:
    """Whether this is the whole of an error."""
    error = answer.body["error"]
    return (
        answer.status == status
        and set(answer.body) == {"error"}
        and set(error) == {"message", "type", "param", "code"}
        and (error["type"], error["code"], error["param"]) == (kind, code, param)
        and bool(error["message"])
        and "x-request-id" in {name.lower() for name in answer.headers}
    )


async def test_400_names_the_field(naru: Installation) -> None:
    """What is wrong with a request is a 400 that names the field; what does not fit how things stand is one with a code."""
    for method, path, body, param in (
        ("POST", "/api/users", {"email": "nobody"}, "email"),
        ("POST", "/api/keys", {"description": "d" * 201}, "description"),
        ("POST", "/api/workspaces", {"name": " "}, "name"),
        ("GET", "/api/invites?page_size=-1", None, "page_size"),
        ("DELETE", f"/api/users/{uuid7()}?soon=1", None, "soon"),
    ):
        answer = await naru.ask(method, path, body, token=naru.key)
        assert is_error(answer, 400, "invalid_request_error", None, param), (path, answer)
    answer = await naru.ask("DELETE", f"/api/workspaces/{naru.workspace_id}", token=naru.key)
    assert is_error(answer, 400, "invalid_request_error", "failed_precondition"), answer


async def test_401_of_credentials(naru: Installation) -> None:
    """Without a credential, with a bad one, and for a log-in that does not fit."""
    for path in ("/api/keys", "/api/users", "/api/invites", "/api/workspaces", "/api/auth/me", "/v1/models"):
        for token, code in (("", None), ("sk-naru-none", "invalid_api_key"), ("eyJ.eyJ.x", "invalid_api_key")):
            answer = await naru.ask("GET", path, token=token)
            assert is_error(answer, 401, "invalid_request_error", code), (path, token, answer)
    answer = await naru.ask("POST", "/api/auth/login", {"email": EMAIL, "password": "not the one"})
    assert is_error(answer, 401, "invalid_request_error", "invalid_credentials"), answer
    answer = await naru.ask("POST", "/api/auth/refresh", {"refresh_token": "nrt-none"})
    assert is_error(answer, 401, "invalid_request_error", "invalid_credentials"), answer


async def test_403_of_rights(naru: Installation) -> None:
    """A user at what others manage, before anybody looks whether it is there."""
    await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    for method, path in (
        ("GET", "/api/users"),
        ("GET", f"/api/users/{uuid7()}"),
        ("DELETE", f"/api/users/{uuid7()}"),
        ("GET", "/api/invites"),
        ("DELETE", f"/api/invites/{uuid7()}"),
        ("DELETE", f"/api/workspaces/{uuid7()}"),
        ("POST", "/api/keys/nobody000000/block"),
        ("GET", f"/api/workspaces/{uuid7()}/members"),
    ):
        answer = await naru.ask(method, path, token=token)
        assert is_error(answer, 403, "permission_error", "permission_denied"), (path, answer)


async def test_404_of_what_is_not_there(naru: Installation) -> None:
    """An administrator at ids of nothing, of every kind."""
    nothing = uuid7()
    for method, path, body in (
        ("GET", "/api/keys/nobody000000", None),
        ("PATCH", "/api/keys/nobody000000", {"description": "d"}),
        ("DELETE", "/api/keys/nobody000000", None),
        ("GET", f"/api/users/{nothing}", None),
        ("PUT", f"/api/users/{nothing}", {"email": EMAIL}),
        ("DELETE", f"/api/users/{nothing}", None),
        ("DELETE", f"/api/invites/{nothing}", None),
        ("GET", f"/api/workspaces/{nothing}", None),
        ("DELETE", f"/api/workspaces/{nothing}", None),
        ("PUT", f"/api/workspaces/{naru.workspace_id}/members/{nothing}", {}),
        ("DELETE", f"/api/workspaces/{naru.workspace_id}/members/{nothing}", None),
    ):
        answer = await naru.ask(method, path, body, token=naru.key)
        assert is_error(answer, 404, "invalid_request_error", "not_found"), (path, answer)


async def test_409_of_what_is_taken(naru: Installation) -> None:
    """An address, a name, and a request id that came with another body."""
    await naru.new_user()
    request_id = uuid7()
    bodies: list[tuple[str, Any]] = [
        ("/api/users", {"email": EMAIL.upper()}),
        ("/api/workspaces", {"name": "default"}),
        ("/api/keys", {"request_id": request_id, "description": "another"}),
    ]
    first = {"request_id": request_id, "description": "one"}
    assert (await naru.ask("POST", "/api/keys", first, token=naru.key)).status == 200
    for path, body in bodies:
        answer = await naru.ask("POST", path, body, token=naru.key)
        assert is_error(answer, 409, "invalid_request_error", "already_exists"), (path, answer)


async def test_429_of_too_many(naru: Installation) -> None:
    """Wrong passwords, of a log-in and of who is logged in alike: with a time to wait."""
    await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    wrong = {"email": EMAIL, "password": "not the one"}
    change = {"current_password": "not the one", "new_password": "another good one"}
    for path, body in (("/api/auth/login", wrong), ("/api/auth/password", change)):
        answers = [await naru.ask("POST", path, body, token=token) for _ in range(6)]
        answer = answers[-1]
        assert is_error(answer, 429, "requests", "rate_limit_exceeded"), answer
        assert float({name.lower(): text for name, text in answer.headers.items()}["retry-after"]) > 0
