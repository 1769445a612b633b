"""Every route of the edge × every kind of caller, against one table, with the four services real; the engine is simulated."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from edge.openapi import document
from edge.routes.table import ALIASES, ALL_ROWS, add_routes
from naru import api_key
from tests.support.identity_harness import Installation, installation
from tests.support.route_rights import KNOWN, OPEN, RIGHTS, Who, expected

BODIES: dict[tuple[str, str], Any] = {("POST", "/api/auth/refresh"): {"refresh_token": 5}}
"""Where an empty object would be refused for what it is a credential of."""
CODES = {401: "invalid_api_key", 403: "permission_denied", 404: "not_found"}


class Anything:
    """Stands for whatever answers."""

    def __getattr__(self, name: str) -> Any:
        async def answer(request: web.Request) -> web.Response:
            return web.Response()

        return answer

    def handler(self, row: object) -> Any:
        """What answers a row."""
        return self.answer


def routes() -> set[tuple[str, str]]:
    """Every method and path that the edge's router knows."""
    app, anything = web.Application(), Anything()
    parts: dict[str, Any] = dict.fromkeys(("models", "tokenizing", "platform", "exports", "jwks", "health"), anything)
    add_routes(app, generating=lambda shape: anything, metrics_public=True, **parts)  # type: ignore[arg-type, return-value] # nothing is asked
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }


def test_every_route_has_a_row() -> None:
    """The table of rights and the OpenAPI document name exactly the routes there are; other names are those of routes."""
    documented = {
        (method.upper(), path) for path, methods in document(ALIASES, ALL_ROWS)["paths"].items() for method in methods
    }
    assert documented == routes()
    assert {(method, ALIASES.get(path, path)) for method, path in routes()} == set(RIGHTS)


