"""Connections to SQLite that may be closed at any moment, by two tasks at once, and leave nothing locked."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from functools import partial
from typing import Any

import aiosqlite

_ROWS_AT_ONCE = 64  # aiosqlite's own default


class _RolledBack(sqlite3.Connection):
    """Ends its transaction before it is closed.

    Closing alone does not while a statement is not finalised, and one that a cancelled task had begun is not until the garbage
    collector finds the task's traceback: the lock is held until then (`sqlite3_close_v2`, which CPython calls since 3.11).
    """

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


class SqliteConnection(aiosqlite.Connection):
    """aiosqlite's, of which every `stop` but the first is that first one.

    Its thread ends with the first, so what a second one waits for never comes (aiosqlite 0.22.1, core.py:55). SQLAlchemy stops
    a connection twice when a task that is being cancelled is cancelled again, and then a process that stops never ends
    (SQLAlchemy 2.0.58, connectors/asyncio.py, `AsyncAdapt_terminate`).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(partial(sqlite3.connect, *arguments, factory=_RolledBack, **options), _ROWS_AT_ONCE)
        # As SQLAlchemy has it: a thread that is left over keeps no process up.
        self._thread.daemon = True
        self._stopped: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        """Ends the thread once all that was asked before is done."""
        if self._running:
            self._stopped = super().stop()
        return self._stopped
