"""PostgreSQL that was restarted, or whose connections were forgotten on the way, costs no failed request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from naru.database import Database
from naru.testing import databases
from naru.testing.postgres_server import PostgresServer
from tests.support.generation_bench import eventually

# pytest finds fixtures by name in this module.
postgres = databases.postgres

_BACKEND = sa.select(sa.func.pg_backend_pid())
_OTHERS = sa.text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> :own"
    " AND backend_type = 'client backend'"
)


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    database = Database(postgres.new_database())
    yield database
    await database.close()


async def read(database: Database) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(_BACKEND)).scalar_one())


async def write(database: Database) -> int:
    async with database.writing() as connection:
        return int((await connection.execute(_BACKEND)).scalar_one())


async def read_rows(database: Database) -> int:
    ((backend,),) = await database.read_rows(_BACKEND)
    return int(backend)


@pytest.fixture
def made() -> Iterator[list[Any]]:
    """The driver's connections, as they are made."""
    connections: list[Any] = []

    def note(connection: Any, _record: object) -> None:
        connections.append(connection.driver_connection)

    sa.event.listen(sa.Pool, "connect", note)
    yield connections
    sa.event.remove(sa.Pool, "connect", note)


async def test_what_hung_up_is_not_asked_again(made: list[Any], database: Database) -> None:
    """Every connection that rests is gone; whoever comes next gets another one."""
    before = set(await asyncio.gather(*(use(database) for use in (read, write, read_rows) for _ in range(3))))
    async with database.writing() as connection:
        own = (await connection.execute(_BACKEND)).scalar_one()
        ended = (await connection.execute(_OTHERS, {"own": own})).all()
    assert len(ended) == len(before - {own}) > 3
    await eventually(lambda: sum(one.is_closed() for one in made) == len(ended))  # the driver hears of it
    after = await asyncio.gather(*(use(database) for use in (read, write, read_rows) for _ in range(3)))
    assert set(after) & before <= {own}


@pytest.mark.parametrize("use", [read, write, read_rows])
async def test_what_rested_for_long_is_connected_anew(
    database: Database, use: Callable[[Database], Awaitable[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a firewall still knows of it, nobody can tell."""
    first = await use(database)
    assert await use(database) == first
    monkeypatch.setattr("naru.database._MOST_REST_SECONDS", 0.0)
    assert await use(database) != first
