"""The process: migrations, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from accounting.app import migrate, running
from accounting.config import AccountingConfig
from naru.config import ConfigError
from naru.lifecycle import Lifecycle

pytestmark = pytest.mark.faults


async def start(*arguments: str, **variables: str) -> asyncio.subprocess.Process:
    """Starts `python -m accounting`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NARU_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "accounting", *arguments, env=environment | variables, stderr=asyncio.subprocess.PIPE
    )


async def command(*arguments: str, **variables: str) -> tuple[int | None, str]:
    """Runs `python -m accounting`; returns exit code and standard error."""
    process = await start(*arguments, **variables)
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, said.decode()


def variables(config: AccountingConfig, **changes: str) -> dict[str, str]:
    """The configuration as the environment has it."""
    return {
        "NARU_ACCOUNTING_PORT": "0",
        "NARU_ACCOUNTING_DATABASE_URL": config.database_url,
        "NARU_ACCOUNTING_DATABASE_WAIT": "0",
        "NARU_ACCOUNTING_REDIS_URL": config.redis_url,
        "NARU_SERVICE_TOKENS_DIR": str(config.service_tokens_dir),
        **changes,
    }


async def test_a_missing_schema_is_a_clear_error(config: AccountingConfig) -> None:
    """Served without its schema, the process says which command to run and exits with 2."""
    code, said = await command(**variables(config))
    assert code == 2
    assert "run `python -m accounting migrate`" in said


async def test_migrate_then_serve_then_stop(config: AccountingConfig) -> None:
    """The two commands of an installation, and an orderly end."""
    assert (await command("migrate", **variables(config)))[0] == 0
    process = await start(**variables(config))
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while b'"serving"' not in await process.stderr.readline():
                assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0


async def test_passwords_are_not_shown(config: AccountingConfig) -> None:
    """A database that cannot be reached ends the process with 1; no password is in its log."""
    changes = {
        "NARU_ACCOUNTING_DATABASE_URL": "postgresql+asyncpg://naru:hunter2@127.0.0.1:1/naru",
        "NARU_ACCOUNTING_REDIS_URL": "redis://:hunter3@127.0.0.1:1/0",
    }
    for arguments in ((), ("migrate",)):
        code, said = await command(*arguments, **variables(config, **changes))
        assert code == 1
        assert "hunter" not in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"database_url": "mysql://u:hunter2@h/d"}, "NARU_ACCOUNTING_DATABASE_URL"),
        ({"redis_url": "http://u:hunter2@h"}, "NARU_ACCOUNTING_REDIS_URL"),
        ({"tiers_file": Path("/nowhere")}, "NARU_ACCOUNTING_TIERS_FILE"),
        ({"service_tokens_dir": Path("/nowhere")}, "NARU_SERVICE_TOKENS_DIR"),
    ],
)
async def test_a_wrong_setting_is_named(config: AccountingConfig, changes: dict[str, object], named: str) -> None:
    """And what it holds is not shown."""
    await migrate(config)
    with pytest.raises(ConfigError) as failure:
        async with running(replace(config, **changes), Lifecycle()):  # type: ignore[arg-type] # named by the test
            pass
    assert named in str(failure.value)
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(("policy", "expected"), [("closed", 503), ("open", 200)])
async def test_it_starts_before_redis_does(config: AccountingConfig, policy: str, expected: int) -> None:
    """It is up, ready only if it may do without Redis, and leaves in order."""
    await migrate(config)
    lifecycle = Lifecycle()
    alone = replace(config, redis_url="redis://127.0.0.1:1/0", redis_lost_policy=policy)
    async with (
        running(alone, lifecycle) as up,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{up.ops_port}/readyz") as response,
    ):
        assert response.status == expected
    assert not lifecycle.failed
