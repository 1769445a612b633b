"""The folder `.naru`: everything that `naru up` keeps between runs. Nothing of it is committed; secrets are mode 0600."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from naru.config import ADMIN_EMAIL, ADMIN_PASSWORD
from naru.identity import ServiceName

# Not for processes that a shell starts which has read the file: another `naru up` may have other ports and replicas, and the
# administrator's password is for people.
_OWN = frozenset(
    {"NARU_AUTHSVC_ADDRESS", "NARU_ACCOUNTING_ADDRESS", "NARU_INFERENCE_ADDRESSES", ADMIN_EMAIL, ADMIN_PASSWORD}
)

DOWN_SECONDS = 200.0
"""How long `naru down` waits for a supervisor that does not say how long it takes, as one of an earlier version."""


class RunningAlreadyError(Exception):
    """Another `naru up` runs in the folder; the message is its process id."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where things are below `root`."""

    root: Path

    @property
    def secrets(self) -> Path:
        """Service tokens, pepper, Redis password, the key of kept outcomes."""
        return self.root / "secrets"

    @property
    def data(self) -> Path:
        """Databases, Redis's append-only file, the inference journal."""
        return self.root / "data"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "logs"

    @property
    def dev_env(self) -> Path:
        """What a client needs, to be sourced by a shell."""
        return self.root / "dev.env"

    @property
    def pid_file(self) -> Path:
        """Holds the supervisor's process id and its time to stop while it runs, and is locked as long.

        Empty after an orderly end.
        """
        return self.root / "up.pid"

    @contextlib.contextmanager
    def claimed(self, stop_seconds: float = DOWN_SECONDS) -> Iterator[bool]:
        """Makes this process the folder's supervisor inside the block; says whether the last one was killed.

        The lock tells, not the process id: the kernel drops it with the process, and gives the id to another one some day.
        Raises RunningAlreadyError.

        Args:
            stop_seconds: How long it takes to stop at most, for whoever waits for that.
        """
        with self.pid_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunningAlreadyError(self.pid_file.read_text().partition(" ")[0].strip()) from None
            killed = self.pid_file.read_text() != ""
            file.truncate(0)
            file.write(f"{os.getpid()} {stop_seconds:.0f}\n")
            file.flush()
            try:
                yield killed
            finally:
                file.truncate(0)

    def supervisor(self) -> int | None:
        """The process id of the supervisor that runs here; None when none does."""
        try:
            with self.pid_file.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read().partition(" ")[0])
        except (OSError, ValueError):
            return None
        return None

    def stop_seconds(self) -> float:
        """How long the supervisor that runs here takes to stop at most."""
        try:
            return float(self.pid_file.read_text().partition(" ")[2])
        except (OSError, ValueError):
            return DOWN_SECONDS

    def prepare(self) -> None:
        """Makes the folders and whatever secret is missing."""
        for folder in (self.root, self.secrets, self.data, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ServiceName:
            self.secret(f"service-token-{name}")
        self.secret("pepper")

    def secret(self, name: str) -> str:
        """The secret of that name, made at the first call: 43 characters, 256 random bits."""
        path = self.secrets / name
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32) + "\n")
        return path.read_text().strip()

    def read_dev_env(self) -> dict[str, str]:
        """The variables in `dev.env`; empty when it is not there."""
        if not self.dev_env.exists():
            return {}
        lines = (line.removeprefix("export ") for line in self.dev_env.read_text().splitlines())
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def write_dev_env(self, variables: Mapping[str, str]) -> None:
        """Writes `dev.env`, which only its owner can read."""
        lines = (f"{'' if name in _OWN else 'export '}{name}={value}\n" for name, value in variables.items())
        write_private(self.dev_env, "".join(lines))


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, at once or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)
