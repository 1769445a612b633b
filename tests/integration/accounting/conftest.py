"""A real Redis, databases with the schema in them, and the service's parts put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from accounting.app import migrate, running
from accounting.config import AccountingConfig
from accounting.limiter.limiter import Limiter, connect
from accounting.migrations import MIGRATIONS
from accounting.usage.report_store import ReportStore
from accounting.usage.store import UsageStore
from naru.database import Database
from naru.identity import ServiceTokens
from naru.lifecycle import Lifecycle
from naru.testing import databases
from naru.testing.clock import FakeClock
from naru.testing.redis_server import redis_server
from tests.integration.accounting.harness import START, Books, new_limiter
from tests.integration.accounting.service import Service
from tests.support.recording_accounting import KeyRing, RecordingAccounting, peers, write_service_tokens

# pytest finds fixtures by name in this module.
postgres = databases.postgres
database_url = databases.database_url


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[str]:
    """One Redis for the whole run."""
    with redis_server() as url:
        yield url


@pytest.fixture
async def redis_url(shared_redis: str) -> str:
    """The URL of an empty Redis."""
    redis = connect(shared_redis)
    await redis.flushall()
    await redis.script_flush()
    await redis.aclose()
    return shared_redis


@pytest.fixture
async def limiter(redis_url: str) -> AsyncIterator[Limiter]:
    """A limiter whose time stands still at `START` until a test moves it, open for reservations."""
    limiter = new_limiter(redis_url, now=START)
    await limiter.begin_epoch("first", 0)
    yield limiter
    await limiter.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with the schema in it."""
    async with databases.migrated(database_url, MIGRATIONS) as database:
        yield database


@pytest.fixture
def store(database: Database) -> UsageStore:
    """A store without events."""
    return UsageStore(database)


@pytest.fixture
def reports(database: Database) -> ReportStore:
    """The same database, for questions."""
    return ReportStore(database)


@pytest.fixture
def books(database: Database, limiter: Limiter) -> Books:
    """Store, limiter, recorder and sweeper under one clock."""
    return Books(database, limiter, FakeClock(START / 1_000_000))


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> AccountingConfig:
    """A configuration with tokens of every service, an empty Redis, and a SQLite database without a schema.

    A test may give fields of its own: `parametrize("config", [{...}], indirect=True)`.
    """
    write_service_tokens(tmp_path / "secrets")
    config = AccountingConfig(
        port=0,
        database_url=f"sqlite+aiosqlite:///{tmp_path}/served.db",
        database_wait=0.0,
        redis_url=redis_url,
        service_tokens_dir=tmp_path / "secrets",
        shutdown_grace=5.0,
        lease_seconds=60.0,
        recovery_seconds=1.0,
    )
    return replace(config, **getattr(request, "param", {}))


@pytest.fixture
async def service(config: AccountingConfig) -> AsyncIterator[Service]:
    """A real accounting on a free port, beside an authsvc that knows the keys a test makes."""
    await migrate(config)
    keys, tokens = KeyRing(), ServiceTokens.read(config.service_tokens_dir)
    async with (
        peers(tokens, RecordingAccounting(), keys) as authsvc,
        running(replace(config, authsvc_address=authsvc), Lifecycle()) as up,
        Service(up, tokens, keys) as service,
    ):
        yield service
