"""Connections to SQLite that may be opened and closed at any moment, by two tasks at once, and leave nothing locked."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import suppress
from functools import partial
from typing import Any

import aiosqlite

_ROWS_AT_ONCE = 64  # aiosqlite's own default
_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = 0.01
_PRAGMAS = "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"


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

    And it closes what was opened for a task that was cancelled meanwhile, of which aiosqlite never hears (core.py:167).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # The driver begins a transaction too late for reads and for DDL; who opens one says so instead.
        own = {"timeout": _TIMEOUT_SECONDS, "isolation_level": None, "factory": _RolledBack}
        self._connect_to = partial(sqlite3.connect, *arguments, **(options | own))
        self._opened: sqlite3.Connection | None = None
        super().__init__(self._open, _ROWS_AT_ONCE)
        # As SQLAlchemy has it: a thread that is left over keeps no process up.
        self._thread.daemon = True
        self._stopped: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        """Ends the thread once all that was asked before is done."""
        if self._running:
            self._tx.put_nowait((None, self._close_opened))
            self._stopped = super().stop()
        return self._stopped

    def _open(self) -> sqlite3.Connection:
        self._opened = self._connect_to()
        _write_ahead(self._opened)
        _ = self._opened.executescript(_PRAGMAS)
        return self._opened

    def _close_opened(self) -> None:
        if self._opened is not None:
            self._opened.close()


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Has the file keep a write-ahead log, if it does not yet, so that readers and the writer do not wait for each other.

    While another connection writes to a new file, or changes its mode too, SQLite refuses at once instead of waiting.
    """
    give_up = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        try:
            _ = connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            # The lowest byte says what it is, the rest why: another one may be recovering the log.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
        else:
            return
        time.sleep(_RETRY_SECONDS)
