"""Bodies made of the fields that the APIs know, right, nearly right and wild, against a real edge and inference service."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.known_fields import GENERATING, POOLING, Field
from tests.support.simulated_edge import MODEL, PoolingEngine, SimulatedEdge, simulated_edge
from tests.support.wild_bodies import bodies

_FEW, _MANY = 15, 150
_REFUSALS = {400, 404, 413}
_LAST_EVENTS = ("[DONE]", "message_stop", "response.completed", "response.incomplete")
_MANY_BODIES = pytest.param(_MANY, marks=[pytest.mark.behaviour, pytest.mark.timeout(180)])


@pytest.fixture
async def generating(tmp_path: Path) -> AsyncIterator[SimulatedEdge]:
    async with simulated_edge(tmp_path) as made:
        yield made


@pytest.fixture
async def pooling(tmp_path: Path) -> AsyncIterator[SimulatedEdge]:
    async with simulated_edge(tmp_path, PoolingEngine()) as made:
        yield made


@pytest.mark.parametrize("examples", [_FEW, _MANY_BODIES])
async def test_generating(generating: SimulatedEdge, examples: int) -> None:
    """Whatever is asked of a model that generates is answered whole, or refused in the API's words, and soon."""
    await asyncio.to_thread(_fuzz, generating, GENERATING, examples)
    assert len(generating.inference.accounting.finished) <= len(generating.inference.accounting.reservations)


@pytest.mark.parametrize("examples", [_FEW, _MANY_BODIES])
async def test_pooling(pooling: SimulatedEdge, examples: int) -> None:
    """The same of a model that makes vectors; also when it is asked to generate."""
    await asyncio.to_thread(_fuzz, pooling, POOLING, examples)


@pytest.mark.parametrize("path", POOLING)
async def test_vectors_of_a_model_that_generates(generating: SimulatedEdge, path: str) -> None:
    """It makes none, however it is asked."""
    body: dict[str, Any] = {name: field.right[0] for name, field in POOLING[path].items() if field.needed}

    def ask() -> httpx.Response:
        with generating.client() as client:
            return client.post(path, json={"model": MODEL} | body)

    answer = await asyncio.to_thread(ask)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def _fuzz(service: SimulatedEdge, paths: Mapping[str, Mapping[str, Field]], examples: int) -> None:
    told: Counter[int] = Counter()
    with service.client() as client:
        for path, fields in paths.items():
            told += _statuses(client, path, fields, examples)
    # Bodies that are all refused, or all taken, would show nothing.
    assert told[200] > examples // 2, told
    assert sum(told[status] for status in _REFUSALS) > examples // 2, told


def _statuses(client: httpx.Client, path: str, fields: Mapping[str, Field], examples: int) -> Counter[int]:
    """How often bodies of these fields were answered how."""
    told: Counter[int] = Counter()

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(bodies(fields, MODEL))
    def send(body: dict[str, Any]) -> None:
        answer = client.post(path, content=json.dumps(body).encode())
        _check(path, answer)
        told[answer.status_code] += 1

    send()
    return told


def _check(path: str, answer: httpx.Response) -> None:
    assert answer.status_code in {200} | _REFUSALS, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        names = {"type", "message"} if path.startswith("/v1/messages") else {"message", "type", "param", "code"}
        assert error.keys() == names
        assert error["type"] in ("invalid_request_error", "not_found_error", "request_too_large")
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        told = [event if event == "[DONE]" else json.loads(event) for event in events]
        assert not any("error" in one and one["error"] for one in told if one != "[DONE]"), answer.text
        last = told[-1]
        assert (last if last == "[DONE]" else last["type"]) in _LAST_EVENTS
    else:
        assert "error" not in answer.json() or answer.json()["error"] is None
