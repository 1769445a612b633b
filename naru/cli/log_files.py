"""Keeps the logs of processes from filling the disk."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 50_000_000
"""How large a log grows; as much of what came before is kept beside it."""


def keep_small(log: Path, most: int = MOST_BYTES) -> None:
    """Moves what a log holds to `<log>.1` once it is larger than `most` bytes, over what was there.

    The process that appends to it goes on with the same file: what it writes in that moment is lost. So is all of it where
    there is no room for a copy; nothing is raised.
    """
    kept = log.with_name(f"{log.name}.1")
    with suppress(OSError):
        if not log.exists() or log.stat().st_size <= most:
            return
        try:
            shutil.copyfile(log, kept)
            kept.chmod(0o600)
        except OSError:
            # A part of it would keep the disk full.
            with suppress(OSError):
                kept.unlink()
        os.truncate(log, 0)
