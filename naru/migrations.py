"""The history of a service's schema, and the two questions asked about it: bring it up to date, and is it."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection

from naru.database import Database


class Migrations:
    """A folder of Alembic migrations.

    Args:
        folder: Holds `env.py` and `versions/`.
        version_table: Where Alembic notes the version: a name of the service's own, so that services may share a database.
    """

    def __init__(self, folder: Path, version_table: str) -> None:
        self._folder = folder
        self._version_table = version_table
        # Any number that nothing else in the database locks with.
        self._advisory_lock = zlib.crc32(version_table.encode())

    async def upgrade(self, database: Database, revision: str = "head") -> None:
        """Brings the schema up to date, or to a revision. Of two at once, one waits and then finds nothing to do."""
        async with self._alone(database) as connection:
            await connection.run_sync(self._run, command.upgrade, revision)

    async def downgrade(self, database: Database, revision: str) -> None:
        """Takes the schema back to a revision; "base" is nothing. What the newer one alone could hold is lost."""
        async with self._alone(database) as connection:
            await connection.run_sync(self._run, command.downgrade, revision)

    async def is_current(self, database: Database) -> bool:
        """Whether the schema is the one this build works with."""
        async with database.reading() as connection:
            return await connection.run_sync(self._is_current)

    @asynccontextmanager
    async def _alone(self, database: Database) -> AsyncIterator[AsyncConnection]:
        async with database.writing() as connection:
            if database.is_postgresql:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(self._advisory_lock)))
            yield connection

    def _run(self, connection: sa.Connection, step: Callable[[Config, str], None], revision: str) -> None:
        config = self._config()
        config.attributes.update(connection=connection, version_table=self._version_table)
        step(config, revision)

    def _is_current(self, connection: sa.Connection) -> bool:
        found = MigrationContext.configure(connection, opts={"version_table": self._version_table})
        return set(found.get_current_heads()) == set(ScriptDirectory.from_config(self._config()).get_heads())

    def _config(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(self._folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        return config
