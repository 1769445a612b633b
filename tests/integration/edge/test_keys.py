"""/api/keys and /api/audit: a real edge in front of a real authsvc, by the keys that it made itself."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from authsvc.app import migrate
from authsvc.app import running as authsvc_running
from authsvc.config import AuthsvcConfig
from naru import api_key
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.client import ServiceClient
from naru.identity import ServiceName
from naru.lifecycle import Lifecycle
from tests.support.edge_harness import Harness, edge_with_peers
from tests.support.service_tokens import EDGE_TOKENS, write_tokens

OPERATOR_TOKEN = "operator-token-of-at-least-thirty-two-characters"


@dataclass(frozen=True)
class Platform:
    """The edge, and the installation's first key."""

    edge: Harness
    admin: str

    async def ask(self, method: str, path: str, key: str = "", **options: Any) -> tuple[int, Any]:
        """Status and JSON of a request, by the admin's key unless another is given."""
        headers = {"Authorization": f"Bearer {key or self.admin}"} | options.pop("headers", {})
        async with self.edge.http.request(method, self.edge.url + path, headers=headers, **options) as answer:
            return answer.status, await answer.json()

    async def made(self, **body: Any) -> tuple[str, str]:
        """A new key: its id and its text."""
        status, answer = await self.ask("POST", "/api/keys", json=body)
        assert status == 200, answer
        return answer["api_key"]["key_id"], answer["secret_key"]

    async def status(self, key: str) -> int:
        """What the key gets on a route of OpenAI's."""
        return (await self.ask("GET", "/v1/models", key))[0]

    async def becomes(self, key: str, status: int) -> None:
        """Returns when the key gets this status."""
        started = time.monotonic()
        # Promised is a second; a busy machine gets more, but less than the 9 after which an edge without invalidations asks anew.
        async with asyncio.timeout(8):
            while await self.status(key) != status:
                await asyncio.sleep(0.005)
        print(f"{status} after {time.monotonic() - started:.2f} s")


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    secrets = write_tokens(tmp_path)
    (secrets / "service-token-operator").write_text(OPERATOR_TOKEN)
    (secrets / "pepper").write_text("p" * 32)
    config = AuthsvcConfig(
        port=0,
        database_url=f"sqlite+aiosqlite:///{tmp_path}/auth.db",
        pepper_files=(f"1:{secrets}/pepper",),
        service_tokens_dir=secrets,
        shutdown_grace=1.0,
    )
    assert EDGE_TOKENS[ServiceName.EDGE]
    await migrate(config)
    async with authsvc_running(config, Lifecycle()) as up:
        address = f"127.0.0.1:{up.port}"
        operator = ServiceClient(address, name="authsvc", service_token=OPERATOR_TOKEN)
        stub = auth_service_pb2_grpc.AuthServiceStub(operator.channel)
        made = await operator.call(stub.Bootstrap, auth_service_pb2.BootstrapRequest(), timeout=5)
        await operator.close()
        async with edge_with_peers(tmp_path, authsvc_address=address) as edge:
            yield Platform(edge, made.api_key)


async def test_the_life_of_a_key(platform: Platform) -> None:
    """Made, shown, found, changed, rotated, blocked, unblocked and revoked over REST; each holds on /v1 within a second."""
    key_id, key = await platform.made(description="ci", metadata={"team": "search"}, role="user")
    assert await platform.status(key) == 200
    _, shown = await platform.ask("GET", f"/api/keys/{key_id}")
    assert (shown["description"], shown["metadata"], shown["state"]) == ("ci", {"team": "search"}, "active")
    _, listed = await platform.ask("GET", "/api/keys?state=active&description_contains=CI")
    assert [one["key_id"] for one in listed["api_keys"]] == [key_id]

    scopes = {"scopes": {"endpoints": ["/v1/chat/*"]}, "description": None}
    status, changed = await platform.ask("PATCH", f"/api/keys/{key_id}", json=scopes)
    assert (status, changed["description"], changed["metadata"]) == (200, "", {"team": "search"})
    await platform.becomes(key, 403)
    await platform.ask("PATCH", f"/api/keys/{key_id}", json={"scopes": {"endpoints": ["/v1/mod*"]}})
    await platform.becomes(key, 200)

    _, rotated = await platform.ask("POST", f"/api/keys/{key_id}/rotate", json={"grace_period": "3600s"})
    second = rotated["secret_key"]
    assert (await platform.status(key), await platform.status(second)) == (200, 200)
    _, rotated = await platform.ask("POST", f"/api/keys/{key_id}/rotate", json={"grace_period": "0s"})
    third = rotated["secret_key"]
    await platform.becomes(key, 401)
    await platform.becomes(second, 401)
    assert await platform.status(third) == 200

    _, blocked = await platform.ask("POST", f"/api/keys/{key_id}/block")
    assert blocked["state"] == "blocked"
    await platform.becomes(third, 401)
    await platform.ask("POST", f"/api/keys/{key_id}/unblock")
    await platform.becomes(third, 200)
    status, revoked = await platform.ask("DELETE", f"/api/keys/{key_id}")
    assert (status, revoked["state"]) == (200, "revoked")
    await platform.becomes(third, 401)


