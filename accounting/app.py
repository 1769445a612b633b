"""Puts accounting together, from the configuration to a server that is serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from zoneinfo import ZoneInfo

from accounting import migrations
from accounting.assembly import Assembly
from accounting.catalogue import tier_file
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.clients import ApiKeys
from accounting.config import AccountingConfig
from accounting.limiter import limiter as limiters
from accounting.limiter.limiter import Limiter
from accounting.limits import Tier
from accounting.readiness import Readiness
from naru.balancing import target_of
from naru.client import ServiceClient
from naru.clock import Clock, SystemClock
from naru.config import ConfigError
from naru.credentials import CachedAuthenticator
from naru.database import Database, answering
from naru.identity import ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.lifecycle import Lifecycle, Running
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.ops import OpsListener
from naru.server import GrpcServer
from naru.tracing import Tracing

_log = get_logger(__name__)


@asynccontextmanager
async def running(
    config: AccountingConfig, lifecycle: Lifecycle, *, clock: Clock | None = None
) -> AsyncIterator[Running]:
    """Serves inside the block, and unwinds in reverse order after it.

    Raises:
        ConfigError: The configuration or the schema does not fit.
        OSError: A port is taken, or the database did not answer in time.
    """
    clock = clock or SystemClock()
    tokens, token = _service_tokens(config)
    file_tiers = _file_tiers(config)
    metrics = Metrics()
    tracing = Tracing.from_environment(config.SERVICE)
    async with AsyncExitStack() as stack:
        stack.callback(tracing.close)
        database = _database(config)
        stack.push_async_callback(database.close)
        limiter = _limiter(config, clock)
        stack.push_async_callback(limiter.close)
        authsvc = ServiceClient(target_of(config.authsvc_address), name="authsvc", service_token=token, tracing=tracing)
        stack.push_async_callback(authsvc.close)
        principals = CachedAuthenticator(authsvc, clock, lifecycle.background)
        stack.push_async_callback(principals.uses.flush)
        assembly = Assembly(
            config,
            database=database,
            limiter=limiter,
            file_tiers=file_tiers,
            keys=ApiKeys(authsvc),
            clock=clock,
            metrics=metrics,
            tracing=tracing,
        )
        server = GrpcServer(
            CallerAuthenticator(tokens, principals),
            metrics=metrics,
            tracing=tracing,
            reflection_enabled=config.reflection,
        )
        assembly.add_services(server)
        ops = OpsListener(metrics, lambda: server.serving)
        stack.push_async_callback(ops.close)
        ops_port = await ops.start(config.ops_host, config.ops_port)

        await answering(
            lambda: _check_database(database, assembly.catalogue),
            seconds=config.database_wait,
            stopping=lifecycle.stopping,
        )
        await assembly.pruner.load()
        await assembly.sweeper.sweep()
        stack.push_async_callback(lifecycle.background.close)
        for name, job in assembly.jobs():
            _ = lifecycle.background.start(name, job)
        _ = lifecycle.background.start("invalidations", principals.watch())
        _ = lifecycle.background.start("key uses", principals.uses.run())
        port = await server.start(config.host, config.port)
        stack.push_async_callback(server.stop, config.shutdown_grace)
        stack.callback(assembly.quota.sessions.close)
        readiness = Readiness(assembly.needs(), server.set_serving, _log)
        await readiness.check()
        _ = lifecycle.background.start("readiness", readiness.run())
        yield Running(port, ops_port)


async def migrate(config: AccountingConfig) -> None:
    """Brings the schema up to date. Raises ConfigError, or OSError when the database did not answer in time."""
    async with AsyncExitStack() as stack:
        database = _database(config)
        stack.push_async_callback(database.close)
        await answering(
            lambda: migrations.MIGRATIONS.upgrade(database), seconds=config.database_wait, stopping=asyncio.Event()
        )
    _log.info("the schema is up to date")


async def _check_database(database: Database, catalogue: CatalogueKeeper) -> None:
    if not await migrations.MIGRATIONS.is_current(database):
        raise ConfigError("the database does not have the schema of this version: run `python -m accounting migrate`")
    await catalogue.refresh()


def _database(config: AccountingConfig) -> Database:
    try:
        return Database(config.database_url)
    except ValueError as error:
        raise ConfigError(f"NARU_ACCOUNTING_DATABASE_URL: {error}") from error


def _limiter(config: AccountingConfig, clock: Clock) -> Limiter:
    try:
        redis = limiters.connect(config.redis_url)
    except ValueError as error:
        raise ConfigError(f"NARU_ACCOUNTING_REDIS_URL: {error}") from error
    return Limiter(
        redis,
        lease_seconds=config.lease_seconds,
        lifetime_seconds=config.hard_lifetime_seconds,
        zone=ZoneInfo(config.time_zone),
        clock=clock,
    )


def _file_tiers(config: AccountingConfig) -> dict[str, Tier]:
    try:
        return tier_file.read(config.tiers_file)
    except ValueError as error:
        raise ConfigError(f"NARU_ACCOUNTING_TIERS_FILE: {error}") from error


def _service_tokens(config: AccountingConfig) -> tuple[ServiceTokens, str]:
    """Everybody's tokens, and our own."""
    try:
        tokens = ServiceTokens.read(config.service_tokens_dir)
        return tokens, tokens.of(ServiceName.ACCOUNTING)
    except ValueError as error:
        raise ConfigError(f"NARU_SERVICE_TOKENS_DIR: {error}") from error