@dataclass
class World:
    """A workspace `home` with something of every kind in it, another one, and callers of every kind."""

    naru: Installation
    callers: dict[Who, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    replica: str = ""
    _numbers: Any = field(default_factory=itertools.count)

    async def make(self, path: str, body: Any, *, token: str = "") -> Any:
        """Something new."""
        answer = await self.naru.ask("POST", path, body, token=token or self.naru.key)
        assert answer.status == 200, (path, answer)
        return answer.body

    async def fill(self) -> None:
        """Makes all of it."""
        home = self.naru.workspace_id
        elsewhere = (await self.make("/api/workspaces", {"name": "elsewhere"}))["workspace_id"]
        for workspace_id, user, key, manager in (
            (home, Who.USER, Who.USER_KEY, Who.MANAGER),
            (elsewhere, Who.FOREIGNER, Who.FOREIGN_KEY, Who.FOREIGN_MANAGER),
        ):
            self.callers[user] = await self.person(workspace_id)
            self.callers[key] = (await self.make("/api/keys", {}, token=self.callers[user]))["secret_key"]
            self.callers[manager] = await self.person(workspace_id, seat="workspace_admin")
        self.callers[Who.FOREIGN_ADMIN] = await self.person(elsewhere, role="admin")
        self.callers[Who.ADMIN] = self.naru.key
        blocked = await self.make("/api/keys", {"role": "admin"})
        await self.make(f"/api/keys/{blocked['api_key']['key_id']}/block", None)
        wrong = api_key.generate(os.urandom)
        self.callers |= {
            Who.NOBODY: "",
            Who.BAD_KEY: "sk-naru-none",
            Who.WRONG_KEY: wrong,
            Who.BLOCKED_KEY: blocked["secret_key"],
        }
        replicas = (await self.naru.ask("GET", "/api/replicas", token=self.naru.key)).body["replicas"]
        assert len(replicas) == 1
        self.names = {"workspace_id": home, "model": "small", "replica": self.replica}
        for name in ("key_id", "user_id", "invite_id", "tier", "budget_id", "price_id"):
            self.names[name] = await self.new(name)

    async def person(self, workspace_id: str, *, seat: str = "user", role: str = "user") -> str:
        """A token of somebody new."""
        email = f"person-{next(self._numbers)}@example.com"
        user = await self.naru.new_user(email, role=role, default_workspace_id=workspace_id)
        if seat != "user":
            path = f"/api/workspaces/{workspace_id}/members/{user['user_id']}"
            assert (await self.naru.ask("PUT", path, {"role": seat}, token=self.naru.key)).status == 200
        return str((await self.naru.login(email))["access_token"])

    async def new(self, name: str) -> str:
        """The id of something new of `home`; a key is the user's."""
        number = next(self._numbers)
        match name:
            case "key_id":
                return str((await self.make("/api/keys", {}, token=self.callers[Who.USER]))["api_key"]["key_id"])
            case "user_id":
                made = await self.make("/api/users", {"email": f"somebody-{number}@example.com"})
                return str(made["user"]["user_id"])
            case "invite_id":
                return str((await self.make("/api/invites", {}))["invite"]["invite_id"])
            case "tier":
                return str((await self.make("/api/tiers", {"name": f"tier-{number}"}))["name"])
            case "budget_id":
                rule = {"kind": "cost", "window": "month", "limit": 1_000_000}
                body = {"scope": "user", "scope_id": f"user-{number}", "rule": rule}
                return str((await self.make("/api/budgets", body))["budget_id"])
            case _:
                prices = {"input_million": 1, "output_million": 1}
                body = {"model": f"model-{number}", "effective_time": "2100-01-01T00:00:00Z", "unit_prices": prices}
                return str((await self.make("/api/prices", body))["price_id"])

    async def path(self, method: str, template: str, *, new: bool) -> str:
        """A path about something of `home`; with `new`, what a DELETE is about was made for it."""
        names = dict(self.names)
        names["name"] = names["tier"]
        if new and method == "DELETE" and "{replica}" not in template:
            last = re.findall(r"{(\w+)}", template)[-1]
            if last != "workspace_id":
                names[last] = await self.new("tier" if last == "name" else last)
        return template.format_map(names)

    async def ask(self, who: Who, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and, of an error, what it says."""
        token = self.callers[who]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = {} if method in ("GET", "DELETE") else {"json": body}
        async with self.naru.http.request(method, self.naru.url + path, headers=headers, **data) as answer:
            text = await answer.read()
        return answer.status, msgspec.json.decode(text) if answer.status >= 400 else None


def shape_is_right(who: Who, path: str, status: int, body: Any) -> bool:
    """Whether an error looks as the API of the path has it: Anthropic's on its own routes, OpenAI's everywhere else."""
    error = body["error"]
    if path.startswith("/v1/messages"):
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        return bool(body["type"] == "error" and error["type"] == kinds[status] and error["message"])
    # OpenAI gives a request without a key no code.
    code = None if who is Who.NOBODY else CODES[status]
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"]) and error["code"] == code


@pytest.mark.behaviour
@pytest.mark.timeout(300)
async def test_every_route_and_every_caller(tmp_path: Path) -> None:
    """Whoever may gets an answer, or a 400 that says what is missing; everybody else the 401, 403 or 404 of the table."""
    async with installation(tmp_path, real=True, registration="open") as naru:
        world = World(naru, replica=naru.replica)
        await world.fill()
        wrong = []
        order = {row: place for place, row in enumerate(RIGHTS)}
        for method, path in sorted(routes(), key=lambda one: (order[one[0], ALIASES.get(one[1], one[1])], one)):
            row = (method, ALIASES.get(path, path))
            for who in Who:
                asked = await world.path(method, path, new=expected(RIGHTS[row], who) == 200)
                status, body = await world.ask(who, method, asked, BODIES.get(row, {}))
                seen = 200 if status in (200, 204, 400) else status
                if seen != expected(RIGHTS[row], who):
                    wrong.append((who.value, method, path, status, expected(RIGHTS[row], who), body))
                elif seen != 200 and not shape_is_right(who, path, status, body):
                    wrong.append((who.value, method, path, status, body))
        assert not wrong, "\n".join(map(str, wrong))
        assert len(RIGHTS) * len(KNOWN) > 500
        assert RIGHTS["GET", "/health"] == OPEN
