"""Bad input to the routes of keys, people and workspaces: refused by the right error, and the database is what it was."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from naru.ids import uuid7
from tests.support.identity_harness import EMAIL, PASSWORD, Installation, installation

pytestmark = pytest.mark.faults

NO_IDS = [
    "'; DROP TABLE users; --",
    "' OR '1'='1",
    "%",
    "_" * 36,
    "a\0b",
    "a\r\nX-Admin: yes",
    "\u202euser",
    "\u0430dmin",
    "x" * 65,
    "../users",
]
"""Ids that are none; those that no id can be are a 400, the others a 404."""
NO_TEXTS = ["a\0b", "a\nb", "a\r\nX-Admin: yes", "\u202eabc", "\u200babc", " abc", "x" * 10_000]
"""What no name and no description may hold."""


@pytest.fixture
async def naru(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as running:
        yield running


async def refused(naru: Installation, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
    """Status and field of an answer that is an error of the caller's."""
    answer = await naru.ask(method, path, body, **{"token": naru.key} | options)
    assert 400 <= answer.status < 500, (method, path, answer)
    assert "X-Admin" not in answer.headers
    return answer.status, answer.body["error"]["param"]


async def test_ids_that_are_none(naru: Installation) -> None:
    """Injections, nulls, look-alikes and long ones in the path of every route that has an id."""
    before = await naru.contents()
    for text in NO_IDS:
        one = quote(text, safe="")
        for method, path, body in (
            ("GET", f"/api/keys/{one}", None),
            ("PATCH", f"/api/keys/{one}", {"description": "d"}),
            ("POST", f"/api/keys/{one}/rotate", {}),
            ("DELETE", f"/api/keys/{one}", None),
            ("GET", f"/api/users/{one}", None),
            ("PUT", f"/api/users/{one}", {"email": EMAIL}),
            ("DELETE", f"/api/users/{one}", None),
            ("POST", f"/api/users/{one}/password", {"password": PASSWORD}),
            ("DELETE", f"/api/users/{one}/sessions", None),
            ("DELETE", f"/api/invites/{one}", None),
            ("GET", f"/api/workspaces/{one}", None),
            ("PUT", f"/api/workspaces/{one}", {"name": "n"}),
            ("DELETE", f"/api/workspaces/{one}", None),
            ("PUT", f"/api/workspaces/{one}/members/{uuid7()}", {}),
            ("DELETE", f"/api/workspaces/{naru.workspace_id}/members/{one}", None),
        ):
            status, _ = await refused(naru, method, path, body)
            assert status == (404 if text.isprintable() and len(text) <= 64 else 400), (method, path)
    assert await naru.contents() == before


async def test_texts_that_are_none(naru: Installation) -> None:
    """Nulls, line breaks, invisible signs and sizes in every text, by users and by administrators."""
    await naru.new_user()
    ann = (await naru.login(EMAIL))["access_token"]
    mine = (await naru.ask("POST", "/api/keys", {}, token=ann)).body["api_key"]["key_id"]
    before = await naru.contents()
    for text in NO_TEXTS:
        for token, method, path, body, param in (
            (ann, "POST", "/api/keys", {"description": text}, "description"),
            (ann, "POST", "/api/keys", {"metadata": {"note": text}}, "metadata.note"),
            (ann, "POST", "/api/keys", {"scopes": {"models": [text]}}, "scopes.models"),
            (ann, "PATCH", f"/api/keys/{mine}", {"description": text}, "description"),
            (ann, "PATCH", f"/api/keys/{mine}", {"metadata": {text: "note"}}, "metadata"),
            (naru.key, "POST", "/api/keys", {"service_account": text}, "service_account"),
            (naru.key, "POST", "/api/keys", {"workspace_id": text}, "workspace_id"),
            (naru.key, "POST", "/api/keys", {"tier": text}, "tier"),
            (naru.key, "POST", "/api/users", {"email": "new@example.com", "name": text}, "name"),
            (naru.key, "POST", "/api/invites", {"workspace_id": text}, "workspace_id"),
            (naru.key, "POST", "/api/invites", {"email": text}, "email"),
            (naru.key, "POST", "/api/workspaces", {"name": text}, "name"),
        ):
            assert await refused(naru, method, path, body, token=token) == (400, param), (path, body)
    assert await naru.contents() == before


