"""What the simulated engine says itself of what it generated, to be compared with what was billed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class AccountLine(msgspec.Struct, frozen=True):
    """One choice that began, or ended after so many tokens.

    `user` is what the request's body said, `process` the process id of the engine.
    """

    user: str
    choice: int
    generated: int
    ended: bool
    process: int


class SimulatedAccount:
    """A file that gets a line for each choice that begins or ends; it survives the death of the process.

    Args:
        path: Lines are added to what it has; None: to nothing.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._process = os.getpid()

    def began(self, user: str, choice: int) -> None:
        """Notes that a choice begins."""
        self._add(AccountLine(user, choice, 0, ended=False, process=self._process))

    def ended(self, user: str, choice: int, generated: int) -> None:
        """Notes that a choice has ended, by itself or because it was cancelled."""
        self._add(AccountLine(user, choice, generated, ended=True, process=self._process))

    def close(self) -> None:
        """Nothing more is noted."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _add(self, line: AccountLine) -> None:
        if self._file is not None:
            os.write(self._file, msgspec.json.encode(line) + b"\n")


def read_account(path: Path) -> list[AccountLine]:
    """The lines of a file. Raises OSError, and msgspec.DecodeError for what is none."""
    return msgspec.json.Decoder(AccountLine).decode_lines(path.read_bytes())
