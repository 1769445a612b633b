"""How many reservations accounting decides on, and how fast it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from bench.cpu import Meter
from bench.load import pace, percentile, saturate
from bench.service import Address, reservation
from naru.api.accounting.v1 import quota_service_pb2, quota_service_pb2_grpc
from naru.identity import ServiceName

_HALF = 1_500
"""Items a second of which the time each call takes is measured: half of what is promised."""


async def measure_reserve(address: Address, pids: Mapping[str, int], seconds: float) -> None:
    """As many as it can, then half of what is promised, on time."""
    client = address.client(ServiceName.EDGE)
    stub = quota_service_pb2_grpc.QuotaServiceStub(client.channel)

    def reserving(size: int) -> Callable[[int], Awaitable[int]]:
        async def reserve(turn: int) -> int:
            items = [reservation(turn * size + index) for index in range(size)]
            response = await client.call(stub.Reserve, quota_service_pb2.ReserveRequest(items=items), timeout=30)
            granted = [result.event_id for result in response.results if result.HasField("grant")]
            if len(granted) != size:
                raise RuntimeError(f"refused: {response.results[0].refusal}")
            return size

        return reserve

    await saturate(reserving(16), workers=4, seconds=1)
    for size in (1, 16, 64):
        meter = Meter(pids)
        rate = await saturate(reserving(size), workers=8, seconds=seconds)
        took = meter.report(round(rate * seconds))
        print(f"Reserve, {size:3d} items a call, 8 calls in flight   {rate:10,.0f} items/s ({took})")
    for size in (4, 16):
        latencies = await pace(reserving(size), calls_per_second=_HALF / size, seconds=seconds)
        half, most = (percentile(latencies, share) * 1_000 for share in (0.5, 0.99))
        print(f"Reserve, {size:3d} items a call, {_HALF:,} items/s, p50 {half:.2f} ms, p99 {most:.2f} ms")
    await client.close()