async def test_the_same_creation_makes_one_key(platform: Platform) -> None:
    """An Idempotency-Key makes a creation and a rotation harmless to repeat: the second answer has no secret."""
    headers = {"Idempotency-Key": "0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1"}
    _, first = await platform.ask("POST", "/api/keys", headers=headers)
    _, again = await platform.ask("POST", "/api/keys", headers=headers)
    assert first["secret_key"]
    assert (again["api_key"]["key_id"], again["secret_key"]) == (first["api_key"]["key_id"], "")
    path = f"/api/keys/{first['api_key']['key_id']}/rotate"
    _, rotated = await platform.ask("POST", path, headers=headers)
    _, again = await platform.ask("POST", path, headers=headers)
    assert (bool(rotated["secret_key"]), again["secret_key"]) == (True, "")
    status, error = await platform.ask("POST", path, headers=headers, json={"grace_period": "1s"})
    assert (status, error["error"]["code"]) == (409, "already_exists")


async def test_what_may_be_an_idempotency_key(platform: Platform) -> None:
    """A UUID in capitals is the same as in small letters; what is no UUID is a 400 that names the header, whatever its bytes."""
    key = "0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1"
    made = [await platform.ask("POST", "/api/keys", headers={"Idempotency-Key": text}) for text in (key.upper(), key)]
    assert [status for status, _ in made] == [200, 200]
    assert made[0][1]["api_key"]["key_id"] == made[1][1]["api_key"]["key_id"]
    for text in (b"story", b"\xff", key.encode() + b"\xff"):
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.edge.port)
        head = f"POST /api/keys HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {platform.admin}\r\n"
        writer.write(head.encode() + b"Idempotency-Key: " + text + b"\r\nContent-Length: 0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 "), text
        assert b'"param":"Idempotency-Key"' in answer


