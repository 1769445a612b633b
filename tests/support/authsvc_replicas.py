"""Two real authsvc processes over one PostgreSQL, and edges before both; accounting and inference are played."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from edge.app import running
from edge.config import EdgeConfig
from naru import api_key
from naru.api.auth.v1 import api_key_service_pb2, api_key_service_pb2_grpc, auth_service_pb2, auth_service_pb2_grpc
from naru.client import ServiceClient
from naru.identity import ServiceName
from naru.lifecycle import Lifecycle
from naru.testing.redis_server import free_ports
from tests.support.edge_harness import until
from tests.support.fake_accounting import FakeAccounting
from tests.support.fake_inference import FakeInference
from tests.support.service_tokens import EDGE_TOKENS, write_tokens

_TIMEOUT = 90.0
_OPERATOR_TOKEN = "operator-" + "t" * 32


class Replica:
    """One authsvc in a process of its own, on ports that stay."""

    def __init__(self, secrets: Path, database_url: str) -> None:
        self._port, self._ops_port = free_ports(2)
        self.address = f"127.0.0.1:{self._port}"
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OTEL_"))},
            "NARU_AUTHSVC_PORT": str(self._port),
            "NARU_AUTHSVC_OPS_PORT": str(self._ops_port),
            "NARU_AUTHSVC_DATABASE_URL": database_url,
            "NARU_AUTHSVC_PEPPER_FILES": f"1:{secrets}/pepper",
            "NARU_SERVICE_TOKENS_DIR": str(secrets),
            "NARU_LOG_LEVEL": "warning",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def migrate(self) -> None:
        """Makes the schema."""
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "authsvc", "migrate", env=self._environ)
        assert await process.wait() == 0

    async def start(self, http: aiohttp.ClientSession) -> None:
        """Returns when it is ready."""
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-m", "authsvc", env=self._environ)
        async with asyncio.timeout(_TIMEOUT):
            while not await self._ready(http):
                await asyncio.sleep(0.02)

    async def resolved(self, http: aiohttp.ClientSession) -> float:
        """Batches of keys that it has resolved since it started."""
        async with http.get(f"http://127.0.0.1:{self._ops_port}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        labels = ('code="OK"', '/BatchAuthenticate"')
        counts = [line for line in lines if line.startswith("naru_rpc_total{") and all(one in line for one in labels)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counts)

    async def kill(self) -> None:
        """With SIGKILL, whatever it is doing."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _ready(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"http://127.0.0.1:{self._ops_port}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False


@dataclass(slots=True)
class Replicated:
    """What runs. `admins` are clients of one replica each, with `key`, an administrator's."""

    replicas: Sequence[Replica]
    urls: Sequence[str]
    http: aiohttp.ClientSession
    admins: Sequence[ServiceClient]
    key: str

    async def new_key(self, through: int = 0) -> str:
        """A key's text."""
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self.admins[through].channel)
        request = api_key_service_pb2.CreateApiKeyRequest()
        return (await self.admins[through].call(stub.CreateApiKey, request, timeout=_TIMEOUT)).secret_key

    async def revoke(self, key: str, through: int) -> None:
        """Ends a key."""
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self.admins[through].channel)
        request = api_key_service_pb2.RevokeApiKeyRequest(key_id=api_key.parse(key).key_id)
        await self.admins[through].call(stub.RevokeApiKey, request, timeout=_TIMEOUT)

    async def status(self, url: str, key: str) -> int:
        """What an edge answers to a key."""
        async with self.http.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}) as answer:
            await answer.read()
            return answer.status


@asynccontextmanager
async def replicated(folder: Path, database_url: str, *, edges: int = 2, **settings: Any) -> AsyncIterator[Replicated]:
    """Runs them; `settings` are fields of EdgeConfig."""
    secrets = write_tokens(folder)
    (secrets / f"service-token-{ServiceName.OPERATOR}").write_text(_OPERATOR_TOKEN)
    (secrets / "pepper").write_text("p" * 32)
    replicas = [Replica(secrets, database_url) for _ in range(2)]
    accounting, inference = FakeAccounting(), FakeInference()
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for peer in (accounting, inference):
            await peer.start(EDGE_TOKENS)
            stack.push_async_callback(peer.kill)
        await replicas[0].migrate()
        for replica in replicas:
            stack.push_async_callback(replica.kill)
        await asyncio.gather(*(replica.start(http) for replica in replicas))
        config = EdgeConfig(
            port=0,
            service_tokens_dir=secrets,
            authsvc_address=",".join(replica.address for replica in replicas),
            accounting_address=f"127.0.0.1:{accounting.port}",
            inference_addresses=(f"127.0.0.1:{inference.port}",),
            shutdown_grace=0.2,
            **settings,
        )
        up = [await stack.enter_async_context(running(config, Lifecycle())) for _ in range(edges)]
        urls = [f"http://127.0.0.1:{edge.port}" for edge in up]
        key = await _bootstrap(replicas[0].address)
        admins = [ServiceClient(replica.address, name="authsvc", credential=key) for replica in replicas]
        for admin in admins:
            stack.push_async_callback(admin.close)
        await until(lambda: inference.sessions >= edges, _TIMEOUT)
        yield Replicated(replicas, urls, http, admins, key)


async def _bootstrap(address: str) -> str:
    operator = ServiceClient(address, name="authsvc", service_token=_OPERATOR_TOKEN)
    stub = auth_service_pb2_grpc.AuthServiceStub(operator.channel)
    try:
        made = await operator.call(stub.Bootstrap, auth_service_pb2.BootstrapRequest(), timeout=_TIMEOUT)
    finally:
        await operator.close()
    return made.api_key
