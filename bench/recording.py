"""How many reports of usage accounting writes, each with its event, its entry in the ledger and two postings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from bench.cpu import Meter, each
from bench.service import KEYS, MODEL, WORKSPACES, Address, principal, reservation
from naru.api.accounting.v1 import (
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    price_pb2,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.api.common.v1 import usage_pb2
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto
from naru.identity import ServiceName
from naru.ids import uuid7

_CALLS = 8
# Events that are reserved at a time: as many requests run at once.
_IN_FLIGHT = 8_192
_PRICES = price_pb2.UnitPrices(input_million=150_000_000, output_million=600_000_000)
_COST = 480 * 150 + 150 * 600


async def measure_record(address: Address, pids: Mapping[str, int], events: int) -> None:
    """Final reports of what was reserved, then of what the limiter never heard of; half of the workspaces pay in advance."""
    await _set_prices(address)
    client = address.client(ServiceName.INFERENCE)
    for size in (64, 512):
        for what in ("reserved", "unknown"):
            rate, took = await _measure(client, address, pids, events, size, reserved=what == "reserved")
            print(
                f"RecordUsage, {size:3d} {what} events a call, {_CALLS} calls in flight {rate:7,.0f} events/s ({took})"
            )
    await client.close()
    await _check_books(address, 4 * events)


async def _measure(
    client: ServiceClient, address: Address, pids: Mapping[str, int], events: int, size: int, *, reserved: bool
) -> tuple[float, str]:
    """Events a second, and the CPU time that each took. To reserve them, and to write the reports, is not part of it."""
    seconds, cpu = 0.0, dict.fromkeys(pids, 0.0)
    for first in range(0, events, _IN_FLIGHT):
        count = min(_IN_FLIGHT, events - first)
        ids = await _reserve(address, count) if reserved else [uuid7() for _ in range(count)]
        requests = _requests(ids, size)
        meter, started = Meter(pids), time.monotonic()
        await _record(client, requests)
        seconds += time.monotonic() - started
        for name, taken in meter.taken().items():
            cpu[name] += taken
    return events / seconds, each(cpu, events)


def _event(event_id: str, number: int, now: float) -> usage_event_pb2.UsageEvent:
    return usage_event_pb2.UsageEvent(
        event_id=event_id,
        evidence=usage_event_pb2.EVIDENCE_FINAL,
        accuracy=usage_event_pb2.ACCURACY_EXACT,
        outcome=usage_event_pb2.OUTCOME_COMPLETED,
        principal=principal(number),
        requested_model=MODEL,
        served_model=MODEL,
        endpoint="/v1/chat/completions",
        usage=usage_pb2.Usage(prompt_tokens=480, completion_tokens=150),
        accept_time=timestamp_to_proto(now),
        end_time=timestamp_to_proto(now),
        request_id="req_bench",
        replica="bench",
        epoch="bench",
    )


async def _set_prices(address: Address) -> None:
    """A price, without which nothing would be posted, and money on the accounts of every other workspace."""
    client = address.client(ServiceName.OPERATOR)
    prices = pricing_service_pb2_grpc.PricingServiceStub(client.channel)
    price = price_pb2.Price(model=MODEL, unit_prices=_PRICES)
    made = await client.call(prices.CreatePrice, pricing_service_pb2.CreatePriceRequest(price=price), timeout=10)
    ledger = ledger_service_pb2_grpc.LedgerServiceStub(client.channel)
    for number in range(0, WORKSPACES, 2):
        credit = ledger_service_pb2.LedgerCredit(kind=ledger_service_pb2.LEDGER_ENTRY_KIND_CREDIT, amount=10**15)
        request = ledger_service_pb2.CreditRequest(workspace_id=principal(number).workspace_id, credit=credit)
        await client.call(ledger.Credit, request, timeout=10)
    await client.close()
    # Only what is reserved from then on is billed by it.
    begins = made.price.effective_time.ToMicroseconds() / 1e6
    await asyncio.sleep(max(begins - time.time(), 0) + 1)


async def _reserve(address: Address, count: int) -> list[str]:
    client = address.client(ServiceName.EDGE)
    stub = quota_service_pb2_grpc.QuotaServiceStub(client.channel)
    ids: list[str] = []
    while len(ids) < count:
        items = [reservation(number) for number in range(len(ids), min(len(ids) + KEYS, count))]
        response = await client.call(stub.Reserve, quota_service_pb2.ReserveRequest(items=items), timeout=30)
        ids += [result.event_id for result in response.results if result.HasField("grant")]
    await client.close()
    return ids


async def _record(client: ServiceClient, requests: Sequence[usage_service_pb2.RecordUsageRequest]) -> None:
    stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            response = await client.call(stub.RecordUsage, request, timeout=60)
            if any(one.status != usage_service_pb2.RECORD_USAGE_STATUS_RECORDED for one in response.results):
                raise RuntimeError(f"not recorded: {response.results[0]}")

    await asyncio.gather(*(work() for _ in range(_CALLS)))


def _requests(ids: Sequence[str], size: int) -> list[usage_service_pb2.RecordUsageRequest]:
    now = time.time()
    return [
        usage_service_pb2.RecordUsageRequest(
            events=[_event(ids[number], number, now) for number in range(first, min(first + size, len(ids)))]
        )
        for first in range(0, len(ids), size)
    ]


async def _check_books(address: Address, events: int) -> None:
    """Raises RuntimeError unless every event is in the ledger with what it costs."""
    client = address.client(ServiceName.OPERATOR)
    ledger = ledger_service_pb2_grpc.LedgerServiceStub(client.channel)
    used = 0
    for number in range(WORKSPACES):
        request = ledger_service_pb2.GetBalanceRequest(workspace_id=principal(number).workspace_id)
        used += (await client.call(ledger.GetBalance, request, timeout=10)).balance.used
    await client.close()
    if used != events * _COST:
        raise RuntimeError(f"the ledger says {used} for {events} events of {_COST}")
