"""How long a revoked key still works: from the answer of RevokeApiKey to the first refusal, at two edges under load, over HTTP.

`python -m bench.revocation`: authsvc on PostgreSQL and two edges, each in a process of its own, asked for their models with
many keys. Keys are revoked one by one; then some more while the edges hear nothing of invalidations, as behind a network that
loses all packets of that stream, and only keep what they know for 10 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvloop

from bench.authentication import authsvc, bootstrap, make_keys
from bench.load import percentile
from bench.service import Address, wait_until_ready
from naru import api_key
from naru.api.auth.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    auth_service_pb2,
    auth_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.identity import ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer
from naru.testing.postgres_server import postgres_cluster
from naru.testing.redis_server import free_ports
from tests.support.fake_accounting import FakeAccounting
from tests.support.fake_inference import FakeInference
from tests.support.service_tokens import NobodyKnown

EDGES = 2
HEARING_SECONDS, DEAF_SECONDS = 1.0, 10.0
"""What is promised of the p99."""
_TIMEOUT = 30.0
_SETTLE_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what.

    Attributes:
        keys: In use all the time.
        clients: For each edge; each asks one request after the other, with these keys by turns.
        revoked: Revoked one by one, each after the one before is refused everywhere.
        deaf: Revoked while the edges hear nothing, spread over 20 seconds.
    """

    keys: int
    clients: int
    revoked: int
    deaf: int
    seed: int


