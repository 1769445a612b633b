"""The history of the schema, and the two questions asked about it: bring it up to date, and is it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from accounting.database import Database

VERSION_TABLE = "accounting_schema_version"
"""Where Alembic notes the version: a name of its own, so that services may share a database."""

# Any number that nothing else in the database locks with.
_ADVISORY_LOCK = 0x6E617275_61636374


async def upgrade(database: Database) -> None:
    """Brings the schema up to date. Of two at once, one waits for the other and then finds nothing to do."""
    async with database.writing() as connection:
        if database.is_postgresql:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        await connection.run_sync(_upgrade)


async def is_current(database: Database) -> bool:
    """Whether the schema is the one this build works with."""
    async with database.reading() as connection:
        return await connection.run_sync(_is_current)


def _upgrade(connection: sa.Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_current(connection: sa.Connection) -> bool:
    found = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    return set(found) == set(ScriptDirectory.from_config(_config()).get_heads())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
