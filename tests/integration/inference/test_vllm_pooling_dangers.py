"""What could end an engine that makes vectors, over HTTP through a real edge and inference service, with vLLM itself."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from inference.vllm_engine import VllmEngine
from naru.api.accounting.v1 import usage_event_pb2
from naru.api.inference.v1 import (
    control_service_pb2,
    control_service_pb2_grpc,
    inference_service_pb2_grpc,
    pooling_pb2,
)
from naru.client import ServiceClient
from naru.errors import NaruError, Reason
from naru.identity import ServiceName
from tests.support.answering import MODEL
from tests.support.borrowed_engine import Borrowed
from tests.support.dangerous_pooling import EMBEDDINGS, asked, pooling_bodies
from tests.support.generation_bench import eventually
from tests.support.pooling_engine import minilm, pooling_engine
from tests.support.simulated_edge import SimulatedEdge, simulated_edge

pytestmark = [
    pytest.mark.faults,
    pytest.mark.asyncio(loop_scope="module"),
    # The first test waits for the engine to load, on whatever machine this is.
    pytest.mark.timeout(600),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # vLLM leaves one to the garbage collector when it shuts down.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
AT_ONCE = 6
SECONDS = 120.0
"""A request that is not answered by then hangs."""
TEXT = "Where is the ferry?"
LONG_TEXTS = [f"A long text of a ferry. {number} " * 20 for number in range(100)]
"""Fewer than the engine takes at once: of what waits before it, a pause sends callers away."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    """The engine, started once."""
    async with pooling_engine(minilm(), MODEL) as started:
        yield started


@dataclass(frozen=True)
class Naru:
    """An edge before the engine, and what a client and an operator do there."""

    engine: VllmEngine
    service: SimulatedEdge
    client: httpx.AsyncClient
    operator: ServiceClient

    async def vector(self, text: str = TEXT) -> list[float]:
        """The vector of a text."""
        answer = await self.client.post(EMBEDDINGS, json={"model": MODEL, "input": text})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"][0]["embedding"])

    async def post(self, texts: list[str]) -> httpx.Response:
        """A request for many vectors."""
        return await self.client.post(EMBEDDINGS, json={"model": MODEL, "input": texts})

    async def tell(self, what: str) -> int:
        """Tells the replica something; its state then."""
        call = getattr(control_service_pb2_grpc.ControlServiceStub(self.operator.channel), what)
        request = getattr(control_service_pb2, f"{what}Request")()
        return int((await self.operator.call(call, request, timeout=30)).replica.state)

    async def busy(self) -> None:
        """Waits until the engine has something to do."""
        await eventually(lambda: self.engine.unfinished_requests() > 0, 30)

    async def idle(self) -> None:
        """Waits until it has nothing to do, and has not died of it."""
        await eventually(lambda: self.engine.unfinished_requests() == 0, 60)
        assert self.engine.healthy()
        assert await self.engine.responsive(10)


@asynccontextmanager
async def naru_of(engine: VllmEngine, directory: Path) -> AsyncIterator[Naru]:
    """A new edge and a new service before the engine."""
    async with (
        simulated_edge(directory, Borrowed(engine)) as service,  # type: ignore[arg-type] # the engine's, all but two
        service.inference.client(service=ServiceName.OPERATOR) as operator,
        httpx.AsyncClient(
            base_url=service.url,
            headers={"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"},
            timeout=SECONDS,
            limits=httpx.Limits(max_connections=200),
        ) as client,
    ):
        yield Naru(engine, service, client, operator)


async def test_nothing_that_is_sent_ends_the_engine(engine: VllmEngine, tmp_path: Path) -> None:
    """Each is a 400 that says what is wrong, or an answer; after every few the same engine makes the same vector as before."""
    statuses: list[int] = []
    problems: list[str] = []
    async with naru_of(engine, tmp_path) as naru:
        plain = await naru.vector()
        sent = [(path, json.dumps({"model": MODEL} | body).encode()) for path, body in pooling_bodies()]
        for first in range(0, len(sent), AT_ONCE):
            some = sent[first : first + AT_ONCE]
            for told, problem in await asyncio.gather(*(asked(naru.client, path, body) for path, body in some)):
                statuses.append(told)
                problems += [problem] * bool(problem)
            assert await naru.vector() == pytest.approx(plain, abs=1e-4), some
        await asked_directly(naru)
        await naru.idle()
        assert await naru.vector() == pytest.approx(plain, abs=1e-4)
    assert problems == []
    assert statuses.count(400) > len(statuses) // 2
    assert statuses.count(200) > len(statuses) // 10


async def asked_directly(naru: Naru) -> None:
    """What typed messages can say and JSON cannot is answered, or refused as the caller's fault."""
    one, ids, embed = pooling_pb2.EmbedInput, pooling_pb2.EmbedTokens, pooling_pb2.EmbedRequest
    requests: list[tuple[str, Any]] = [
        ("Embed", embed(model=MODEL)),
        ("Embed", embed(model=MODEL, inputs=[one()])),
        ("Embed", embed(model=MODEL, inputs=[one(text="")])),
        ("Embed", embed(model=MODEL, inputs=[one(tokens=ids(token_ids=[2**32 - 1]))])),
        ("Embed", embed(model=MODEL, inputs=[one(tokens=ids())])),
        *(("Embed", embed(model=MODEL, inputs=[one(text="a")], dimensions=size)) for size in (0, -(2**31), 7)),
        ("Score", pooling_pb2.ScoreRequest(model=MODEL)),
        ("Score", pooling_pb2.ScoreRequest(model=MODEL, queries=[""], documents=["b"])),
        ("Score", pooling_pb2.ScoreRequest(model=MODEL, queries=["a", "b"], documents=["c"])),
        ("Embed", embed(model=MODEL, inputs=[one(text="a")])),
    ]
    reasons: list[Reason | None] = []
    key, _ = naru.service.inference.new_key()
    async with naru.service.inference.client(key=key) as caller:
        stub = inference_service_pb2_grpc.InferenceServiceStub(caller.channel)
        for method, request in requests:
            try:
                await caller.call(getattr(stub, method), request, timeout=SECONDS)
                reasons.append(None)
            except NaruError as refused:
                reasons.append(refused.reason)
    assert reasons.pop() is None
    assert set(reasons) == {Reason.INVALID_ARGUMENT, Reason.NOT_SUPPORTED}


