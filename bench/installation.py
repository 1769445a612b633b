"""A whole installation for long runs: the four services on the simulated engine, Redis with its AOF, and PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from naru.api.accounting.v1 import (
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    limit_pb2,
    price_pb2,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
)
from naru.testing.postgres_server import PostgresServer, postgres_cluster
from tests.support.platform import MODEL, Platform, platform

INPUT_PRICE, OUTPUT_PRICE = 2, 5
"""Nano-units of a token."""
_CREDIT = 1_000_000_000_000_000
_SECONDS = 10
_VERIFY_SECONDS = 120
# Limits of every kind are counted, and so high that they refuse nobody.
TIERS = """
[busy]
limits = [
  { kind = "requests", window = "minute", limit = 1_000_000_000 },
  { kind = "total_tokens", window = "hour", limit = 1_000_000_000_000 },
  { scope = "workspace", kind = "cost", window = "month", limit = 1_000_000_000_000_000 },
  { kind = "concurrency", limit = 1_000_000 },
]

[narrow]
limits = [{ kind = "requests", window = "minute", limit = 10 }]
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """What runs, and where its books are."""

    naru: Platform
    postgres: PostgresServer
    database_url: str


@contextmanager
def installation(folder: Path, environ: Mapping[str, str]) -> Iterator[Installation]:
    """Runs one whose only workspace pays in advance, and that has the tiers `busy` and `narrow`."""
    folder.mkdir(exist_ok=True)
    (folder / "tiers.toml").write_text(TIERS)
    with postgres_cluster() as postgres:
        url = postgres.new_database()
        own = {
            "NARU_INFERENCE_ENGINE": "simulated",
            "NARU_ACCOUNTING_DATABASE_URL": url,
            "NARU_ACCOUNTING_TIERS_FILE": str(folder / "tiers.toml"),
            "NARU_LOG_LEVEL": "warning",
        }
        with platform(folder / "state", own | dict(environ)) as naru:
            _pay_in_advance(naru)
            yield Installation(naru, postgres, url)


def balance(naru: Platform) -> ledger_service_pb2.Balance:
    """How the account of the only workspace stands."""
    with naru.channel("ACCOUNTING") as channel:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        request = ledger_service_pb2.GetBalanceRequest()
        return stub.GetBalance(request, metadata=naru.bearer(), timeout=_SECONDS).balance


def credit_left(naru: Platform) -> int:
    """What the limiter says that the workspace may still use, in nano-units: less than the balance while anything is reserved."""
    with naru.channel("ACCOUNTING") as channel:
        stub = quota_service_pb2_grpc.QuotaServiceStub(channel)
        limits = stub.GetLimits(quota_service_pb2.GetLimitsRequest(), metadata=naru.bearer(), timeout=_SECONDS).limits
    (left,) = [one.remaining for one in limits if one.window == limit_pb2.LIMIT_WINDOW_TOTAL]
    return left


def verify_ledger(naru: Platform) -> ledger_service_pb2.VerifyLedgerResponse:
    """What the service itself says of its books."""
    with naru.channel("ACCOUNTING") as channel:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        request = ledger_service_pb2.VerifyLedgerRequest()
        return stub.VerifyLedger(request, metadata=naru.bearer(), timeout=_VERIFY_SECONDS)


def _pay_in_advance(naru: Platform) -> None:
    """Gives the workspace credit, and the model a price; returns when that is in force."""
    prices = price_pb2.UnitPrices(
        input_million=INPUT_PRICE * 1_000_000,
        cached_input_million=INPUT_PRICE * 1_000_000,
        output_million=OUTPUT_PRICE * 1_000_000,
    )
    wanted = pricing_service_pb2.CreatePriceRequest(price=price_pb2.Price(model=MODEL, unit_prices=prices))
    credit = ledger_service_pb2.CreditRequest(
        request_id=str(uuid4()),
        workspace_id=balance(naru).workspace_id,
        credit=ledger_service_pb2.LedgerCredit(
            kind=ledger_service_pb2.LEDGER_ENTRY_KIND_CREDIT, amount=_CREDIT, description="for all that comes"
        ),
    )
    with naru.channel("ACCOUNTING") as channel:
        pricing = pricing_service_pb2_grpc.PricingServiceStub(channel)
        price = pricing.CreatePrice(wanted, metadata=naru.bearer(), timeout=_SECONDS).price
        ledger_service_pb2_grpc.LedgerServiceStub(channel).Credit(credit, metadata=naru.bearer(), timeout=_SECONDS)
    time.sleep(max(price.effective_time.ToSeconds() + 1 - price.create_time.ToSeconds(), 0))
