"""One SQL database, SQLite or PostgreSQL: engine, transactions, and what counts as "the database is away"."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from naru.errors import NaruError, Reason, unavailable
from naru.logs import get_logger
from naru.sqlite import SqliteConnection

_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_SINGLE_CONNECTIONS = 3
_RESTS_SINCE = "rests_since"
_MOST_REST_SECONDS = 300.0
# SQLSTATE classes: connection, authorisation, missing database, resources, operator intervention, system error. And what
# PostgreSQL ended so that others can go on, serialization failure and deadlock: asked again, it works.
_OUTAGE_STATES = ("08", "28", "3D", "40001", "40P01", "53", "57P", "58")
_BEGIN = "begin_statement"
Result = TypeVar("Result")
_log = get_logger(__name__)


class Database:
    """A pool of connections. Cheap to make; connects when first used.

    Args:
        url: `sqlite+aiosqlite:///file` or `postgresql+asyncpg://...`. May hold a password, so it is never logged.

    Raises:
        ValueError: The URL is malformed or names another database. Its text is not repeated.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
        except (exc.ArgumentError, ValueError):
            # The cause would show the URL, and so the password.
            raise ValueError("the database URL is malformed") from None
        self._engine = _engine(parsed)
        self._single = _single_engine(parsed)
        self._writing = self._engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        # SQLite lets writers in by chance, who ask again and again; of this process each gets its turn.
        self._turn: AbstractAsyncContextManager[None] = nullcontext() if self.is_postgresql else asyncio.Lock()

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL; else it is SQLite."""
        return self._engine.dialect.name == "postgresql"

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads. Raises NaruError SERVICE_UNAVAILABLE when the database is away."""
        with translated():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end. Raises NaruError SERVICE_UNAVAILABLE when the database is away."""
        with translated():
            async with self._turn, self._writing.begin() as connection:
                yield connection

    async def read_rows(
        self, statement: sa.Select[Any], parameters: Mapping[str, Any] | None = None
    ) -> Sequence[sa.Row[Any]]:
        """All rows of one statement, which is one snapshot, without the round trips of a transaction around it.

        Raises NaruError SERVICE_UNAVAILABLE when the database is away.
        """
        with translated():
            async with self._single.connect() as connection:
                return (await connection.execute(statement, parameters)).all()

    async def close(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()
        await self._single.dispose()


async def answering(action: Callable[[], Awaitable[Result]], *, seconds: float, stopping: asyncio.Event) -> Result:
    """Does `action`, again and again while the database is away.

    Raises OSError when it is still away after `seconds`, or when `stopping` is set meanwhile.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    while True:
        try:
            return await action()
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            if loop.time() >= give_up or stopping.is_set():
                raise OSError("the database does not answer") from error
            _log.warning("waiting for the database", error=repr(error.__cause__))
        try:
            async with asyncio.timeout(_RETRY_SECONDS):
                await stopping.wait()
        except TimeoutError:
            continue


@contextmanager
def translated() -> Iterator[None]:
    """Turns failures to reach the database into NaruError SERVICE_UNAVAILABLE; lets everything else pass."""
    try:
        yield
    except NaruError:
        raise
    except Exception as error:  # the drivers have no common base class; what is no outage goes on unchanged
        if _is_outage(error):
            raise unavailable("database", "The database is not available right now.") from error
        raise


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError | OSError | TimeoutError):
        return True
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated or (error.orig is not None and _is_outage(error.orig))
    # asyncpg's own errors, which reach us bare while it connects.
    state = getattr(error, "sqlstate", None)
    return isinstance(state, str) and state.startswith(_OUTAGE_STATES)


def _engine(url: sa.URL) -> AsyncEngine:
    match url.drivername:
        case "sqlite+aiosqlite":
            if url.database in (None, "", ":memory:"):
                raise ValueError("a SQLite database needs a file: sqlite+aiosqlite:///<path>")
            engine = _sqlite_engine(url)
            sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
            return engine
        case "postgresql+asyncpg":
            return _postgresql_engine(url, pool_size=10, max_overflow=10)
        case driver:
            raise ValueError(f"the database driver {driver!r} is not one of sqlite+aiosqlite, postgresql+asyncpg")


def _single_engine(url: sa.URL) -> AsyncEngine:
    """For single statements: no transaction around each, which takes two more round trips to the server or the thread."""
    single: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_size": _SINGLE_CONNECTIONS, "max_overflow": 0}
    if url.drivername == "postgresql+asyncpg":
        return _postgresql_engine(url, **single)
    return _sqlite_engine(url, skip_autocommit_rollback=True, **single)


def _sqlite_engine(url: sa.URL, **options: Any) -> AsyncEngine:
    directory = Path(str(url.database)).parent
    connect_args = {"async_creator_fn": SqliteConnection}
    engine = create_async_engine(url, hide_parameters=True, connect_args=connect_args, **options)
    sa.event.listen(engine.sync_engine, "do_connect", lambda *_: directory.mkdir(parents=True, exist_ok=True))
    return engine


def _postgresql_engine(url: sa.URL, **options: Any) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_timeout=_TIMEOUT_SECONDS,
        hide_parameters=True,
        connect_args={"timeout": _TIMEOUT_SECONDS, "command_timeout": _TIMEOUT_SECONDS},
        **options,
    )
    sa.event.listen(engine.sync_engine, "checkin", _note_rest)
    sa.event.listen(engine.sync_engine, "checkout", _replace_lost)
    return engine


def _note_rest(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info[_RESTS_SINCE] = time.monotonic()


def _replace_lost(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Has the pool connect anew, so that a database that was restarted costs no failed request.

    SQLAlchemy's own `pool_pre_ping` asks the database before each transaction, in three round trips. But the driver has heard
    of it when the database hung up; only what was forgotten on the way, as by a firewall that saw no traffic, it cannot know.
    """
    if connection.driver_connection.is_closed():
        raise exc.InvalidatePoolError
    if time.monotonic() - record.info.get(_RESTS_SINCE, math.inf) > _MOST_REST_SECONDS:
        raise exc.DisconnectionError


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: one that read first could not get it any more when another wrote in between.
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))