async def test_pause_resume_and_drain_end_nothing(engine: VllmEngine, tmp_path: Path) -> None:
    """What the engine has is held up and goes on to the same vectors; vLLM's way to pause by ending it would end the engine."""
    async with naru_of(engine, tmp_path) as naru:
        expected = [one["embedding"] for one in (await naru.post(LONG_TEXTS)).json()["data"]]
        for way_out in ("Resume", "Drain"):
            asking = asyncio.create_task(naru.post(LONG_TEXTS))
            await naru.busy()
            assert await naru.tell("Pause") == control_service_pb2.REPLICA_STATE_PAUSED
            held = engine.unfinished_requests()
            assert held > 0
            # Longer than any of its steps.
            await asyncio.sleep(1.0)
            assert engine.unfinished_requests() == held
            assert engine.healthy()
            await naru.tell(way_out)
            answer = await asking
            assert answer.status_code == 200, answer.text
            for one, vector in zip(answer.json()["data"], expected, strict=True):
                assert one["embedding"] == pytest.approx(vector, abs=1e-4)
            await naru.tell("Resume")
        await naru.idle()
        with pytest.raises(NaruError) as refused:
            await naru.tell("Sleep")
        assert refused.value.reason is Reason.NOT_SUPPORTED
        assert await naru.vector()


async def test_who_hangs_up_on_a_paused_engine_is_gone(engine: VllmEngine, tmp_path: Path) -> None:
    """Their inputs leave the engine, also those that it holds up, and a service that stops meanwhile stops."""
    async with naru_of(engine, tmp_path / "first") as naru:
        asking = [asyncio.create_task(naru.post(LONG_TEXTS)) for _ in range(3)]
        await naru.busy()
        await naru.tell("Pause")
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        await naru.idle()
        await naru.tell("Resume")
        assert await naru.vector()
        asking = [asyncio.create_task(naru.post(LONG_TEXTS))]
        await naru.busy()
        await naru.tell("Pause")
    await asyncio.wait(asking)
    async with naru_of(engine, tmp_path / "second") as naru:
        await naru.idle()
        assert await naru.vector()


async def test_cancels_at_any_time(engine: VllmEngine, tmp_path: Path) -> None:
    """Of many requests of many inputs, most hang up; each is billed once, and nothing is left in the engine."""
    moments = random.Random(11)
    async with naru_of(engine, tmp_path) as naru:
        plain = await naru.vector()
        ended = 0
        for _ in range(5):
            asking = [asyncio.create_task(naru.post(LONG_TEXTS[: moments.randrange(1, 50)])) for _ in range(10)]
            for task in asking:
                await asyncio.sleep(moments.random() * 0.15)
                if moments.random() < 0.8:
                    task.cancel()
            await asyncio.wait(asking)
            ended += sum(not task.cancelled() for task in asking)
        await naru.idle()
        assert ended > 5
        assert await naru.vector() == pytest.approx(plain, abs=1e-4)
        events = naru.service.inference.events
        await eventually(lambda: len({event.event_id for event in events}) >= ended + 2, 10)
        assert len({event.event_id for event in events}) == len(events)
        aborted = [event for event in events if event.outcome == usage_event_pb2.OUTCOME_ABORTED]
        assert aborted
        assert all(
            event.usage.prompt_tokens > 0 and event.accuracy == usage_event_pb2.ACCURACY_EXACT for event in events
        )
        assert math.isfinite(sum(plain))
