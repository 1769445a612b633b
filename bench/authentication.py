"""How many keys authsvc tells in a second, and what a known key costs an edge: the real service and PostgreSQL, over gRPC.

`python -m bench.authentication` prints both. Figures depend on the machine and on what else it does; those of
`docs/performance.md` name theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench.cpu import Meter
from bench.load import percentile, saturate
from bench.service import Address, wait_until_ready
from naru.api.auth.v1 import api_key_service_pb2, api_key_service_pb2_grpc, auth_service_pb2, auth_service_pb2_grpc
from naru.client import ServiceClient
from naru.clock import SystemClock
from naru.credentials import CachedAuthenticator
from naru.identity import ServiceName
from naru.lifecycle import Lifecycle
from naru.testing.postgres_server import postgres_cluster
from naru.testing.redis_server import free_port

KEYS, CALLERS, KNOWN_CALLS = 500, 64, 200_000
_TIMEOUT = 30.0


@contextmanager
def authsvc(database_url: str) -> Iterator[Address]:
    """The service in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as name:
        folder = Path(name)
        tokens = {service: secrets.token_hex(32) for service in ServiceName}
        for service, token in tokens.items():
            (folder / f"service-token-{service}").write_text(token)
        (folder / "pepper").write_text(secrets.token_hex(32))
        port, ops_port = free_port(), free_port()
        environ = {
            **os.environ,
            "NARU_AUTHSVC_PORT": str(port),
            "NARU_AUTHSVC_OPS_PORT": str(ops_port),
            "NARU_AUTHSVC_DATABASE_URL": database_url,
            "NARU_AUTHSVC_PEPPER_FILES": f"1:{folder}/pepper",
            "NARU_SERVICE_TOKENS_DIR": str(folder),
            "NARU_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "authsvc"]
        subprocess.run([*command, "migrate"], env=environ, check=True)
        with subprocess.Popen(command, env=environ) as process:
            try:
                wait_until_ready(f"http://127.0.0.1:{ops_port}/readyz", "authsvc")
                yield Address(f"127.0.0.1:{port}", tokens, process.pid)
            finally:
                process.terminate()


async def bootstrap(address: Address) -> ServiceClient:
    """A client with an administrator's key."""
    operator = ServiceClient(address.target, name="authsvc", service_token=address.tokens[ServiceName.OPERATOR])
    stub = auth_service_pb2_grpc.AuthServiceStub(operator.channel)
    made = await operator.call(stub.Bootstrap, auth_service_pb2.BootstrapRequest(), timeout=_TIMEOUT)
    await operator.close()
    return ServiceClient(address.target, name="authsvc", credential=made.api_key)


async def make_keys(admin: ServiceClient, count: int) -> list[str]:
    """The texts of new keys."""
    create = api_key_service_pb2_grpc.ApiKeyServiceStub(admin.channel).CreateApiKey
    return [
        (await admin.call(create, api_key_service_pb2.CreateApiKeyRequest(), timeout=_TIMEOUT)).secret_key
        for _ in range(count)
    ]


async def measure_authenticate(
    client: ServiceClient, texts: list[str], seconds: float, pids: Mapping[str, int]
) -> None:
    """Prints how many keys, each answered by the database, are told in a second, and what they take: by calls, and by an edge."""
    stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)

    async def by_call(turn: int) -> None:
        request = auth_service_pb2.AuthenticateRequest(credential=texts[turn % len(texts)])
        await client.call(stub.Authenticate, request, timeout=_TIMEOUT)

    background = Lifecycle().background
    edges = {0: CachedAuthenticator(client, SystemClock(), background)}

    async def by_edge(turn: int) -> None:
        era, place = divmod(turn, len(texts))
        # One that was just started knows nobody.
        edge = edges.get(era) or edges.setdefault(era, CachedAuthenticator(client, SystemClock(), background))
        assert edge.known(texts[place]) is None
        await edge.authenticate(texts[place])

    for name, ask in (("Authenticate", by_call), ("an edge's lookups", by_edge)):
        await _measure(name, ask, seconds, pids)


async def _measure(name: str, ask: Callable[[int], Awaitable[None]], seconds: float, pids: Mapping[str, int]) -> None:
    latencies: list[float] = []

    async def call(turn: int) -> int:
        started = time.perf_counter()
        await ask(turn)
        latencies.append(time.perf_counter() - started)
        return 1

    meter = Meter(pids)
    rate = await saturate(call, workers=CALLERS, seconds=seconds)
    latencies.sort()
    middle, late = (1e3 * percentile(latencies, share) for share in (0.5, 0.99))
    print(f"{name}: {rate:,.0f}/s by {CALLERS} callers, p50 {middle:.1f} ms, p99 {late:.1f} ms")
    print(f"CPU of each: {meter.report(len(latencies))}")


async def measure_known(client: ServiceClient, texts: list[str]) -> None:
    """Prints how long an edge takes to tell who a key that it knows belongs to."""
    cache = CachedAuthenticator(client, SystemClock(), Lifecycle().background)
    watching = asyncio.create_task(cache.watch())
    for text in texts:
        await cache.authenticate(text, "192.0.2.1")
    ordered = list(itertools.islice(itertools.cycle(texts), KNOWN_CALLS))
    assert cache.watching
    started = time.perf_counter()
    known = sum(cache.known(text, "192.0.2.1") is not None for text in ordered)
    elapsed = time.perf_counter() - started
    watching.cancel()
    await asyncio.wait([watching])
    print(f"known at the edge: {1e6 * elapsed / known:.2f} µs")


async def measure(address: Address, seconds: float, pids: Mapping[str, int]) -> None:
    """Prints both."""
    admin = await bootstrap(address)
    texts = await make_keys(admin, KEYS)
    await admin.close()
    client = ServiceClient(address.target, name="authsvc", service_token=address.tokens[ServiceName.EDGE])
    await measure_authenticate(client, texts, seconds, pids)
    await measure_known(client, texts)
    await client.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    # The disk is waited for, as in production.
    with postgres_cluster(durable=True) as cluster, authsvc(cluster.new_database()) as address:
        pids = {"authsvc": address.pid, "PostgreSQL": cluster.pid, "all of it": os.getpid()}
        uvloop.run(measure(address, arguments.seconds, pids))


if __name__ == "__main__":
    main()
