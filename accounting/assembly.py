"""Makes the parts of accounting from what they share. Nothing is opened or asked here."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from accounting.catalogue.budgets import BudgetManager
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.catalogue.prices import PriceManager
from accounting.catalogue.servicer import BudgetServicer, PricingServicer, TierServicer
from accounting.catalogue.store import CatalogueStore
from accounting.catalogue.tiers import TierManager
from accounting.clients import ApiKeys
from accounting.config import AccountingConfig
from accounting.epoch import EpochKeeper
from accounting.ledger.balance_keeper import BalanceKeeper
from accounting.ledger.management import LedgerManager
from accounting.ledger.servicer import LedgerServicer
from accounting.ledger.store import LedgerStore
from accounting.ledger.verification import LedgerVerifier
from accounting.limiter.balances import Balances
from accounting.limiter.limiter import Limiter
from accounting.limiter.outcomes import Outcomes, Sealer
from accounting.limiter.reservations import Reservations
from accounting.limiter.servicer import QuotaServicer
from accounting.limits import Tier
from accounting.sweeper import Sweeper
from accounting.usage.recording import Recorder
from accounting.usage.recovery_store import RecoveryStore
from accounting.usage.report_store import ReportStore
from accounting.usage.request_store import RequestStore
from accounting.usage.restoring import Restorer
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
from naru.clock import Clock
from naru.database import Database
from naru.ids import uuid7
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.server import GrpcServer
from naru.tracing import Tracing

_log = get_logger(__name__)


class Assembly:
    """The parts, each given what it needs.

    Args:
        file_tiers: The tiers that the configuration names.
        keys: Tells whether a tier is in use.
    """

    def __init__(
        self,
        config: AccountingConfig,
        *,
        database: Database,
        limiter: Limiter,
        file_tiers: Mapping[str, Tier],
        keys: ApiKeys,
        clock: Clock,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self._config = config
        self._database = database
        self._limiter = limiter
        self._file_tiers = file_tiers
        self._keys = keys
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        self._admit_when_lost = config.redis_lost_policy == "open"
        self._store = UsageStore(database)
        self._recovery_store = RecoveryStore(database)
        self._catalogue_store = CatalogueStore(database)
        self.catalogue = CatalogueKeeper(self._catalogue_store, file_tiers, clock, _log)
        self._recorder = Recorder(
            store=self._store, limiter=limiter, catalogue=self.catalogue, clock=clock, logger=_log, metrics=metrics
        )
        self.sweeper = self._make_sweeper()
        self.roller = Roller(RollupStore(database), logger=_log, metrics=metrics)
        self.pruner = Pruner(
            RetentionStore(database),
            clock=clock,
            logger=_log,
            metrics=metrics,
            usage_days=config.usage_days,
            request_log_days=config.request_log_days,
            lifetime_seconds=config.hard_lifetime_seconds,
        )

        self.quota = self._make_quota()

    def jobs(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What goes on until the service stops, by name."""
        yield "catalogue", self.catalogue.run()
        yield "sweeper", self.sweeper.run()
        yield "roller", self.roller.run()
        yield "pruner", self.pruner.run()

    def needs(self) -> list[Callable[[], Awaitable[None]]]:
        """What has to answer before callers are served: who chose to admit without limits is served without Redis."""
        return [self._store.ping] if self._admit_when_lost else [self._store.ping, self._limiter.ping]

    def add_services(self, server: GrpcServer) -> None:
        """Puts every service on the server."""
        package = "naru.api.accounting.v1"
        server.add(quota_service_pb2_grpc.add_QuotaServiceServicer_to_server, self.quota, f"{package}.QuotaService")
        server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, self._usage(), f"{package}.UsageService")
        server.add(tier_service_pb2_grpc.add_TierServiceServicer_to_server, self._tiers(), f"{package}.TierService")
        server.add(
            budget_service_pb2_grpc.add_BudgetServiceServicer_to_server, self._budgets(), f"{package}.BudgetService"
        )
        server.add(
            pricing_service_pb2_grpc.add_PricingServiceServicer_to_server, self._pricing(), f"{package}.PricingService"
        )
        server.add(
            ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server, self._ledger(), f"{package}.LedgerService"
        )

    def _make_sweeper(self) -> Sweeper:
        epochs = EpochKeeper(
            limiter=self._limiter,
            store=self._store,
            recovery_store=self._recovery_store,
            catalogue=self.catalogue,
            logger=_log,
            recovery_seconds=self._config.recovery_seconds,
            zone=ZoneInfo(self._config.time_zone),
            new_id=uuid7,
        )
        return Sweeper(
            store=self._store,
            limiter=self._limiter,
            recorder=self._recorder,
            epochs=epochs,
            balances=BalanceKeeper(LedgerStore(self._database), Balances(self._limiter), _log),
            clock=self._clock,
            logger=_log,
            metrics=self._metrics,
            lease_seconds=self._config.lease_seconds,
        )

    def _make_quota(self) -> QuotaServicer:
        key = self._config.outcome_key
        sealer = None if key is None else Sealer(key, os.urandom)
        outcomes = Outcomes(self._limiter, sealer, logger=_log, metrics=self._metrics)
        reservations = Reservations(
            limiter=self._limiter,
            catalogue=self.catalogue,
            outcomes=outcomes,
            clock=self._clock,
            logger=_log,
            metrics=self._metrics,
            lease_seconds=self._config.lease_seconds,
            admit_when_lost=self._admit_when_lost,
            refuse_unpriced=self._config.unpriced_models == "refuse",
        )
        restorer = Restorer(reservations, self._recovery_store, self._recorder)
        return QuotaServicer(reservations, outcomes, restorer.restore, self._tracing)

    def _usage(self) -> UsageServicer:
        return UsageServicer(
            recorder=self._recorder,
            pruner=self.pruner,
            reports=ReportStore(self._database),
            requests=RequestStore(self._database),
            clock=self._clock,
            logger=_log,
        )

    def _tiers(self) -> TierServicer:
        manager = TierManager(
            store=self._catalogue_store,
            file_tiers=self._file_tiers,
            tier_in_use=self._keys.have_tier,
            refresh=self.catalogue.refresh,
            clock=self._clock,
        )
        return TierServicer(manager)

    def _budgets(self) -> BudgetServicer:
        manager = BudgetManager(
            store=self._catalogue_store,
            file_tiers=self._file_tiers,
            refresh=self.catalogue.refresh,
            clock=self._clock,
            new_id=uuid7,
        )
        return BudgetServicer(manager)

    def _pricing(self) -> PricingServicer:
        manager = PriceManager(
            store=self._catalogue_store,
            refresh=self.catalogue.refresh,
            clock=self._clock,
            limiter_time=self._limiter.time,
            new_id=uuid7,
        )
        return PricingServicer(manager)

    def _ledger(self) -> LedgerServicer:
        manager = LedgerManager(
            store=LedgerStore(self._database),
            limiter=self._limiter,
            balances=Balances(self._limiter),
            refresh=self.catalogue.refresh,
            clock=self._clock,
            new_id=uuid7,
        )
        verifier = LedgerVerifier(
            database=self._database,
            limiter=self._limiter,
            unsettled=self._store.unsettled,
            clock=self._clock,
            lease_seconds=self._config.lease_seconds,
        )
        return LedgerServicer(manager, verifier)
