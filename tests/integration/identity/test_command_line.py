"""The commands for people, as processes, against a real edge and a real authsvc."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.identity_harness import EMAIL, PASSWORD, Installation, installation

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Terminal:
    """Runs commands in a folder of its own."""

    naru: Installation
    folder: Path

    async def run(self, *arguments: str, typed: str = "", code: int = 0, **variables: str) -> str:
        """What a command prints on standard output."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OPENAI_"))}
        environ = {
            "NARU_AUTHSVC_ADDRESS": self.naru.authsvc_address,
            "OPENAI_BASE_URL": f"{self.naru.url}/v1",
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "naru",
            *arguments,
            cwd=self.folder,
            env=clean | environ | variables,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(typed.encode())
        assert process.returncode == code, err.decode()
        assert "Traceback" not in err.decode()
        return out.decode() + ("" if code == 0 else err.decode())


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    async with installation(tmp_path) as naru:
        yield Terminal(naru, tmp_path)


async def test_a_person_works_with_the_commands(terminal: Terminal) -> None:
    """An administrator logs in, makes a user and a workspace, and logs out; the user logs in and is nobody's administrator."""
    naru = terminal.naru
    await terminal.run("login", naru.admin_email, typed=f"{naru.admin_password}\n")
    saved = terminal.folder / ".naru/login.json"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert "admin@localhost, admin in workspace" in await terminal.run("whoami")
    password = (await terminal.run("users", "create", EMAIL, "--name", "Ann")).strip()
    assert len(password) == 24
    assert EMAIL in await terminal.run("users", "list")
    workspace = (await terminal.run("workspaces", "create", "team", "--tier", "pro")).strip()
    assert workspace in await terminal.run("workspaces", "list")
    user_id = (await naru.ask("GET", f"/api/users?email={EMAIL}", token=naru.key)).body["users"][0]["user_id"]
    assert "belongs to team" in await terminal.run("workspaces", "add", workspace, user_id, "--role", "workspace_admin")
    assert EMAIL in await terminal.run("workspaces", "members", workspace)
    assert "tier free" in await terminal.run("workspaces", "update", workspace, "--tier", "free")
    assert (await terminal.run("users", "invite")).startswith("nri-")
    assert "is blocked" in await terminal.run("users", "block", EMAIL)
    await terminal.run("users", "unblock", EMAIL)
    # Long ago: the command refreshes by itself.
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"expire_time": 0.0}))
    first = json.loads(saved.read_text())["refresh_token"]
    await terminal.run("whoami")
    assert json.loads(saved.read_text())["refresh_token"] != first
    await terminal.run("logout")
    assert not saved.exists()
    await terminal.run("login", EMAIL, typed=f"{password}\n")
    assert "user in workspace" in await terminal.run("whoami")
    assert "not allowed" in await terminal.run("users", "list", code=1)
    await terminal.run("password", typed=f"{password}\n{PASSWORD}\n")
    assert "Set OPENAI_API_KEY" in await terminal.run("whoami", code=2)
    assert "do not fit" in await terminal.run("login", EMAIL, typed=f"{password}\n", code=1)
    reset = (await terminal.run("users", "reset-password", EMAIL, OPENAI_API_KEY=naru.key)).strip()
    assert "1 sessions" not in await terminal.run("users", "logout", EMAIL, OPENAI_API_KEY=naru.key)
    await terminal.run("login", EMAIL, typed=f"{reset}\n")
    await terminal.run("workspaces", "remove", workspace, user_id, OPENAI_API_KEY=naru.key)