class Between(auth_service_pb2_grpc.AuthServiceServicer):
    """Stands between the edges and authsvc. While it is `cut`, no invalidation or heartbeat passes, and all else does."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self._stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        self.cut = False

    async def Authenticate(  # noqa: N802 -- gRPC's name
        self, request: auth_service_pb2.AuthenticateRequest, context: object
    ) -> auth_service_pb2.AuthenticateResponse:
        """As authsvc."""
        return await self._client.call(self._stub.Authenticate, request, timeout=_TIMEOUT)

    async def BatchAuthenticate(  # noqa: N802 -- gRPC's name
        self, request: auth_service_pb2.BatchAuthenticateRequest, context: object
    ) -> auth_service_pb2.BatchAuthenticateResponse:
        """As authsvc."""
        return await self._client.call(self._stub.BatchAuthenticate, request, timeout=_TIMEOUT)

    async def NoteKeyUses(  # noqa: N802 -- gRPC's name
        self, request: auth_service_pb2.NoteKeyUsesRequest, context: object
    ) -> auth_service_pb2.NoteKeyUsesResponse:
        """As authsvc."""
        return await self._client.call(self._stub.NoteKeyUses, request, timeout=_TIMEOUT)

    async def WatchInvalidations(  # noqa: N802 -- gRPC's name
        self, request: auth_service_pb2.WatchInvalidationsRequest, context: object
    ) -> AsyncIterator[auth_service_pb2.WatchInvalidationsResponse]:
        """What authsvc tells, unless it is cut."""
        async with self._client.stream(self._stub.WatchInvalidations, request, timeout=None) as messages:
            async for message in messages:
                if not self.cut:
                    yield message


class Clients:
    """Whoever asks the edges, and whoever revokes keys.

    Args:
        admin: A client of authsvc that may revoke.
        urls: The edges.
        session: How they are asked.
        chance: When keys are revoked.
    """

    def __init__(
        self, admin: ServiceClient, urls: Sequence[str], session: aiohttp.ClientSession, chance: random.Random
    ) -> None:
        self._admin = admin
        self._stub = api_key_service_pb2_grpc.ApiKeyServiceStub(admin.channel)
        self._urls = urls
        self._session = session
        self._chance = chance
        self.answers = 0

    @asynccontextmanager
    async def load(self, keys: list[str], clients: int) -> AsyncIterator[None]:
        """Keeps the edges busy inside the block."""
        tasks = [
            asyncio.create_task(self._ask_on_and_on(url, keys[number:] + keys[:number]))
            for url in self._urls
            for number in range(clients)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def revoke(self, key: str, after: float, pause: float) -> list[float]:
        """Revokes a key that is in use; the seconds from then to its first refusal by each edge.

        Args:
            key: Its text.
            after: The most seconds for which it is used before.
            pause: Seconds between two requests with it to an edge.
        """
        async with asyncio.TaskGroup() as group:
            refusals = [group.create_task(self._first_refusal(url, key, pause)) for url in self._urls]
            await asyncio.sleep(self._chance.uniform(0, after))
            request = api_key_service_pb2.RevokeApiKeyRequest(key_id=api_key.parse(key).key_id)
            await self._admin.call(self._stub.RevokeApiKey, request, timeout=_TIMEOUT)
            revoked = time.monotonic()
        # An edge may hear of it before the caller does.
        return [max(0.0, task.result() - revoked) for task in refusals]

    async def _first_refusal(self, url: str, key: str, pause: float) -> float:
        while await self._ask(url, key):  # noqa: ASYNC110 -- asks another process
            await asyncio.sleep(pause)
        return time.monotonic()

    async def _ask_on_and_on(self, url: str, keys: Sequence[str]) -> None:
        while True:
            for key in keys:
                if not await self._ask(url, key):
                    raise RuntimeError("a key was refused that nobody revoked")

    async def _ask(self, url: str, key: str) -> bool:
        """Whether the key works."""
        # Each key comes from an address of its own, so that no edge takes the revoked ones for somebody's guesses.
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": f"2001:db8:{hash(key) & 0xFFFF:x}::1"}
        async with self._session.get(f"{url}/v1/models", headers=headers) as answer:
            await answer.read()
            self.answers += 1
            if answer.status not in (200, 401):
                answer.raise_for_status()
            return answer.status == 200


@asynccontextmanager
async def edges(folder: Path, address: Address, between_port: int) -> AsyncIterator[list[str]]:
    """The URLs of edges in processes of their own, before an inference service and an accounting that are played."""
    token = address.tokens[ServiceName.EDGE]
    (folder / "service-token-edge").write_text(token)
    accounting, inference = FakeAccounting(), FakeInference()
    async with AsyncExitStack() as stack:
        for peer in (accounting, inference):
            await peer.start({ServiceName.EDGE: token})
            stack.push_async_callback(peer.kill)
        ports = free_ports(2 * EDGES)
        for port, ops_port in zip(ports[::2], ports[1::2], strict=True):
            environ = {
                **os.environ,
                "NARU_EDGE_PORT": str(port),
                "NARU_EDGE_OPS_PORT": str(ops_port),
                "NARU_AUTHSVC_ADDRESS": f"127.0.0.1:{between_port}",
                "NARU_ACCOUNTING_ADDRESS": f"127.0.0.1:{accounting.port}",
                "NARU_INFERENCE_ADDRESSES": f"127.0.0.1:{inference.port}",
                "NARU_EDGE_TRUSTED_PROXIES": "127.0.0.0/8",
                "NARU_SERVICE_TOKENS_DIR": str(folder),
                "NARU_LOG_LEVEL": "error",
            }
            process = subprocess.Popen([sys.executable, "-m", "edge"], env=environ)  # noqa: ASYNC220 -- returns at once
            # In a thread: its last calls are answered here.
            stack.push_async_callback(asyncio.to_thread, process.wait)
            stack.callback(process.terminate)
            await asyncio.to_thread(wait_until_ready, f"http://127.0.0.1:{ops_port}/readyz", "edge")
        yield [f"http://127.0.0.1:{port}" for port in ports[::2]]


async def run(folder: Path, address: Address, plan: Plan) -> tuple[list[list[float]], list[list[float]], float]:
    """The seconds of each key at each edge: while these hear of revocations, while they do not; and requests a second."""
    chance = random.Random(plan.seed)
    client = ServiceClient(address.target, name="authsvc", service_token=address.tokens[ServiceName.EDGE])
    between = Between(client)
    tokens = ServiceTokens({ServiceName.EDGE: address.tokens[ServiceName.EDGE]})
    server = GrpcServer(CallerAuthenticator(tokens, NobodyKnown()), metrics=Metrics())
    server.add(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, between, "naru.api.auth.v1.AuthService")
    admin = await bootstrap(address)
    async with AsyncExitStack() as stack:
        for service in (client, admin):
            stack.push_async_callback(service.close)
        port = await server.start("127.0.0.1", 0)
        stack.push_async_callback(server.stop, 0)
        urls = await stack.enter_async_context(edges(folder, address, port))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        clients = Clients(admin, urls, session, chance)
        keys, revoked, deaf = [await make_keys(admin, n) for n in (plan.keys, plan.revoked, plan.deaf)]
        await stack.enter_async_context(clients.load(keys, plan.clients))
        started, before = time.monotonic(), clients.answers
        hearing = [await clients.revoke(key, 0.1, 0.002) for key in revoked]
        rate = (clients.answers - before) / (time.monotonic() - started)
        between.cut = True
        await asyncio.sleep(_SETTLE_SECONDS)  # by then they know that they hear nothing
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(clients.revoke(key, 20.0, 0.1)) for key in deaf]
        return hearing, [task.result() for task in tasks], rate


def report(plan: Plan, hearing: list[list[float]], deaf: list[list[float]], rate: float) -> str:
    """The figures, as Markdown."""
    lines = [
        f"{plan.keys} keys in use by {plan.clients} clients at each of {EDGES} edges, {rate:,.0f} requests/s in all.",
        "",
        "| the edges | keys | edge | p50 | p99 | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, seconds in (("hear of it", hearing), ("hear nothing", deaf)):
        for number, column in enumerate(zip(*seconds, strict=True), start=1):
            ordered = sorted(column)
            shown = " | ".join(f"{1000 * value:,.0f} ms" for value in (*_shares(ordered), ordered[-1]))
            lines.append(f"| {name} | {len(ordered)} | {number} | {shown} |")
    return "\n".join(lines)


def _shares(ordered: Sequence[float]) -> tuple[float, float]:
    return percentile(ordered, 0.5), percentile(ordered, 0.99)


def main() -> int:
    """Prints the figures; exit code 1 when a p99 is later than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--revoked", type=int, default=200)
    parser.add_argument("--deaf", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    plan = Plan(**vars(parser.parse_args()))
    with (
        tempfile.TemporaryDirectory(prefix="naru-revocation-") as folder,
        postgres_cluster(durable=True) as cluster,
        authsvc(cluster.new_database()) as address,
    ):
        hearing, deaf, rate = uvloop.run(run(Path(folder), address, plan))
    print(report(plan, hearing, deaf, rate))
    late = [
        percentile(sorted(itertools.chain.from_iterable(seconds)), 0.99) > promised
        for seconds, promised in ((hearing, HEARING_SECONDS), (deaf, DEAF_SECONDS))
    ]
    return int(any(late))


if __name__ == "__main__":
    sys.exit(main())
