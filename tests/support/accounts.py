"""What the books of a running installation say of a key: its usage, event by event, and the entries of the ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence

from naru import api_key
from naru.api.accounting.v1 import (
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    price_pb2,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.pricing import NANO
from tests.support.platform import MODEL, Platform, until

PRICES = price_pb2.UnitPrices(
    input_million=1_000 * NANO, cached_input_million=500 * NANO, output_million=4_000 * NANO, request=NANO // 4
)
"""Such that every token and every request costs a whole number of nano-units: sums are exact."""
_MOST = 1_000


def cost(requests: int, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int = 0) -> int:
    """What they cost by `PRICES`."""
    return (
        requests * NANO // 4
        + prompt_tokens * NANO // 1_000
        - cached_prompt_tokens * NANO // 2_000
        + completion_tokens * NANO // 250
    )


def sell(naru: Platform, prices: price_pb2.UnitPrices = PRICES, model: str = MODEL) -> None:
    """Sets a price for a model, and returns when it is in force."""
    with naru.channel("ACCOUNTING") as channel:
        stub = pricing_service_pb2_grpc.PricingServiceStub(channel)
        request = pricing_service_pb2.CreatePriceRequest(price=price_pb2.Price(model=model, unit_prices=prices))
        price = stub.CreatePrice(request, metadata=naru.bearer(), timeout=10).price
    time.sleep(max(price.effective_time.ToSeconds() + 1 - price.create_time.ToSeconds(), 0))


def used(naru: Platform, key: str, within: float = 30) -> usage_service_pb2.UsageRow:
    """All that a key used, once nothing of anybody runs any more."""
    until(lambda: naru.leases() == 0, within, "every request to be settled")
    with naru.channel("ACCOUNTING") as channel:
        request = usage_service_pb2.QueryUsageRequest(key_id=api_key.parse(key).key_id)
        stub = usage_service_pb2_grpc.UsageServiceStub(channel)
        return stub.QueryUsage(request, metadata=naru.bearer(), timeout=10).rows[0]


def events(naru: Platform, key: str) -> list[usage_event_pb2.UsageRecord]:
    """The settled usage of a key, attempt by attempt."""
    with naru.channel("ACCOUNTING") as channel:
        stub = usage_service_pb2_grpc.UsageServiceStub(channel)
        request = usage_service_pb2.ExportUsageRequest(key_id=api_key.parse(key).key_id)
        answers = stub.ExportUsage(request, metadata=naru.bearer(), timeout=10)
        return [record for answer in answers for record in answer.records]


def entries(naru: Platform, event_ids: Sequence[str]) -> list[ledger_service_pb2.LedgerEntry]:
    """What the ledger says of events of the administrator's workspace, among its last thousand entries."""
    with naru.channel("ACCOUNTING") as channel:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        request = ledger_service_pb2.ListEntriesRequest(page_size=_MOST)
        found = stub.ListEntries(request, metadata=naru.bearer(), timeout=10).entries
        return [entry for entry in found if entry.event_id in event_ids]


def findings(naru: Platform) -> list[ledger_service_pb2.LedgerFinding]:
    """What should not be in the books."""
    with naru.channel("ACCOUNTING") as channel:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        request = ledger_service_pb2.VerifyLedgerRequest()
        return list(stub.VerifyLedger(request, metadata=naru.bearer(), timeout=60).findings)