async def test_filters_that_are_none(naru: Installation) -> None:
    """Filters and page tokens that are wrong, or are of another list."""
    for _ in range(2):
        assert (await naru.ask("POST", "/api/invites", {}, token=naru.key)).status == 200
    token = (await naru.ask("GET", "/api/invites?page_size=1", token=naru.key)).body["next_page_token"]
    before = await naru.contents()
    for query, param in (
        ("page_size=-1", "page_size"),
        ("page_size=many", "page_size"),
        ("page_token=none", "page_token"),
        (f"page_token={token}&show_ended=true", "page_token"),
        (f"page_token={token}&workspace_id={naru.workspace_id}", "page_token"),
        ("email=nobody", "email"),
        ("email=%00", "email"),
        ("show_ended=perhaps", "show_ended"),
        ("workspace_id=a%0d%0ab", "workspace_id"),
        ("order=name", "order"),
    ):
        assert await refused(naru, "GET", f"/api/invites?{query}") == (400, param), query
    assert await refused(naru, "GET", f"/api/users?page_token={token}") == (400, "page_token")
    assert await naru.contents() == before


async def test_page_tokens_that_no_database_takes(naru: Installation) -> None:
    """A token whose last name is half a character, a null or no text is none of ours, whoever sends it."""
    user = await naru.new_user()
    ann = (await naru.login(EMAIL))["access_token"]
    for name in ("one", "two"):
        made = await naru.ask("POST", "/api/workspaces", {"name": name}, token=naru.key)
        seat = f"/api/workspaces/{made.body['workspace_id']}/members/{user['user_id']}"
        assert (await naru.ask("PUT", seat, {}, token=naru.key)).status == 200
    first = (await naru.ask("GET", "/api/workspaces?page_size=1", token=ann)).body
    last, token = first["workspaces"][-1]["name"], json.loads(base64.urlsafe_b64decode(first["next_page_token"]))
    for name in ("\ud800", "a\udfffb", "a\0b", 5, None, ["one"]):
        forged = [name if part == last else part for part in token]
        encoded = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode()
        asked = await refused(naru, "GET", f"/api/workspaces?page_token={encoded}", token=ann)
        assert asked == (400, "page_token"), forged


async def test_headers_that_are_none(naru: Installation) -> None:
    """Credentials, projects and idempotency keys of a kind that nobody sends: a 401 or a 400, or without effect."""
    ann = await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    before = await naru.contents()
    for credential in ("' OR 1=1 --", "sk-naru-" + "a" * 7_000, "\u0430" * 20, "eyJ" + "." * 500):
        assert (await refused(naru, "GET", "/api/keys", token=credential))[0] == 401, credential[:20]
    for project in ("' OR 1=1 --", "x" * 5_000, "\u0430", naru.workspace_id.upper()):
        answer = await naru.ask("GET", "/api/auth/me", token=token, headers={"OpenAI-Project": project})
        assert answer.status in (200, 400), answer
        assert answer.status == 400 or answer.body["principal"]["workspace_id"] == naru.workspace_id
    for key in ("none", "x" * 5_000, "' OR 1=1 --", uuid7() + "0"):
        for path, body in (("/api/keys", {}), ("/api/workspaces", {"name": "n"}), ("/api/invites", {})):
            asked = await refused(naru, "POST", path, body, headers={"Idempotency-Key": key})
            assert asked == (400, "Idempotency-Key"), (path, key[:20])
        where = f"/api/users/{ann['user_id']}"
        assert await refused(naru, "DELETE", where, headers={"Idempotency-Key": key}) == (400, "Idempotency-Key")
    assert await naru.contents() == before


async def test_passwords_of_a_megabyte(naru: Installation) -> None:
    """Wherever a password comes it is refused by its length, before it is hashed."""
    ann = await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    before, long = await naru.contents(), "x" * 1_000_000
    for path, body, param, who in (
        ("/api/auth/password", {"current_password": long, "new_password": PASSWORD}, "current_password", token),
        ("/api/auth/password", {"current_password": PASSWORD, "new_password": long}, "new_password", token),
        ("/api/users", {"email": "new@example.com", "password": long}, "password", naru.key),
        (f"/api/users/{ann['user_id']}/password", {"password": long}, "password", naru.key),
    ):
        answer = await naru.ask("POST", path, body, token=who)
        assert (answer.status, answer.body["error"]["param"]) == (400, param), path
    assert await naru.contents() == before
