"""Inputs that could end the engine, over HTTP through a real edge and inference service, with vLLM itself."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference.vllm_engine import VllmEngine
from naru.api.inference.v1 import generation_pb2
from naru.errors import NaruError, Reason
from tests.support.answering import MODEL
from tests.support.borrowed_engine import Borrowed
from tests.support.dangerous_inputs import CHAT_PATH, RAW, bodies
from tests.support.inference_service import InferenceService
from tests.support.simulated_edge import simulated_edge

pytestmark = [
    pytest.mark.faults,
    pytest.mark.asyncio(loop_scope="session"),
    # The first test waits for the engine to load, on whatever machine this is.
    pytest.mark.timeout(600),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
PLAIN = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 1}
AT_ONCE = 6
SECONDS = 60.0
"""A request that is not answered by then hangs."""


def engine_processes() -> list[str]:
    """This process's children that are processes of the engine."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in children if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()]


async def test_nothing_that_is_sent_ends_the_engine(engine: VllmEngine, tmp_path: Path) -> None:
    """Each is a 400 that says what is wrong, or an answer; and after every few the same engine answers a plain question."""
    before = engine_processes()
    assert before
    statuses: list[int] = []
    problems: list[str] = []
    async with (
        simulated_edge(tmp_path, Borrowed(engine)) as service,  # type: ignore[arg-type] # the engine's, all but two
        httpx.AsyncClient(
            base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, timeout=SECONDS
        ) as client,
    ):
        sent = [(path, json.dumps({"model": MODEL} | body).encode()) for path, body in bodies()]
        sent += [(CHAT_PATH, raw.replace(b"%s", MODEL.encode())) for raw in RAW]
        for first in range(0, len(sent), AT_ONCE):
            some = sent[first : first + AT_ONCE]
            for told, problem in await asyncio.gather(*(asked(client, path, body) for path, body in some)):
                statuses.append(told)
                problems += [problem] * bool(problem)
            plain = await client.post("/v1/completions", json=PLAIN)
            assert plain.status_code == 200, f"{plain.text} after {some}"
            assert plain.json()["choices"][0]["text"] == " Paris", some
        for order in direct_orders():
            await asked_directly(service.inference, order)
        assert engine.unfinished_requests() == 0
    assert engine.healthy()
    assert engine_processes() == before
    assert problems == []
    assert statuses.count(400) > len(statuses) // 2
    assert statuses.count(200) > len(statuses) // 10


async def asked(client: httpx.AsyncClient, path: str, body: bytes) -> tuple[int, str]:
    """The status, and what is wrong with it: it must be an answer, or an error of the caller's that says what it is."""
    shown = f"{path} {body[:300]!r}"
    answer = await client.post(path, content=body)
    if answer.status_code == 200:
        return 200, ""
    error = answer.json()["error"]
    fits = answer.status_code in (400, 404, 413) and error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, "" if fits and error["message"] else f"{answer.status_code} {answer.text[:300]} {shown}"


def direct_orders() -> list[dict[str, Any]]:
    """What typed messages can say and JSON cannot."""
    sampling = generation_pb2.SamplingParameters
    odd = [
        *(
            sampling(**{name: value})
            for name in ("temperature", "top_p")
            for value in (float("nan"), float("inf"), -0.5)
        ),
        *(sampling(**{name: float("nan")}) for name in ("presence_penalty", "frequency_penalty")),
        *(sampling(n=n) for n in (0, -(2**31), 2**31 - 1)),
        *(sampling(top_k=top) for top in (-(2**31), 2**31 - 1)),
        *(sampling(seed=seed) for seed in (-(2**63), 2**63 - 1)),
        *(sampling(max_tokens=most) for most in (-(2**63), 0, 2**63 - 1)),
        sampling(stop=["", ""]),
        sampling(stop=["a"] * 1_000),
    ]
    few = sampling(max_tokens=2)
    return [
        *({"text": generation_pb2.TextInput(text="Hi", sampling=one)} for one in odd),
        {"text": generation_pb2.TextInput(text="", sampling=few)},
        *(
            {"token_ids": generation_pb2.TokenIdsInput(token_ids=ids, sampling=few)}
            for ids in ([], [49_152], [2**32 - 1], [1] * 5_000)
        ),
        {"chat": generation_pb2.ChatInput(messages=[], sampling=few)},
        {"chat": generation_pb2.ChatInput(messages=[generation_pb2.ChatMessage(role="x", content="y")], sampling=few)},
    ]


async def asked_directly(service: InferenceService, order: dict[str, Any]) -> None:
    """It is answered, or refused as the caller's fault."""
    key, _ = service.new_key()
    given = generation_pb2.Generation(model=MODEL, output_token_cap=4, **order)
    refusal: NaruError | None = None
    told = []
    try:
        async with asyncio.timeout(SECONDS), service.generate(given, key=key) as messages:
            told = [message async for message in messages]
    except NaruError as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason in (Reason.INVALID_ARGUMENT, Reason.CONTEXT_LENGTH_EXCEEDED, Reason.NOT_SUPPORTED), order
    elif told[-1].HasField("refused"):
        assert told[-1].refused.error.message, order
    else:
        assert told[-1].finished.outcome == generation_pb2.FINISH_OUTCOME_COMPLETED, order
