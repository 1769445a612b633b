"""A database for tests that need a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from authsvc.migrations import MIGRATIONS
from naru.database import Database
from naru.testing.databases import migrated


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A SQLite database with the schema in it."""
    async with migrated(f"sqlite+aiosqlite:///{tmp_path}/auth.db", MIGRATIONS) as database:
        yield database
