"""A real edge before a real inference service that generates at once: for tests of what may be asked, not of what is said."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from edge.app import running
from edge.config import EdgeConfig
from inference.engine import ChoiceOutput, Engine, EngineRequest, PreparedRequest, Sink
from inference.pooling_body import PoolingBody, read_pooling_body
from naru.lifecycle import Lifecycle
from tests.support.inference_service import InferenceService, inference_service
from tests.support.scripted_engine import ScriptedEngine, Submitted

MODEL = "small"
"""What it serves."""
_VECTOR = struct.pack("<3f", 0.25, -0.5, 1.0)


@dataclass(frozen=True, slots=True)
class SimulatedEdge:
    """Where it listens, a key for it, and the service behind it."""

    url: str
    key: str
    inference: InferenceService

    def client(self) -> httpx.Client:
        """A client with the key, which takes an answer that does not come within half a minute for none."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


@asynccontextmanager
async def simulated_edge(
    directory: Path, engine: Engine | None = None, *, edge: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[SimulatedEdge]:
    """Runs both until the end of the block: `engine`, or the simulated one with `fields` of its configuration.

    `edge`: fields of the edge's own configuration.
    """
    quick = {"simulated_tokens_per_second": 5000.0, "simulated_prefill_seconds": 0.0, "simulated_context_tokens": 256}
    async with AsyncExitStack() as stack:
        inference = await stack.enter_async_context(inference_service(directory, engine, **(quick | fields)))
        config = EdgeConfig(
            port=0,
            service_tokens_dir=directory / "tokens",
            authsvc_address=inference.peers_address,
            accounting_address=inference.peers_address,
            inference_addresses=(f"127.0.0.1:{inference.port}",),
            shutdown_grace=0.2,
            **(edge or {}),
        )
        up = await stack.enter_async_context(running(config, Lifecycle()))
        key, _ = inference.new_key()
        made = SimulatedEdge(f"http://127.0.0.1:{up.port}", key, inference)
        await asyncio.to_thread(_wait_for_model, made)
        yield made


class PoolingEngine(ScriptedEngine):
    """Makes the same vector of everything, at once, and finds everything alike."""

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Reads the body as the real one does."""
        body = read_pooling_body(request)
        return PreparedRequest(len(body.inputs), len(body.pairs()) or len(body.inputs), (request, body))

    async def submit(self, prepared: PreparedRequest, sink: Sink) -> Submitted:
        """Answers once the caller has its handle."""
        assert isinstance(prepared.payload, tuple)
        request, body = prepared.payload
        assert isinstance(body, PoolingBody)
        submitted = Submitted(request, sink, prepared.choices, self.confirm_cancel)
        self.submitted.append(submitted)
        asyncio.get_running_loop().call_soon(_answer, submitted, body)
        return submitted


def _answer(submitted: Submitted, body: PoolingBody) -> None:
    for choice in range(submitted.choices):
        submitted.ended.add(choice)
        made: dict[str, Any] = {"score": 0.5} if body.queries else {"embedding": _VECTOR}
        submitted.sink(ChoiceOutput(choice, "", 0, finish_reason="stop", **made))


def _wait_for_model(service: SimulatedEdge) -> None:
    with service.client() as client:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if client.get("/health").status_code == 200:
                return
            time.sleep(0.02)
    raise AssertionError("the edge did not become healthy")
