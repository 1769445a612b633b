"""The file in which a replica remembers the adapters that it was told to load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

FILE_NAME = "adapters.json"


class _State(msgspec.Struct, frozen=True):
    adapters: dict[str, str]


class AdapterState:
    """Paths by the adapter's own name, on disk.

    Args:
        path: The file; each replica needs its own. Made when there is something to remember.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, str]:
        """What is remembered. Raises OSError, or ValueError when the file was damaged."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            return msgspec.json.decode(content, type=_State).adapters
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self._path} is damaged: {error}; remove it to start without its adapters") from error

    def write(self, adapters: Mapping[str, str]) -> None:
        """Remembers these and no others: after a crash the file holds all of them, or what it held before.

        Raises OSError.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_State(dict(adapters)))))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
