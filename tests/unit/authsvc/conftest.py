"""A database for tests that need a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from authsvc import migrations
from naru.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A SQLite database with the schema in it."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/auth.db")
    try:
        await migrations.MIGRATIONS.upgrade(database)
        yield database
    finally:
        await database.close()
