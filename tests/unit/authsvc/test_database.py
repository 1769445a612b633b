"""Which databases are taken, and what counts as one that is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from authsvc import migrations
from authsvc.tables import installation
from naru.database import Database, translated
from naru.errors import NaruError, Reason


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://user:hunter2@host:port/db",
        "mysql://user:hunter2@host/db",
        "hunter2",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    """A URL that cannot work is a configuration error whose text and cause do not show the password."""
    with pytest.raises(ValueError, match="database") as failure:
        Database(url)
    assert "hunter2" not in str(failure.value)
    assert failure.value.__suppress_context__ or failure.value.__context__ is None


class DriverError(Exception):
    """What asyncpg raises while it connects."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("secret detail")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("secret detail"),
        TimeoutError(),
        exc.TimeoutError("pool"),
        exc.OperationalError("SELECT", {}, Exception("secret detail")),
        exc.InterfaceError("SELECT", {}, Exception("secret detail")),
        exc.DBAPIError("SELECT", {}, DriverError("57P01")),
        exc.DBAPIError("UPDATE", {}, DriverError("40P01")),
        exc.DBAPIError("UPDATE", {}, DriverError("40001")),
        exc.DBAPIError("SELECT", {}, Exception(), connection_invalidated=True),
        DriverError("57P03"),
        DriverError("53300"),
    ],
)
def test_an_outage_is_one_error(error: Exception) -> None:
    """Whatever way the database is away, or ended us for others, callers see SERVICE_UNAVAILABLE and none of the cause."""
    with pytest.raises(NaruError) as failure, translated():
        raise error
    assert failure.value.reason is Reason.SERVICE_UNAVAILABLE
    assert failure.value.retry_after is not None
    assert "secret detail" not in str(failure.value)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        exc.IntegrityError("INSERT", {}, Exception()),
        exc.DBAPIError("SELECT", {}, DriverError("22003")),
        NaruError(Reason.NOT_FOUND, "There is none."),
    ],
)
def test_a_fault_is_no_outage(error: Exception) -> None:
    """A fault of ours and an error of ours pass unchanged."""
    with pytest.raises(type(error)) as failure, translated():
        raise error
    assert failure.value is error


async def test_sqlite_is_durable_and_keeps_references(tmp_path: Path) -> None:
    """A SQLite file is made with its directory, in WAL mode, with foreign keys and a busy timeout."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/new/directory/auth.db")
    try:
        async with database.reading() as connection:
            found = [
                (await connection.execute(sa.text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
            ]
        assert found == ["wal", 1, 5000, 2]
    finally:
        await database.close()


async def test_an_empty_database_is_not_current(tmp_path: Path) -> None:
    """The schema is current after the migrations and not before; migrating again changes nothing."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/auth.db")
    try:
        assert not await migrations.MIGRATIONS.is_current(database)
        await migrations.MIGRATIONS.upgrade(database)
        assert await migrations.MIGRATIONS.is_current(database)
        await migrations.MIGRATIONS.upgrade(database)
        assert await migrations.MIGRATIONS.is_current(database)
    finally:
        await database.close()


async def test_a_writer_waits_before_it_reads(database: Database) -> None:
    """A writing transaction begins only when the one before it ended: what it reads first is still so when it writes."""

    async def read_and_write() -> int:
        async with database.writing() as connection:
            found = int((await connection.execute(sa.select(installation.c.sequence))).scalar_one())
            await connection.execute(sa.update(installation).values(sequence=found + 1))
            return found

    async with database.writing() as connection:
        second = asyncio.create_task(read_and_write())
        done, _ = await asyncio.wait([second], timeout=0.2)
        assert not done
        await connection.execute(sa.update(installation).values(sequence=41))
    assert await second == 41
