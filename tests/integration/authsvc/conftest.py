"""Databases with the schema in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from authsvc.app import migrate, running
from authsvc.config import AuthsvcConfig
from authsvc.migrations import MIGRATIONS
from authsvc.store import KeyStore
from naru.database import Database
from naru.identity import ServiceName
from naru.lifecycle import Lifecycle
from naru.testing import databases
from naru.testing.clock import FakeClock
from naru.testing.postgres_server import PostgresServer
from tests.integration.authsvc.harness import AuthService, serving

# pytest finds fixtures by name in this module.
postgres = databases.postgres
database_url = databases.database_url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with the schema in it."""
    async with databases.migrated(database_url, MIGRATIONS) as database:
        yield database


@pytest.fixture
async def postgresql(postgres: PostgresServer) -> AsyncIterator[Database]:
    """The same on PostgreSQL alone: writers of SQLite come one after the other."""
    async with databases.migrated(postgres.new_database(), MIGRATIONS) as database:
        yield database


@pytest.fixture
def store(database: Database) -> KeyStore:
    """A store without keys."""
    return KeyStore(database)


@pytest.fixture
def clock() -> FakeClock:
    """The service's clock."""
    return FakeClock()


@pytest.fixture
def config(tmp_path: Path) -> AuthsvcConfig:
    """A configuration with tokens of every service, a pepper, and a SQLite database without a schema."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ServiceName:
        (secrets / f"service-token-{name}").write_text(f"{name}-" + "t" * 32)
    (secrets / "pepper").write_text("p" * 32)
    return AuthsvcConfig(
        port=0,
        database_url=f"sqlite+aiosqlite:///{tmp_path}/served.db",
        database_wait=0.0,
        pepper_files=(f"1:{secrets}/pepper",),
        service_tokens_dir=secrets,
        shutdown_grace=5.0,
    )


@pytest.fixture
async def service(config: AuthsvcConfig, clock: FakeClock) -> AsyncIterator[AuthService]:
    """A real authsvc on a free port."""
    await migrate(config)
    async with running(config, Lifecycle(), clock=clock) as up, serving(config, up) as service:
        yield service
