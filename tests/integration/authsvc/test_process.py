"""The process: what it says when it cannot start, and how it lives with a database that goes away."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import sqlalchemy as sa

from authsvc import migrations
from authsvc.app import migrate, running
from authsvc.config import AuthsvcConfig
from naru.config import ConfigError
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.lifecycle import Lifecycle
from naru.testing.postgres_server import PostgresServer
from tests.integration.authsvc.harness import eventually, refused, serving

pytestmark = pytest.mark.faults


async def command(*arguments: str, **variables: str) -> tuple[int, str]:
    """Runs `python -m authsvc`; returns exit code and standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NARU_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "authsvc", *arguments, env=environment | variables, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, said.decode()


def variables(config: AuthsvcConfig, **changes: str) -> dict[str, str]:
    return {
        "NARU_AUTHSVC_PORT": "0",
        "NARU_AUTHSVC_DATABASE_URL": config.database_url,
        "NARU_AUTHSVC_DATABASE_WAIT": "0",
        "NARU_AUTHSVC_PEPPER_FILES": ",".join(config.pepper_files),
        "NARU_SERVICE_TOKENS_DIR": str(config.service_tokens_dir),
        **changes,
    }


async def test_migrations_at_once_do_not_break(database_url: str, config: AuthsvcConfig) -> None:
    """Of two processes that migrate at the same time both succeed, and the schema is there once."""
    settings = variables(config, NARU_AUTHSVC_DATABASE_URL=database_url)
    results = await asyncio.gather(command("migrate", **settings), command("migrate", **settings))
    assert [code for code, _ in results] == [0, 0], results
    database = Database(database_url)
    try:
        assert await migrations.MIGRATIONS.is_current(database)
        async with database.reading() as connection:
            assert (await connection.execute(sa.text("SELECT count(*) FROM installation"))).scalar_one() == 1
    finally:
        await database.close()


async def test_a_missing_schema_is_a_clear_error(config: AuthsvcConfig) -> None:
    """Served without its schema, the process says which command to run and exits with 2."""
    code, said = await command(**variables(config))
    assert code == 2
    assert "run `python -m authsvc migrate`" in said


async def test_a_wrong_password_is_not_shown(config: AuthsvcConfig) -> None:
    """A database that cannot be reached ends the process with 1, and its URL's password is nowhere in the log."""
    url = "postgresql+asyncpg://naru:hunter2@127.0.0.1:1/naru"
    for arguments in ((), ("migrate",)):
        code, said = await command(*arguments, **variables(config, NARU_AUTHSVC_DATABASE_URL=url))
        assert code == 1, said
        assert "the database does not answer" in said
        assert "hunter2" not in said


async def test_configuration_errors_name_their_variable(config: AuthsvcConfig, tmp_path: Path) -> None:
    """A pepper that is missing, short or unnamed, a short token, and an unreadable or malformed URL are named."""
    (tmp_path / "short").write_text("x" * 31)
    (tmp_path / "service-token-edge").write_text("short")
    for changed, variable in (
        (replace(config, pepper_files=()), "PEPPER_FILES"),
        (replace(config, pepper_files=(str(tmp_path),)), "PEPPER_FILES"),
        (replace(config, pepper_files=(f"1:{tmp_path}/nowhere",)), "PEPPER_FILES"),
        (replace(config, pepper_files=(f"1:{tmp_path}/short",)), "PEPPER_FILES"),
        (replace(config, database_url="mysql://naru:hunter2@db/naru"), "DATABASE_URL"),
        (replace(config, service_tokens_dir=tmp_path), "SERVICE_TOKENS_DIR"),
    ):
        with pytest.raises(ConfigError, match=variable) as failure:
            async with running(changed, Lifecycle()):
                pass
        assert "hunter2" not in str(failure.value)


async def test_a_lost_pepper_is_found_at_start(config: AuthsvcConfig, tmp_path: Path) -> None:
    """Keys whose pepper is not configured stop the start, so that they do not all fail one by one."""
    await migrate(config)
    async with running(config, Lifecycle()) as up, serving(config, up) as service:
        await service.bootstrap()
    (tmp_path / "pepper-2").write_text("q" * 32)
    with pytest.raises(ConfigError, match="need the pepper of version 1"):
        async with running(replace(config, pepper_files=(f"2:{tmp_path}/pepper-2",)), Lifecycle()):
            pass


async def test_keys_outlive_a_restart_and_a_new_pepper(config: AuthsvcConfig, tmp_path: Path) -> None:
    """After a restart with a new pepper in front of the old one, earlier keys still work."""
    await migrate(config)
    async with running(config, Lifecycle()) as up, serving(config, up) as service:
        key = (await service.bootstrap()).api_key
        before = await service.authenticate(key)
    (tmp_path / "pepper-2").write_text("q" * 32)
    rotated = replace(
        config,
        pepper_files=(f"2:{tmp_path}/pepper-2", *config.pepper_files),
    )
    async with running(rotated, Lifecycle()) as up, serving(rotated, up) as service:
        assert await service.authenticate(key) == before
        made = await service.as_owner(key).create()
        assert (await service.authenticate(made.secret_key)).principal.key_id == made.api_key.key_id


class Cable:
    """Carries TCP connections to a PostgreSQL's Unix socket, and can be cut."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_unix_connection(self._socket)
        self._writers |= {writer, far_writer}
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        self._writers -= {writer, far_writer}

    def cut(self) -> None:
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._cut = False


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def cable_to(url: str) -> AsyncIterator[tuple[Cable, str]]:
    """A cable to the database of `url`, and the URL of its near end."""
    parsed = sa.make_url(url)
    cable = Cable(f"{parsed.query['host']}/.s.PGSQL.5432")
    server = await asyncio.start_server(cable.carry, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        near = parsed.set(host="127.0.0.1", port=port, query={})
        yield cable, near.render_as_string(hide_password=False)


async def test_a_database_that_goes_away_comes_back(config: AuthsvcConfig, postgres: PostgresServer) -> None:
    """Without its database authsvc refuses with SERVICE_UNAVAILABLE, is not ready, ends watches; and then recovers."""
    async with cable_to(postgres.new_database()) as (cable, url):
        config = replace(config, database_url=url)
        await migrate(config)
        async with (
            running(config, Lifecycle()) as up,
            serving(config, up) as service,
            service.watch() as messages,
            aiohttp.ClientSession(f"http://127.0.0.1:{up.ops_port}") as ops,
        ):

            async def ready() -> bool:
                async with ops.get("/readyz") as response:
                    return response.status == 200

            async def not_ready() -> bool:
                return not await ready()

            async def recovered() -> bool:
                with suppress(NaruError):
                    return bool((await service.authenticate(key)).epoch)
                return False

            key = (await service.bootstrap()).api_key
            await anext(messages)
            await eventually(ready)
            cable.cut()
            error = await refused(service.authenticate(key))
            assert (error.reason, error.retry_after is not None) == (Reason.SERVICE_UNAVAILABLE, True)
            assert (await refused(service.as_owner(key).list())).reason is Reason.SERVICE_UNAVAILABLE
            await eventually(not_ready)
            assert (await refused(_drain(messages))).reason is Reason.SERVICE_UNAVAILABLE
            cable.mend()
            await eventually(ready)
            await eventually(recovered)


async def _drain(messages: AsyncIterator[object]) -> None:
    async with asyncio.timeout(10):
        async for _ in messages:
            pass
