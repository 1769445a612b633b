"""Puts accounting together, from the configuration to a server that is serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from zoneinfo import ZoneInfo

from accounting import limiter as limiters
from accounting import migrations, tier_file
from accounting.budget_management import BudgetManager
from accounting.catalogue_keeper import CatalogueKeeper
from accounting.catalogue_servicer import BudgetServicer, PricingServicer, TierServicer
from accounting.catalogue_store import CatalogueStore
from accounting.clients import ApiKeys
from accounting.config import AccountingConfig
from accounting.epoch import EpochKeeper
from accounting.limiter import Limiter
from accounting.limits import Tier
from accounting.price_management import PriceManager
from accounting.readiness import Readiness
from accounting.recording import Recorder
from accounting.report_store import ReportStore
from accounting.reservations import Reservations
from accounting.servicer import QuotaServicer, UsageServicer
from accounting.store import UsageStore
from accounting.sweeper import Sweeper
from accounting.tier_management import TierManager
from naru.api.accounting.v1 import (
    budget_service_pb2_grpc,
    pricing_service_pb2_grpc,
    quota_service_pb2_grpc,
    tier_service_pb2_grpc,
    usage_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.clock import Clock, SystemClock
from naru.config import ConfigError
from naru.credentials import CachedAuthenticator
from naru.database import Database, answering
from naru.identity import ServiceName, ServiceTokens
from naru.ids import uuid7
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
    admit_when_lost = config.redis_lost_policy == "open"
    metrics = Metrics()
    tracing = Tracing.from_environment(config.SERVICE)
    async with AsyncExitStack() as stack:
        stack.callback(tracing.close)
        database = _database(config)
        stack.push_async_callback(database.close)
        store = UsageStore(database)
        catalogue_store = CatalogueStore(database)
        catalogue = CatalogueKeeper(catalogue_store, file_tiers, clock, _log)
        limiter = _limiter(config, clock)
        stack.push_async_callback(limiter.close)
        reservations = Reservations(
            limiter=limiter,
            catalogue=catalogue,
            clock=clock,
            logger=_log,
            metrics=metrics,
            lease_seconds=config.lease_seconds,
            admit_when_lost=admit_when_lost,
            refuse_unpriced=config.unpriced_models == "refuse",
        )
        recorder = Recorder(
            store=store, limiter=limiter, catalogue=catalogue, clock=clock, logger=_log, metrics=metrics
        )
        epochs = EpochKeeper(
            limiter=limiter,
            store=store,
            catalogue=catalogue,
            logger=_log,
            recovery_seconds=config.recovery_seconds,
            zone=ZoneInfo(config.time_zone),
            new_id=uuid7,
        )
        sweeper = Sweeper(
            store=store,
            limiter=limiter,
            recorder=recorder,
            epochs=epochs,
            clock=clock,
            logger=_log,
            metrics=metrics,
            lease_seconds=config.lease_seconds,
        )
        authsvc = ServiceClient(config.authsvc_address, name="authsvc", service_token=token, tracing=tracing)
        stack.push_async_callback(authsvc.close)
        principals = CachedAuthenticator(authsvc, clock)
        server = GrpcServer(
            CallerAuthenticator(tokens, principals),
            metrics=metrics,
            tracing=tracing,
            reflection_enabled=config.reflection,
        )
        server.add(
            quota_service_pb2_grpc.add_QuotaServiceServicer_to_server,
            QuotaServicer(reservations),
            "naru.api.accounting.v1.QuotaService",
        )
        server.add(
            usage_service_pb2_grpc.add_UsageServiceServicer_to_server,
            UsageServicer(recorder, ReportStore(database), _log),
            "naru.api.accounting.v1.UsageService",
        )
        _add_catalogue_services(
            server,
            store=catalogue_store,
            keeper=catalogue,
            file_tiers=file_tiers,
            keys=ApiKeys(authsvc),
            clock=clock,
        )
        ops = OpsListener(metrics, lambda: server.serving)
        stack.push_async_callback(ops.close)
        ops_port = await ops.start(config.ops_host, config.ops_port)

        await answering(
            lambda: _check_database(database, catalogue), seconds=config.database_wait, stopping=lifecycle.stopping
        )
        await sweeper.sweep()
        stack.push_async_callback(lifecycle.background.close)
        _ = lifecycle.background.start("catalogue", catalogue.run())
        _ = lifecycle.background.start("sweeper", sweeper.run())
        _ = lifecycle.background.start("invalidations", principals.watch())
        port = await server.start(config.host, config.port)
        stack.push_async_callback(server.stop, config.shutdown_grace)
        # Who chose to admit without limits is served without Redis.
        needs = [store.ping] if admit_when_lost else [store.ping, limiter.ping]
        readiness = Readiness(needs, server.set_serving, _log)
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


def _add_catalogue_services(
    server: GrpcServer,
    *,
    store: CatalogueStore,
    keeper: CatalogueKeeper,
    file_tiers: dict[str, Tier],
    keys: ApiKeys,
    clock: Clock,
) -> None:
    tiers = TierManager(
        store=store, file_tiers=file_tiers, tier_in_use=keys.have_tier, refresh=keeper.refresh, clock=clock
    )
    budgets = BudgetManager(store=store, file_tiers=file_tiers, refresh=keeper.refresh, clock=clock, new_id=uuid7)
    prices = PriceManager(store=store, refresh=keeper.refresh, clock=clock, new_id=uuid7)
    server.add(
        tier_service_pb2_grpc.add_TierServiceServicer_to_server,
        TierServicer(tiers),
        "naru.api.accounting.v1.TierService",
    )
    server.add(
        budget_service_pb2_grpc.add_BudgetServiceServicer_to_server,
        BudgetServicer(budgets),
        "naru.api.accounting.v1.BudgetService",
    )
    server.add(
        pricing_service_pb2_grpc.add_PricingServiceServicer_to_server,
        PricingServicer(prices),
        "naru.api.accounting.v1.PricingService",
    )


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
