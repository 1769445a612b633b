"""Where adapters may be loaded from, and what their folders must hold."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from naru.errors import NaruError, invalid_argument

FIELD = "adapter.path"
"""The field of a request that names a folder."""
_CONFIGURATION, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LONGEST_PATH = 1024
_MOST_CONFIGURATION_BYTES = 1 << 20
_MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A folder with an adapter in it: where it really is, and the adapter's rank."""

    path: Path
    rank: int


class AdapterFolders:
    """Finds adapters below the configured folders, and nowhere else.

    Args:
        roots: These folders; those that are not there hold nothing.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)

    def find(self, text: str, most_rank: int) -> AdapterFolder:
        """The adapter in a folder, which is absolute or below one of the roots. Reads from the disk.

        Raises NaruError INVALID_ARGUMENT naming the field, whatever is wrong.
        """
        if not text or len(text) > _LONGEST_PATH or "\0" in text:
            raise invalid_argument(FIELD, f"`path` must be a path of 1 to {_LONGEST_PATH} characters.")
        if ".." in Path(text).parts:
            raise invalid_argument(FIELD, "`path` must not contain `..`.")
        roots = [root.resolve() for root in self._roots if root.is_dir()]
        # Joined with an absolute path, a root is that path.
        for root in roots:
            folder = _resolve(root / text)
            if folder is not None and folder.is_dir() and _is_below(folder, roots):
                _check_files(folder, roots)
                return AdapterFolder(folder, _read_rank(folder, most_rank))
        # One text for what is not there and what is elsewhere: it tells nothing about the rest of the disk.
        raise invalid_argument(FIELD, "`path` must be a folder below one of those in NARU_INFERENCE_LORA_ROOTS.")


def _resolve(path: Path) -> Path | None:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path != root and path.is_relative_to(root) for root in roots)


def _check_files(folder: Path, roots: Sequence[Path]) -> None:
    """A link in the folder may lead to another place below the roots, as in a cache of the hub, and to no other one."""
    files = 0
    for where, folders, names in os.walk(folder):
        for name in (*folders, *names):
            files += 1
            real = _resolve(Path(where, name))
            if real is None or not _is_below(real, roots):
                raise invalid_argument(
                    FIELD, f"The adapter's {name!r} is a link that leads out of the adapter folders."
                )
        if files > _MOST_FILES:
            raise invalid_argument(FIELD, f"The folder holds more than {_MOST_FILES} files, so it is no adapter.")
    if not (folder / _WEIGHTS).is_file():
        raise invalid_argument(FIELD, f"The folder has no {_WEIGHTS}; weights of other formats are not loaded.")


def _read_rank(folder: Path, most_rank: int) -> int:
    configuration = _read_configuration(folder / _CONFIGURATION)
    rank = configuration.get("r")
    if configuration.get("peft_type") != "LORA" or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise invalid_argument(
            FIELD, f"The adapter's {_CONFIGURATION} does not describe a LoRA adapter with its rank, `r`."
        )
    if rank > most_rank:
        raise invalid_argument(
            FIELD, f"The adapter's rank is {rank}; the engine takes at most {most_rank}, its `max_lora_rank`."
        )
    return rank


def _read_configuration(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_CONFIGURATION_BYTES:
            raise _unreadable()
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise _unreadable() from None
    if not isinstance(value, dict):
        raise _unreadable()
    return value


def _unreadable() -> NaruError:
    return invalid_argument(FIELD, f"The folder has no {_CONFIGURATION} that can be read as a JSON object.")
