"""How much accounting carries: the real service, Redis and PostgreSQL, asked over gRPC as the edge and inference ask.

`python -m bench.accounting` prints a table. Figures depend on the machine and on what else it does; those of
`docs/performance.md` name theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from naru.api.accounting.v1 import (
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.api.common.v1 import principal_pb2, usage_pb2
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto
from naru.identity import ServiceName
from naru.ids import uuid7
from naru.testing.postgres_server import postgres_cluster
from naru.testing.redis_server import free_port, redis_server

KEYS = 200
TIERS = """
[bench]
limits = [
  { kind = "requests", window = "minute", limit = 1_000_000_000 },
  { kind = "requests", window = "hour", limit = 1_000_000_000 },
  { kind = "total_tokens", window = "minute", limit = 1_000_000_000_000 },
  { kind = "concurrency", limit = 1_000_000_000 },
  { scope = "workspace", kind = "cost", window = "month", limit = 1_000_000_000_000_000 },
]
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the service is, and a token for each of its callers."""

    target: str
    tokens: dict[ServiceName, str]

    def client(self, name: ServiceName) -> ServiceClient:
        """A client that calls as a service."""
        return ServiceClient(self.target, name="accounting", service_token=self.tokens[name])


@contextmanager
def accounting(database_url: str, redis_url: str) -> Iterator[Address]:
    """The service in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as name:
        folder = Path(name)
        tokens = {service: secrets.token_hex(32) for service in ServiceName}
        for service, token in tokens.items():
            (folder / f"service-token-{service}").write_text(token)
        (folder / "tiers.toml").write_text(TIERS)
        port, ops_port = free_port(), free_port()
        environ = {
            **os.environ,
            "NARU_ACCOUNTING_PORT": str(port),
            "NARU_ACCOUNTING_OPS_PORT": str(ops_port),
            "NARU_ACCOUNTING_DATABASE_URL": database_url,
            "NARU_ACCOUNTING_REDIS_URL": redis_url,
            "NARU_ACCOUNTING_TIERS_FILE": str(folder / "tiers.toml"),
            "NARU_SERVICE_TOKENS_DIR": str(folder),
            "NARU_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "accounting"]
        subprocess.run([*command, "migrate"], env=environ, check=True)
        with subprocess.Popen(command, env=environ) as process:
            try:
                _wait_until_ready(f"http://127.0.0.1:{ops_port}/readyz")
                yield Address(f"127.0.0.1:{port}", tokens)
            finally:
                process.terminate()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("accounting was not ready within 60 s")


def _principal(number: int) -> principal_pb2.Principal:
    return principal_pb2.Principal(
        key_id=f"key{number % KEYS:09d}", workspace_id=f"ws-{number % 20}", role=principal_pb2.ROLE_USER, tier="bench"
    )


def _reservation(number: int) -> quota_service_pb2.Reservation:
    return quota_service_pb2.Reservation(
        event_id=uuid7(),
        principal=_principal(number),
        requested_model="m",
        served_model="m",
        endpoint="/v1/chat/completions",
        input_tokens=500,
        output_tokens=200,
        request_id="req_bench",
    )


def _event(event_id: str, number: int, now: float) -> usage_event_pb2.UsageEvent:
    return usage_event_pb2.UsageEvent(
        event_id=event_id,
        evidence=usage_event_pb2.EVIDENCE_FINAL,
        accuracy=usage_event_pb2.ACCURACY_EXACT,
        outcome=usage_event_pb2.OUTCOME_COMPLETED,
        principal=_principal(number),
        requested_model="m",
        served_model="m",
        endpoint="/v1/chat/completions",
        usage=usage_pb2.Usage(prompt_tokens=480, completion_tokens=150),
        accept_time=timestamp_to_proto(now),
        end_time=timestamp_to_proto(now),
        request_id="req_bench",
        replica="bench",
        epoch="bench",
    )


async def saturate(call: Callable[[int], Awaitable[int]], *, workers: int, seconds: float) -> float:
    """Items per second that `call` gets through, with so many calls in flight."""
    done, stop = 0, time.monotonic() + seconds

    async def work(worker: int) -> None:
        nonlocal done
        turn = worker
        while time.monotonic() < stop:
            items = await call(turn)
            done += items
            turn += workers

    started = time.monotonic()
    await asyncio.gather(*(work(worker) for worker in range(workers)))
    return done / (time.monotonic() - started)


async def pace(call: Callable[[int], Awaitable[int]], *, calls_per_second: float, seconds: float) -> list[float]:
    """How long each of so many calls a second takes, begun on time whether the ones before have ended or not."""
    latencies: list[float] = []

    async def timed(turn: int, due: float) -> None:
        await call(turn)
        # From when it was due: a machine that is late is slow.
        latencies.append(time.monotonic() - due)

    started, tasks = time.monotonic(), []
    for turn in range(int(calls_per_second * seconds)):
        due = started + turn / calls_per_second
        await asyncio.sleep(max(due - time.monotonic(), 0))
        tasks.append(asyncio.create_task(timed(turn, due)))
    await asyncio.gather(*tasks)
    return sorted(latencies)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the ordered values does not exceed."""
    return values[min(int(len(values) * share), len(values) - 1)]


async def measure_reserve(address: Address, seconds: float) -> list[str]:
    """The event ids that were reserved last, for settling."""
    client = address.client(ServiceName.EDGE)
    stub = quota_service_pb2_grpc.QuotaServiceStub(client.channel)
    reserved: list[str] = []

    def reserving(size: int) -> Callable[[int], Awaitable[int]]:
        async def reserve(turn: int) -> int:
            items = [_reservation(turn * size + index) for index in range(size)]
            response = await client.call(stub.Reserve, quota_service_pb2.ReserveRequest(items=items), timeout=30)
            granted = [result.event_id for result in response.results if result.HasField("grant")]
            if len(granted) != size:
                raise RuntimeError(f"refused: {response.results[0].refusal}")
            reserved.extend(granted)
            return size

        return reserve

    await saturate(reserving(16), workers=4, seconds=1)
    rate = 0.0
    for size in (1, 16, 64):
        rate = await saturate(reserving(size), workers=8, seconds=seconds)
        print(f"Reserve, {size:3d} items a call, 8 calls in flight   {rate:10,.0f} items/s")
    half = rate / 2
    latencies = await pace(reserving(16), calls_per_second=half / 16, seconds=seconds)
    for share in (0.5, 0.99):
        value = percentile(latencies, share) * 1_000
        print(f"Reserve, 16 a call, {half:,.0f} items/s, p{share * 100:.0f}         {value:10.2f} ms")
    await client.close()
    return reserved


async def measure_record(address: Address, reserved: Sequence[str], seconds: float) -> None:
    """Final reports, first of what was reserved, then of what the limiter never heard of."""
    client = address.client(ServiceName.INFERENCE)
    stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
    known = iter(reserved)

    def recording(size: int) -> Callable[[int], Awaitable[int]]:
        async def record(turn: int) -> int:
            now = time.time()
            events = [_event(next(known, None) or uuid7(), turn * size + index, now) for index in range(size)]
            request = usage_service_pb2.RecordUsageRequest(events=events)
            response = await client.call(stub.RecordUsage, request, timeout=60)
            if any(one.status != usage_service_pb2.RECORD_USAGE_STATUS_RECORDED for one in response.results):
                raise RuntimeError(f"not recorded: {response.results[0]}")
            return size

        return record

    for size in (64, 512):
        rate = await saturate(recording(size), workers=4, seconds=seconds)
        print(f"RecordUsage, {size:3d} events a call, 4 calls in flight {rate:7,.0f} events/s")
    await client.close()


async def run(address: Address, seconds: float) -> None:
    """All measurements."""
    reserved = await measure_reserve(address, seconds)
    await measure_record(address, reserved, seconds)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    arguments = parser.parse_args()
    with redis_server() as redis_url, postgres_cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        sqlite = f"sqlite+aiosqlite:///{folder}/accounting.db"
        database_url = cluster.new_database() if arguments.database == "postgresql" else sqlite
        with accounting(database_url, redis_url) as address:
            asyncio.run(run(address, arguments.seconds))


if __name__ == "__main__":
    main()
