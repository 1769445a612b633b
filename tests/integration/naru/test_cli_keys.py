"""`naru keys` and `naru audit` as processes, against a real authsvc."""

from __future__ import annotations

import asyncio
import csv
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from authsvc.app import migrate, running
from authsvc.config import AuthsvcConfig
from naru import api_key
from naru.identity import ServiceName
from naru.lifecycle import Lifecycle

pytestmark = pytest.mark.behaviour


@dataclass
class Terminal:
    """Runs commands as the owner of `key`."""

    folder: Path
    address: str
    key: str = ""

    async def naru(self, *arguments: str) -> str:
        """What a command that goes well writes to standard output."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OPENAI_"))}
        environ = {
            "NARU_AUTHSVC_ADDRESS": self.address,
            "NARU_SERVICE_TOKENS_DIR": str(self.folder),
            "OPENAI_API_KEY": self.key,
            "COLUMNS": "250",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "naru", *arguments),
            cwd=self.folder,
            env=clean | environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().strip()


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    for name in ServiceName:
        (tmp_path / f"service-token-{name}").write_text(f"{name}-" + "t" * 32)
    (tmp_path / "pepper").write_text("p" * 32)
    config = AuthsvcConfig(
        port=0,
        database_url=f"sqlite+aiosqlite:///{tmp_path}/auth.db",
        pepper_files=(f"1:{tmp_path}/pepper",),
        service_tokens_dir=tmp_path,
        shutdown_grace=1.0,
    )
    await migrate(config)
    async with running(config, Lifecycle()) as up:
        terminal = Terminal(tmp_path, f"127.0.0.1:{up.port}")
        terminal.key = await terminal.naru("bootstrap")
        yield terminal


async def test_the_life_of_a_key(terminal: Terminal) -> None:
    """Made, found, changed, rotated, blocked, unblocked and revoked; the audit tells all of it, in a table and a file."""
    options = ("--description", "for CI", "--service-account", "ci", "--models", "a*,b", "--metadata", "team=search")
    made = api_key.parse(await terminal.naru("keys", "create", *options, "--endpoints", "/v1/*"))
    key_id = made.key_id
    await terminal.naru("keys", "update", key_id, "--tier", "pro", "--models", "", "--expires-in", "90d")
    shown = await terminal.naru("keys", "show", key_id)
    assert 'models: "a*"' not in shown
    for part in ('tier: "pro"', '"/v1/*"', 'description: "for CI"', "expire_time", 'value: "search"'):
        assert part in shown
    rotated = api_key.parse(await terminal.naru("keys", "rotate", key_id, "--grace", "2h"))
    assert (rotated.key_id, rotated.secret == made.secret) == (key_id, False)
    await terminal.naru("keys", "block", key_id)
    assert key_id in await terminal.naru("keys", "list", "--state", "blocked", "--containing", "ci")
    await terminal.naru("keys", "unblock", key_id)
    assert key_id not in await terminal.naru("keys", "list", "--state", "blocked")
    await terminal.naru("keys", "revoke", key_id)
    table = await terminal.naru("audit", "--object", key_id)
    assert [line.split("│")[3].strip() for line in table.splitlines() if key_id in line] == [
        f"api_key.{verb}" for verb in ("revoke", "unblock", "block", "rotate", "update", "create")
    ]
    await terminal.naru("audit", "export", "--output", "audit.csv", "--action", "api_key.*")
    with (terminal.folder / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["action"] for row in rows if row["object_id"] == key_id][::5] == ["api_key.create", "api_key.revoke"]
