"""A real edge before real inference replicas with simulated engines, and an accounting that records."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from edge.app import running as edge_running
from edge.config import EdgeConfig
from inference.app import running
from naru.identity import Principal, Role
from naru.lifecycle import Lifecycle
from tests.support.adapters import LORA
from tests.support.inference_service import config_of
from tests.support.recording_accounting import KeyRing, RecordingAccounting, peers, write_service_tokens


@dataclass(frozen=True)
class Installation:
    """What is up.

    Attributes:
        url: The edge's.
        addresses: The replicas'.
        admin, user: Keys.
    """

    url: str
    addresses: Sequence[str]
    accounting: RecordingAccounting
    http: aiohttp.ClientSession
    admin: str
    user: str

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "") -> tuple[int, Any]:
        """Status and JSON of an answer, to the admin unless another key is given."""
        headers = {"Authorization": f"Bearer {key or self.admin}"}
        async with self.http.request(method, self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def chat(self, model: str, **fields: Any) -> tuple[int, Any]:
        """A short conversation."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello there."}], "max_tokens": 8, **fields}
        return await self.ask("POST", "/v1/chat/completions", body, key=self.user)

    async def models(self) -> dict[str, dict[str, Any]]:
        """What /v1/models lists, by id."""
        _, listed = await self.ask("GET", "/v1/models", key=self.user)
        return {model["id"]: model for model in listed["data"]}


@asynccontextmanager
async def edge_and_replicas(
    directory: Path, *replicas: dict[str, Any], model_aliases: tuple[str, ...] = ()
) -> AsyncIterator[Installation]:
    """Runs them; each of `replicas` is fields of a replica's configuration. Adapters are below `directory`/adapters."""
    tokens = write_service_tokens(directory / "tokens")
    (directory / "adapters").mkdir(exist_ok=True)
    accounting, keys = RecordingAccounting(), KeyRing()
    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(peers(tokens, accounting, keys))
        addresses = []
        for number, fields in enumerate(replicas):
            own = directory / f"replica-{number}"
            defaults = {"engine_args": json.dumps(LORA), "lora_roots": (str(directory / "adapters"),)}
            config = config_of(
                own, peer, **{"service_tokens_dir": directory / "tokens", "replica_id": own.name, **defaults, **fields}
            )
            up = await stack.enter_async_context(running(config, Lifecycle()))
            addresses.append(f"127.0.0.1:{up.port}")
        edge = EdgeConfig(
            port=0,
            service_tokens_dir=directory / "tokens",
            authsvc_address=peer,
            accounting_address=peer,
            inference_addresses=tuple(addresses),
            model_aliases=model_aliases,
            shutdown_grace=0.2,
        )
        service = await stack.enter_async_context(edge_running(edge, Lifecycle()))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        installation = Installation(
            f"http://127.0.0.1:{service.port}",
            addresses,
            accounting,
            http,
            admin=keys.new_key(lambda key_id: Principal("ws-1", role=Role.ADMIN, key_id=key_id)),
            user=keys.new_key(lambda key_id: Principal("ws-1", key_id=key_id)),
        )
        await _connected(installation)
        yield installation


async def _connected(installation: Installation) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        async with installation.http.get(installation.url + "/health") as answer:
            if (await answer.json())["status"] == "ok":
                return
        await asyncio.sleep(0.02)
    raise AssertionError("the edge did not become healthy")