async def test_a_session_that_is_over_is_not_continued_by_a_key(terminal: Terminal) -> None:
    """The command ends and says so, although dev.env has an administrator's key; the session is forgotten."""
    naru, folder = terminal.naru, terminal.folder / ".naru"
    await naru.new_user()
    await terminal.run("login", EMAIL, typed=f"{PASSWORD}\n")
    (folder / "dev.env").write_text(f"export OPENAI_API_KEY={naru.key}\n")
    saved = json.loads((folder / "login.json").read_text())
    await naru.ask("POST", "/api/auth/logout", {"refresh_token": saved["refresh_token"]})
    (folder / "login.json").write_text(json.dumps(saved | {"expire_time": 0.0}))
    assert "is over" in await terminal.run("whoami", code=2)
    assert not (folder / "login.json").exists()
    assert "operator, admin" in await terminal.run("whoami")


@pytest.mark.parametrize("status", [0, 429, 500, 503])
async def test_a_session_outlives_an_edge_that_is_away(terminal: Terminal, status: int) -> None:
    """Nobody can tell then whether it is over: its token is used while it is good, and then the command says what is wrong."""
    naru, folder = terminal.naru, terminal.folder / ".naru"
    await naru.new_user()
    await terminal.run("login", EMAIL, typed=f"{PASSWORD}\n")
    (folder / "dev.env").write_text(f"export OPENAI_API_KEY={naru.key}\n")
    saved = json.loads((folder / "login.json").read_text())

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "Not now."}}, status=status)

    app = web.Application()
    app.router.add_post("/api/auth/refresh", refuse)
    async with TestServer(app) as away:
        url = str(away.make_url("")) if status else "http://127.0.0.1:1"
        for left, code, said in ((25.0, 0, EMAIL), (0.0, 1, "cannot be renewed")):
            kept = json.dumps(saved | {"url": url.rstrip("/"), "expire_time": time.time() + left})
            (folder / "login.json").write_text(kept)
            assert said in await terminal.run("whoami", code=code)
            assert (folder / "login.json").read_text() == kept


async def test_deleting_and_revoking_with_the_commands(terminal: Terminal) -> None:
    """A user makes a key for themselves; an administrator lists and revokes invites, and deletes the user and a workspace."""
    naru = terminal.naru
    await naru.new_user()
    await terminal.run("login", EMAIL, typed=f"{PASSWORD}\n")
    key = (await terminal.run("keys", "create", "--description", "laptop [/x]")).strip()
    assert "laptop [/x]" in await terminal.run("keys", "list")
    admin = {"OPENAI_API_KEY": naru.key}
    invite_id = (await terminal.run("users", "invite", **admin))[4:40]
    assert invite_id in await terminal.run("users", "invites", **admin)
    assert "is revoked" in await terminal.run("users", "revoke-invite", invite_id, **admin)
    assert invite_id not in await terminal.run("users", "invites", **admin)
    assert invite_id in await terminal.run("users", "invites", "--all", **admin)
    assert f"{EMAIL} is deleted" in await terminal.run("users", "delete", EMAIL, **admin)
    assert "Incorrect API key" in await terminal.run("whoami", code=1, OPENAI_API_KEY=key)
    workspace = (await terminal.run("workspaces", "create", "team", **admin)).strip()
    assert "is deleted" in await terminal.run("workspaces", "delete", workspace, **admin)
    assert "first workspace" in await terminal.run("workspaces", "delete", naru.workspace_id, code=1, **admin)


async def test_bootstrap_writes_down_what_it_shows(terminal: Terminal) -> None:
    """`naru bootstrap --additional` writes a key beside what stands in dev.env; an administrator is made once."""
    folder = terminal.folder / ".naru"
    folder.mkdir()
    (folder / "dev.env").write_text("export OPENAI_BASE_URL=http://127.0.0.1:8000/v1\n")
    tokens = str(terminal.folder / "secrets")
    key = (await terminal.run("bootstrap", "--additional", NARU_SERVICE_TOKENS_DIR=tokens)).strip()
    assert (folder / "dev.env").read_text().splitlines() == [
        "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1",
        f"export OPENAI_API_KEY={key}",
    ]
    assert "ALREADY" not in await terminal.run("bootstrap", NARU_SERVICE_TOKENS_DIR=tokens, code=1)
