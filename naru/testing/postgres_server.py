"""A real PostgreSQL for tests, with the executables of the `pgserver` distribution: no root, nothing installed.

The distribution's own starter is not used: as root it creates a user on the machine and opens the folders above its data.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


class PostgresServer:
    """A running server in which each test takes an empty database of its own."""

    def __init__(self, executables: Path, socket_folder: Path) -> None:
        self._executables = executables
        self._socket_folder = socket_folder

    def new_database(self) -> str:
        """Creates an empty database and returns its SQLAlchemy URL for asyncpg."""
        name = f"test_{uuid4().hex}"
        command = [str(self._executables / "createdb"), "-h", str(self._socket_folder), "-U", "postgres", name]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 -- our own executable and arguments
        return f"postgresql+asyncpg://postgres@/{name}?host={self._socket_folder}"


@contextmanager
def postgres_cluster() -> Iterator[PostgresServer]:
    """Runs a server with a fresh data directory; takes about a second."""
    # A short path: a Unix socket's may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="npg-"))
    executables, data, user = _executables(), folder / "data", None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root; and nobody else may be able to read where we are installed.
        user = "nobody"
        executables = _copy(executables, folder)
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)

    def run(*command: object) -> None:
        subprocess.run([str(part) for part in command], check=True, user=user, cwd=folder, capture_output=True)  # noqa: S603 -- our own executables and arguments

    try:
        run(executables / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        # A test's data need not survive the machine.
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=200"
        run(executables / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield PostgresServer(executables, folder)
        finally:
            run(executables / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs a server and yields the URL of an empty database in it."""
    with postgres_cluster() as cluster:
        yield cluster.new_database()


def _copy(executables: Path, folder: Path) -> Path:
    """Copies PostgreSQL and the libraries that it finds by their place beside it; returns its executables."""
    package = executables.parents[1]
    shutil.copytree(package / "pginstall", folder / "site/pgserver/pginstall", symlinks=True)
    shutil.copytree(package.with_name("pgserver.libs"), folder / "site/pgserver.libs", symlinks=True)
    return folder / "site/pgserver/pginstall/bin"


def _executables() -> Path:
    """The folder of PostgreSQL's executables. Raises FileNotFoundError."""
    found = importlib.util.find_spec("pgserver")
    if found is None or found.origin is None:
        raise FileNotFoundError("there is no PostgreSQL: install the extra `dev`")
    return Path(found.origin).parent / "pginstall/bin"