async def test_the_old_name_answers_as_the_new_one(platform: Platform) -> None:
    """/admin/api/keys makes and lists keys as /api/keys does, by its rights and scopes, and /openapi.json has both."""
    old, new = "/admin/api/keys", "/api/keys"
    status, made = await platform.ask("POST", old, json={"description": "old", "tier": "pro"})
    key_id = made["api_key"]["key_id"]
    assert status == 200
    assert await platform.status(made["secret_key"]) == 200
    assert await platform.ask("GET", f"{new}/{key_id}") == (200, made["api_key"])
    for query in ("", "?description_contains=OLD", "?page_size=1"):
        answer = await platform.ask("GET", old + query)
        assert answer == await platform.ask("GET", new + query)
        assert (answer[0], answer[1]["api_keys"][0]["key_id"]) == (200, key_id)
    _, scoped = await platform.made(role="admin", scopes={"endpoints": [new]})
    _, user = await platform.made()
    for method, path, key, expected in (
        ("GET", "?state=dead", "", 400),
        ("POST", "", user, 403),
        ("GET", "", user, 403),
        ("GET", "", scoped, 200),
        ("GET", "", "sk-wrong", 401),
    ):
        status, answer = await platform.ask(method, old + path, key)
        assert (status, answer) == (expected, (await platform.ask(method, new + path, key))[1])
    async with platform.edge.http.get(platform.edge.url + "/openapi.json") as document:
        paths = (await document.json())["paths"]
    assert {"get", "post"} <= paths[old].keys() & paths[new].keys()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/api/keys", {"role": "king"}, 400, "role"),
        ("POST", "/api/keys", {"metadata": {"a b": "x"}}, 400, "metadata"),
        ("POST", "/api/keys", {"metadata": ["a"]}, 400, "metadata"),
        ("POST", "/api/keys", {"description": "x" * 201}, 400, "description"),
        ("POST", "/api/keys", {"secret_key": "mine"}, 400, "secret_key"),
        ("POST", "/api/keys", {"workspace_id": "nowhere"}, 404, None),
        ("PATCH", "/api/keys/nobody000000", {"description": "x"}, 404, None),
        ("PATCH", "/api/keys/nobody000000", {"role": "admin"}, 400, "role"),
        ("PATCH", "/api/keys/nobody000000", {"key_id": "other0000000"}, 400, "key_id"),
        ("POST", "/api/keys/nobody000000/rotate", {"grace_period": "9999999s"}, 400, "grace_period"),
        ("DELETE", "/api/keys/nobody000000", None, 404, None),
        ("GET", "/api/keys/nobody000000", None, 404, None),
        ("GET", "/api/keys?state=dead", None, 400, "state"),
        ("GET", "/api/audit?days=0", None, 400, "days"),
        ("GET", "/api/audit/export?format=xml", None, 400, "format"),
    ],
)
async def test_what_is_wrong_is_named(
    platform: Platform, method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    """A wrong field is a 400 that names it as the caller wrote it, and a key that is not there a 404; nothing changes."""
    _, before = await platform.ask("GET", "/api/audit")
    answered, error = await platform.ask(method, path, json=body)
    assert (answered, error["error"]["param"]) == (status, param)
    assert await platform.ask("GET", "/api/audit") == (200, before)


async def test_a_scoped_key_makes_none_that_may_more(platform: Platform) -> None:
    """A key that may use /api/keys alone, by a glob too, makes keys that may use no more than that."""
    for endpoints in (["/api/keys"], ["/api/*"]):
        _, scoped = await platform.made(role="admin", scopes={"endpoints": endpoints})
        assert (await platform.ask("GET", "/api/keys", scoped))[0] == 200
        assert await platform.status(scoped) == 403
        for wider in ({}, {"scopes": {"endpoints": ["/v1/models"]}}, {"scopes": {"endpoints": ["/*"]}}):
            status, error = await platform.ask("POST", "/api/keys", scoped, json=wider)
            assert (status, error["error"]["code"]) == (403, "permission_denied"), wider
        narrow = {"scopes": {"endpoints": ["/api/keys"]}}
        assert (await platform.ask("POST", "/api/keys", scoped, json=narrow))[0] == 200


async def test_users_see_no_keys_and_no_audit(platform: Platform) -> None:
    """A user's key is refused on every route, whether there is such a key or not."""
    key_id, user = await platform.made()
    for one in (key_id, "nobody000000"):
        for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/block")):
            body = {"description": "x"} if method == "PATCH" else None
            status, error = await platform.ask(method, f"/api/keys/{one}{path}", user, json=body)
            assert (status, error["error"]["code"]) == (403, "permission_denied")
    for path in ("/api/keys", "/api/audit", "/api/audit/export"):
        assert (await platform.ask("GET", path, user))[0] == 403


async def test_the_audit_says_from_where(platform: Platform) -> None:
    """An entry has the address and the request id of the HTTP request, and exports hold what it was before and after."""
    headers = {"X-Request-Id": "my-request.1"}
    _, answer = await platform.ask("POST", "/api/keys", headers=headers, json={"description": "=1+1"})
    key_id, secret = answer["api_key"]["key_id"], api_key.parse(answer["secret_key"]).secret
    await platform.ask("PATCH", f"/api/keys/{key_id}", json={"tier": "pro"})
    _, audit = await platform.ask("GET", f"/api/audit?object_id={key_id}&days=1&action=api_key.*")
    update, creation = audit["entries"]
    assert creation["client_address"] == "127.0.0.1"
    assert (creation["request_id"], creation["action"]) == ("my-request.1", "api_key.create")
    assert creation["actor"] == f"key:{api_key.parse(platform.admin).key_id}"
    assert json.loads(update["after_json"])["tier"] == "pro"
    async with platform.edge.http.get(
        platform.edge.url + "/api/audit/export", headers={"Authorization": f"Bearer {platform.admin}"}
    ) as exported:
        assert exported.headers["Content-Disposition"].startswith('attachment; filename="naru-audit-')
        text = await exported.text()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["action"] for row in rows] == ["installation.bootstrap", "api_key.create", "api_key.update"]
    assert json.loads(rows[1]["after_json"])["description"] == "=1+1"
    assert secret not in text
    async with platform.edge.http.get(
        platform.edge.url + f"/api/audit/export?format=jsonl&object_id={key_id}",
        headers={"Authorization": f"Bearer {platform.admin}"},
    ) as exported:
        lines = [json.loads(line) for line in (await exported.text()).splitlines()]
    assert [line["action"] for line in lines] == ["api_key.create", "api_key.update"]
