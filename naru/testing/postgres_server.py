"""A real PostgreSQL for tests, from the `pgserver` distribution: no root, nothing installed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pgserver import postgres_server as pg


class PostgresServer:
    """A running server in which each test takes an empty database of its own."""

    def __init__(self, server: pg.PostgresServer, socket_folder: Path) -> None:
        self._server = server
        self._socket_folder = socket_folder

    def new_database(self) -> str:
        """Creates an empty database and returns its SQLAlchemy URL for asyncpg."""
        name = f"test_{uuid4().hex}"
        self._server.psql(f'CREATE DATABASE "{name}";')
        return f"postgresql+asyncpg://postgres@/{name}?host={self._socket_folder}"


@contextmanager
def postgres_cluster() -> Iterator[PostgresServer]:
    """Runs a server with a fresh data directory; takes 1 to 3 seconds."""
    # A short path: a Unix socket's may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="npg-"))
    folder.chmod(0o755)
    server = pg.get_server(folder / "data", cleanup_mode="stop")
    try:
        information = server.get_postmaster_info()
        yield PostgresServer(server, Path(information.socket_dir))
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs a server and yields the URL of an empty database in it."""
    with postgres_cluster() as cluster:
        yield cluster.new_database()
