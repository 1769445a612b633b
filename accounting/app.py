"""Puts accounting together, from the configuration to a server that is serving."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from zoneinfo import ZoneInfo

from accounting import migrations
from accounting.catalogue import tier_file
from accounting.catalogue.budgets import BudgetManager
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.catalogue.prices import PriceManager
from accounting.catalogue.servicer import BudgetServicer, PricingServicer, TierServicer
from accounting.catalogue.store import CatalogueStore
from accounting.catalogue.tiers import TierManager
from accounting.clients import ApiKeys
from accounting.config import AccountingConfig
from accounting.epoch import EpochKeeper
from accounting.ledger.management import LedgerManager
from accounting.ledger.servicer import LedgerServicer
from accounting.ledger.store import LedgerStore
from accounting.ledger.verification import LedgerVerifier
from accounting.limiter import limiter as limiters
from accounting.limiter.limiter import Limiter
from accounting.limiter.outcomes import Outcomes, Sealer
from accounting.limiter.reservations import Reservations
from accounting.limiter.servicer import QuotaServicer
from accounting.limits import Tier
from accounting.readiness import Readiness
from accounting.sweeper import Sweeper
from accounting.usage.recording import Recorder
from accounting.usage.report_store import ReportStore
from accounting.usage.request_store import RequestStore
from accounting.usage.retention import Pruner
from accounting.usage.retention_store import RetentionStore
from accounting.usage.rollup_store import RollupStore
from accounting.usage.rollups import Roller
from accounting.usage.servicer import UsageServicer
from accounting.usage.store import UsageStore
from naru.api.accounting.v1 import (
    budget_service_pb2_grpc,
    ledger_service_pb2_grpc,
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
        sealer = None if config.outcome_key is None else Sealer(config.outcome_key, os.urandom)
        outcomes = Outcomes(limiter, sealer, logger=_log, metrics=metrics)
        reservations = Reservations(
            limiter=limiter,
            catalogue=catalogue,
            outcomes=outcomes,
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
        roller = Roller(RollupStore(database), logger=_log, metrics=metrics)
        pruner = _pruner(config, database, clock, metrics)
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
            QuotaServicer(reservations, outcomes),
            "naru.api.accounting.v1.QuotaService",
        )
        server.add(
            usage_service_pb2_grpc.add_UsageServiceServicer_to_server,
            UsageServicer(
                recorder=recorder,
                pruner=pruner,
                reports=ReportStore(database),
                requests=RequestStore(database),
                clock=clock,
                logger=_log,
            ),
            "naru.api.accounting.v1.UsageService",
        )
        _add_catalogue_services(
            server,
            store=catalogue_store,
            keeper=catalogue,
            file_tiers=file_tiers,
            keys=ApiKeys(authsvc),
            ledger=_ledger(config, store, limiter, catalogue, clock),
            clock=clock,
        )
        ops = OpsListener(metrics, lambda: server.serving)
        stack.push_async_callback(ops.close)
        ops_port = await ops.start(config.ops_host, config.ops_port)

        await answering(
            lambda: _check_database(database, catalogue), seconds=config.database_wait, stopping=lifecycle.stopping
        )
        await pruner.load()
        await sweeper.sweep()
        stack.push_async_callback(lifecycle.background.close)
        _ = lifecycle.background.start("catalogue", catalogue.run())
        _ = lifecycle.background.start("sweeper", sweeper.run())
        _ = lifecycle.background.start("roller", roller.run())
        _ = lifecycle.background.start("pruner", pruner.run())
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


def _ledger(
    config: AccountingConfig, store: UsageStore, limiter: Limiter, catalogue: CatalogueKeeper, clock: Clock
) -> LedgerServicer:
    manager = LedgerManager(
        store=LedgerStore(store.database), limiter=limiter, refresh=catalogue.refresh, clock=clock, new_id=uuid7
    )
    verifier = LedgerVerifier(
        database=store.database,
        limiter=limiter,
        unsettled=store.unsettled,
        clock=clock,
        lease_seconds=config.lease_seconds,
    )
    return LedgerServicer(manager, verifier)


def _add_catalogue_services(
    server: GrpcServer,
    *,
    store: CatalogueStore,
    keeper: CatalogueKeeper,
    file_tiers: dict[str, Tier],
    keys: ApiKeys,
    ledger: LedgerServicer,
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
    server.add(
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server, ledger, "naru.api.accounting.v1.LedgerService"
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


def _pruner(config: AccountingConfig, database: Database, clock: Clock, metrics: Metrics) -> Pruner:
    return Pruner(
        RetentionStore(database),
        clock=clock,
        logger=_log,
        metrics=metrics,
        usage_days=config.usage_days,
        request_log_days=config.request_log_days,
        lifetime_seconds=config.hard_lifetime_seconds,
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
