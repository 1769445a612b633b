"""`naru models` as processes, against an edge's replicas with simulated engines."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support.adapters import write_adapter
from tests.support.edge_and_replicas import Installation, edge_and_replicas


async def naru(installation: Installation, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, as the admin."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OPENAI_"))}
    environ = {
        "NARU_INFERENCE_ADDRESSES": ",".join(installation.addresses),
        "OPENAI_API_KEY": installation.admin,
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "naru",
        "models",
        *arguments,
        cwd=folder,
        env=clean | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.behaviour
async def test_one_replica(tmp_path: Path) -> None:
    """Load, list, unload; pause and what it says; a refusal is one line."""
    path = write_adapter(tmp_path / "adapters/sql")
    async with edge_and_replicas(tmp_path, {}) as one:
        assert await naru(one, tmp_path, "load", "sql", str(path)) == (0, "small:sql\n", "")
        code, out, _ = await naru(one, tmp_path, "list")
        (line,) = [line for line in out.splitlines() if "small:sql" in line]
        assert code == 0
        assert all(part in line for part in (one.addresses[0], "serving", "4"))
        code, out, _ = await naru(one, tmp_path, "pause")
        assert (code, out) == (0, "Replica replica-0 is paused; requests that are not over: 0.\n")
        assert "paused" in (await naru(one, tmp_path, "list"))[1]
        assert "is serving" in (await naru(one, tmp_path, "resume"))[1]
        assert await naru(one, tmp_path, "unload", "sql", "--wait", "1") == (0, "Unloaded adapter sql.\n", "")
        code, _, err = await naru(one, tmp_path, "load", "sql", "../sql")
        assert (code, err) == (1, "inference: `path` must not contain `..`.\n")


async def test_several_replicas(tmp_path: Path) -> None:
    """All are listed, one that is away too; whatever changes something needs to be told where."""
    async with edge_and_replicas(tmp_path, {}, {}) as two:
        away = Installation(two.url, [*two.addresses, "127.0.0.1:1"], two.accounting, two.http, two.admin, two.user)
        code, out, _ = await naru(away, tmp_path, "list")
        assert code == 0
        assert out.count("serving") == 2
        assert "unreachable" in out
        code, _, err = await naru(two, tmp_path, "drain")
        assert (code, "--replica" in err) == (2, True)
        code, out, _ = await naru(two, tmp_path, "drain", "--replica", two.addresses[1])
        assert (code, "replica-1 is draining" in out) == (0, True)
