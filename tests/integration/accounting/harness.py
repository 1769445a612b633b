"""What tests of accounting say often."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from alembic import command

from accounting.catalogue.keeper import CatalogueKeeper
from accounting.catalogue.store import CatalogueStore
from accounting.epoch import EpochKeeper
from accounting.ledger.balance_keeper import BalanceKeeper
from accounting.ledger.store import LedgerStore
from accounting.limiter.balances import Balances
from accounting.limiter.limiter import Limiter, connect
from accounting.limiter.outcomes import Outcomes, Sealer
from accounting.limiter.reservations import Reservations
from accounting.limits import LimitRule, Tier, TierLimit
from accounting.migrations import MIGRATIONS
from accounting.quota import Decision, EventRef, Grant, Limit, LimitKind, LimitScope, LimitWindow, Reservation, Work
from accounting.settlement import BookedEvent, UsageEvent
from accounting.sweeper import Sweeper
from accounting.usage.recording import Recorder
from accounting.usage.recovery_store import RecoveryStore
from accounting.usage.report_store import ReportStore
from accounting.usage.reporting import UsageQuery
from accounting.usage.restoring import Restorer
from accounting.usage.store import UsageStore
from naru.clock import SystemClock
from naru.database import Database
from naru.errors import NaruError
from naru.identity import Principal
from naru.ids import uuid7
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.testing.clock import FakeClock
from naru.usage import Accuracy, Evidence, Outcome, Usage
from tests.support.copies import replace

SECOND = 1_000_000
START = 1_800_000_000 * SECOND
PRINCIPAL = Principal("ws-1", tier="free", key_id="key-1", user_id="user-1")
WORK = Work(PRINCIPAL, "gpt-4o-mini", "smollm2", "/v1/chat/completions", "req_1")
NEVER = 10**18
METERED = Tier(
    "metered",
    (
        TierLimit(LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, 100)),
        TierLimit(LimitRule(LimitKind.TOTAL_TOKENS, LimitWindow.HOUR, 10_000)),
        TierLimit(LimitRule(LimitKind.CONCURRENCY, LimitWindow.NONE, 4)),
    ),
)
LOG = get_logger("test")
ZONE = ZoneInfo("Asia/Seoul")
SECRET = "a secret of at least 32 characters"


def new_limiter(redis_url: str, *, now: int | None = None) -> Limiter:
    """A limiter with the usual settings; `now` in microseconds stands still, None is the time of Redis."""
    return Limiter(
        connect(redis_url), lease_seconds=60, lifetime_seconds=3_600, zone=ZONE, clock=SystemClock(), now=now
    )


def new_outcomes(limiter: Limiter, metrics: Metrics, secret: str = SECRET) -> Outcomes:
    """Outcomes that are kept with a secret."""
    return Outcomes(limiter, Sealer(secret, os.urandom), logger=LOG, metrics=metrics)


def new_ref(attempt: int = 0) -> EventRef:
    """An attempt of an event that is new."""
    return EventRef(uuid7(), attempt)


def per_minute(limit: int, kind: LimitKind = LimitKind.REQUESTS) -> Limit:
    """A limit of the key per minute."""
    return Limit(LimitScope.KEY, "key-1", kind, LimitWindow.MINUTE, limit)


def in_flight(limit: int) -> Limit:
    """A limit on what is in flight."""
    return Limit(LimitScope.KEY, "key-1", LimitKind.CONCURRENCY, LimitWindow.NONE, limit)


def reservation(ref: EventRef | None = None, **fields: Any) -> Reservation:
    """A reservation of 10 and 20 tokens."""
    made = Reservation(ref or new_ref(), 0, WORK, 10, 20)
    return replace(made, **fields)


def report(ref: EventRef, evidence: Evidence = Evidence.FINAL, tokens: tuple[int, int] = (7, 3)) -> UsageEvent:
    """A report with this many prompt and completion tokens."""
    accuracy = Accuracy.EXACT if evidence is Evidence.FINAL else Accuracy.ESTIMATED
    outcome = Outcome.COMPLETED if evidence is Evidence.FINAL else Outcome.FAILED
    return UsageEvent(ref, evidence, accuracy, outcome, WORK, Usage(*tokens), accept_time=START)


def booked(event: UsageEvent, reserve_time: int = START) -> BookedEvent:
    """The report, booked."""
    return BookedEvent(event, reserve_time)


class Books:
    """A whole accounting, without a server."""

    def __init__(
        self,
        database: Database,
        limiter: Limiter,
        clock: FakeClock,
        *,
        recovery_seconds: float = 90,
        recovery_store: RecoveryStore | None = None,
    ) -> None:
        self.database, self.limiter, self.clock = database, limiter, clock
        self.store, self.reports = UsageStore(database), ReportStore(database)
        self.metrics = metrics = Metrics()
        self.recovery_store = recovery_store or RecoveryStore(database)
        self.catalogue_store = CatalogueStore(database)
        self.catalogue = CatalogueKeeper(self.catalogue_store, {"metered": METERED}, clock, LOG)
        self.recorder = Recorder(
            store=self.store, limiter=limiter, catalogue=self.catalogue, clock=clock, logger=LOG, metrics=metrics
        )
        self.reservations = self._reservations(metrics, admit_when_lost=False)
        self.restorer = Restorer(self.reservations, self.recovery_store, self.recorder)
        self.open_reservations = self._reservations(Metrics(), admit_when_lost=True)
        self.epochs = EpochKeeper(
            limiter=limiter,
            store=self.store,
            recovery_store=self.recovery_store,
            catalogue=self.catalogue,
            logger=LOG,
            recovery_seconds=recovery_seconds,
            zone=ZONE,
            new_id=uuid7,
        )
        self.sweeper = Sweeper(
            store=self.store,
            limiter=limiter,
            recorder=self.recorder,
            epochs=self.epochs,
            balances=BalanceKeeper(LedgerStore(database), Balances(limiter), LOG),
            clock=clock,
            logger=LOG,
            metrics=metrics,
            lease_seconds=60,
        )

    def _reservations(self, metrics: Metrics, *, admit_when_lost: bool) -> Reservations:
        return Reservations(
            limiter=self.limiter,
            catalogue=self.catalogue,
            outcomes=new_outcomes(self.limiter, metrics),
            clock=self.clock,
            logger=LOG,
            metrics=metrics,
            lease_seconds=60,
            admit_when_lost=admit_when_lost,
        )

    async def reserve(self, tier: str = "free", **fields: Any) -> Decision:
        """Reserves for a principal of a tier."""
        work = replace(WORK, principal=replace(PRINCIPAL, tier=tier))
        (decision,) = await self.reservations.reserve([reservation(work=work, **fields)])
        return decision

    async def granted(self, tier: str = "free", **fields: Any) -> EventRef:
        """Reserves, and asserts that it was granted."""
        decision = await self.reserve(tier, **fields)
        assert isinstance(decision.outcome, Grant), decision.outcome
        return decision.ref

    async def remaining(self, tier: str = "metered") -> dict[LimitKind, int]:
        """What is left of each limit, without taking anything."""
        overview = await self.reservations.overview(replace(PRINCIPAL, tier=tier), "", WORK.served_model)
        return {state.limit.kind: state.remaining for state in overview.limits}

    def advance(self, seconds: float) -> None:
        """Lets time pass for everybody."""
        self.clock.advance(seconds)
        assert self.limiter.now is not None
        self.limiter.now += round(seconds * SECOND)

    async def total(self) -> tuple[int, int, int]:
        """Requests, prompt and completion tokens that count."""
        (row,) = await self.reports.usage(UsageQuery(), None, 10)
        return row.requests, row.usage.prompt_tokens, row.usage.completion_tokens

    async def rows(self, table: sa.Table) -> list[Any]:
        """All of a table."""
        async with self.database.reading() as connection:
            return list((await connection.execute(sa.select(table))).all())


async def empty(redis_url: str) -> None:
    """What a restart without persistence does."""
    redis = connect(redis_url)
    await redis.flushall()
    await redis.aclose()


async def refused(call: Awaitable[Any]) -> NaruError:
    """The error that `call` fails with."""
    with pytest.raises(NaruError) as failure:
        await call
    return failure.value


async def eventually(condition: Callable[[], Awaitable[bool]], within: float = 20.0) -> None:
    """Returns when `condition` holds. Raises TimeoutError when it does not within `within` seconds."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)


def upgrade_to(connection: sa.Connection, revision: str) -> None:
    """Makes the schema of an earlier version."""
    config = MIGRATIONS._config()
    config.attributes.update(connection=connection, version_table=MIGRATIONS._version_table)
    command.upgrade(config, revision)
