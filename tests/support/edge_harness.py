"""A real edge on a free port, with peers that do what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from edge.app import running
from edge.config import EdgeConfig
from naru import api_key
from naru.identity import Principal
from naru.lifecycle import Lifecycle
from tests.support.fake_accounting import FakeAccounting
from tests.support.fake_auth import FakeAuth
from tests.support.fake_inference import FakeInference
from tests.support.service_tokens import EDGE_TOKENS, write_tokens

KEY = api_key.format_key("abcdefABCDEF", "s" * 43)
PRINCIPAL = Principal(workspace_id="ws1", key_id="abcdefABCDEF", tier="free", service_account="dev-team")


@dataclass(slots=True)
class Harness:
    """The edge under test, and its peers."""

    url: str
    port: int
    ops_port: int
    http: aiohttp.ClientSession
    lifecycle: Lifecycle
    auth: FakeAuth
    accounting: FakeAccounting
    inference: FakeInference
    replicas: tuple[FakeInference, ...]

    def post(self, path: str, body: Any, **options: Any) -> Any:
        """A POST with the test's key."""
        headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
        return self.http.post(self.url + path, json=body, headers=headers, **options)

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Any other request with the test's key."""
        headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
        return self.http.request(method, self.url + path, headers=headers, **options)

    def get(self, path: str, **options: Any) -> Any:
        """A GET with the test's key."""
        headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
        return self.http.get(self.url + path, headers=headers, **options)


@asynccontextmanager
async def edge_with_peers(directory: Path, *, replicas: int = 1, **settings: Any) -> AsyncIterator[Harness]:
    """Runs it; `settings` are fields of EdgeConfig. Waits until all replicas are connected."""
    auth, accounting = FakeAuth(), FakeAccounting()
    auth.principals[KEY] = PRINCIPAL
    inferences = tuple(FakeInference() for _ in range(replicas))
    async with AsyncExitStack() as stack:
        for peer in (auth, accounting, *inferences):
            await peer.start(EDGE_TOKENS)
            stack.push_async_callback(peer.kill)
        config = EdgeConfig(
            port=0,
            service_tokens_dir=write_tokens(directory),
            accounting_address=f"127.0.0.1:{accounting.port}",
            inference_addresses=tuple(f"127.0.0.1:{peer.port}" for peer in inferences),
            **({"shutdown_grace": 0.2, "authsvc_address": f"127.0.0.1:{auth.port}"} | settings),
        )
        lifecycle = Lifecycle()
        service = await stack.enter_async_context(running(config, lifecycle))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await until(lambda: all(peer.sessions for peer in inferences))
        url = f"http://127.0.0.1:{service.port}"
        harness = Harness(
            url, service.port, service.ops_port, http, lifecycle, auth, accounting, inferences[0], inferences
        )
        await _healthy(harness)
        yield harness


async def _healthy(harness: Harness) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        async with harness.http.get(harness.url + "/health") as answer:
            # Of several replicas one is enough for 200; here all have to be there.
            if (await answer.json())["status"] == "ok":
                return
        await asyncio.sleep(0.02)
    raise AssertionError("the edge did not become healthy")


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits for a condition. Raises AssertionError when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true in time")
        await asyncio.sleep(0.01)
