"""How many reservations accounting decides on, and how fast it answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from bench.cpu import Meter
from bench.load import pace, percentile, saturate
from bench.service import MODEL, Address, principal, reservation
from edge.accounts import Reservation
from edge.clients import QuotaClient
from naru.api.accounting.v1 import quota_service_pb2, quota_service_pb2_grpc
from naru.client import ServiceClient
from naru.clock import SystemClock
from naru.convert import principal_from_proto
from naru.identity import ServiceName
from naru.ids import uuid7
from naru.lifecycle import Background

_HALF = 1_500
"""Requests a second of which the time each takes is measured: half of what is promised."""
_ROUNDS = 5
_ASKING = 256  # requests that wait for their reservation at once
_EMPTY_CALLS = 2_000
_PRINCIPALS = [principal_from_proto(principal(number)) for number in range(200)]


async def measure_reserve(address: Address, pids: Mapping[str, int], seconds: float) -> None:
    """Half of what is promised, on time; then as many as it can, call by call and as the edge asks.

    In this order, because nobody ends the requests: the sweeper takes back the hundreds of thousands that a flood leaves while
    whatever comes after it is measured.
    """
    client = address.client(ServiceName.EDGE)
    await saturate(_calling(client, 16), workers=4, seconds=1)
    background = Background(lambda *_: None)
    quota = QuotaClient(client, SystemClock(), background, dropped=lambda *_: None)
    await _time_empty_calls(client)
    for _ in range(_ROUNDS):
        latencies = await pace(_requesting(quota), calls_per_second=_HALF, seconds=seconds)
        _print_latency(f"{_HALF:,} requests/s by the edge", latencies)
    for size in (4, 16):
        latencies = await pace(_calling(client, size), calls_per_second=_HALF / size, seconds=seconds)
        _print_latency(f"{_HALF:,} items/s, {size} a call", latencies)
    for size in (1, 16, 64):
        await _saturate(f"{size:3d} items a call, 8 calls in flight", _calling(client, size), 8, pids, seconds)
    await _saturate(f"{_ASKING} requests waiting, by the edge", _requesting(quota), _ASKING, pids, seconds)
    await background.close()
    await client.close()


def _calling(client: ServiceClient, size: int) -> Callable[[int], Awaitable[int]]:
    """Reserves with calls of so many items."""
    stub = quota_service_pb2_grpc.QuotaServiceStub(client.channel)

    async def reserve(turn: int) -> int:
        items = [reservation(turn * size + index) for index in range(size)]
        response = await client.call(stub.Reserve, quota_service_pb2.ReserveRequest(items=items), timeout=30)
        granted = [result.event_id for result in response.results if result.HasField("grant")]
        if len(granted) != size:
            raise RuntimeError(f"refused: {response.results[0].refusal}")
        return size

    return reserve


def _requesting(quota: QuotaClient) -> Callable[[int], Awaitable[int]]:
    """Reserves for one request, as the edge does: with others that ask meanwhile."""

    async def reserve(turn: int) -> int:
        asked = Reservation(
            event_id=uuid7(),
            attempt=0,
            revision=0,
            principal=_PRINCIPALS[turn % len(_PRINCIPALS)],
            client_address="",
            requested_model=MODEL,
            served_model=MODEL,
            endpoint="/v1/chat/completions",
            input_tokens=500,
            output_tokens=200,
            choices=1,
            request_id="req_bench",
        )
        result = await quota.reserve(asked)
        if result.refusal is not None:
            raise RuntimeError(f"refused: {result.refusal}")
        return 1

    return reserve


async def _saturate(
    what: str, call: Callable[[int], Awaitable[int]], workers: int, pids: Mapping[str, int], seconds: float
) -> None:
    meter = Meter(pids)
    rate = await saturate(call, workers=workers, seconds=seconds)
    took = meter.report(round(rate * seconds))
    print(f"Reserve, {what:40} {rate:8,.0f} items/s ({took})")


async def _time_empty_calls(client: ServiceClient) -> None:
    """What a call costs that asks for nothing, one at a time: the floor of all the others on this machine."""
    stub = quota_service_pb2_grpc.QuotaServiceStub(client.channel)
    latencies = []
    for _ in range(_EMPTY_CALLS):
        started = time.monotonic()
        await client.call(stub.Release, quota_service_pb2.ReleaseRequest(), timeout=30)
        latencies.append(time.monotonic() - started)
    _print_latency("a call without items, one at a time", sorted(latencies))


def _print_latency(what: str, latencies: list[float]) -> None:
    half, most = (percentile(latencies, share) * 1_000 for share in (0.5, 0.99))
    print(f"Reserve, {what:40} p50 {half:6.2f} ms, p99 {most:6.2f} ms")
