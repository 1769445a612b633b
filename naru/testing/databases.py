"""A database for tests of a store: the fixtures `postgres` and `database_url`, and the schema in one.

A `conftest.py` takes the fixtures over by giving them these names in its own module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from naru.database import Database
from naru.migrations import Migrations
from naru.testing.postgres_server import PostgresServer, postgres_cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; each test takes a database of its own."""
    with postgres_cluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/store.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.new_database()


@asynccontextmanager
async def migrated(url: str, migrations: Migrations) -> AsyncIterator[Database]:
    """The database with the schema in it; closed at the end."""
    database = Database(url)
    try:
        await migrations.upgrade(database)
        yield database
    finally:
        await database.close()
