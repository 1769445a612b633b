"""Bodies of any shape, against a real edge before a real inference service with the simulated engine."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.simulated_edge import MODEL, SimulatedEdge, simulated_edge
from tests.support.wild_bodies import WILD

pytestmark = pytest.mark.faults

_TURN = {"role": "user", "content": "Hello"}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
_CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOLD = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "it is"}]}
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [_TURN, {"role": "assistant", "content": None, "tool_calls": [_CALLED]}, _TURN],
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 2,
        "usage": {"include": True},
    },
    "/v1/messages": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [_TOLD]},
        ],
        "system": [{"type": "text", "text": "Be brief."}],
        "max_tokens": 2,
        "stop_sequences": ["END"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "u1"},
    },
    "/v1/messages/count_tokens": {
        "messages": [_TURN],
        "tools": [{"name": "f", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "auto"},
    },
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "it is"},
        ],
        "instructions": "Be brief.",
        "max_output_tokens": 2,
        "stream": True,
        "reasoning": {"effort": "low"},
    },
    "/tokenize": {"messages": [_TURN], "return_token_strs": True, "add_generation_prompt": True},
    "/detokenize": {"tokens": [1, 2, 3]},
}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[SimulatedEdge]:
    async with simulated_edge(tmp_path) as made:
        yield made


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield from _places(member, (*path, name))


@st.composite
def _bodies(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """A valid body in which up to three places hold something else, fields are added, or a byte is wrong."""
    body: Any = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_places(body))))
        holder = body
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = draw(WILD)
    text = bytearray(json.dumps(body).encode())
    if draw(st.integers(0, 4)) == 0:
        text[draw(st.integers(0, len(text) - 1))] = draw(st.integers(0, 255))
    return bytes(text)


def _check(path: str, answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code == 200:
        assert "api_error" not in answer.text
        assert "internal_error" not in answer.text
        return
    shown = answer.json()
    if path.startswith("/v1/messages"):
        assert shown["type"] == "error"
        assert shown["error"].keys() == {"type", "message"}
    else:
        assert shown["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", _BODIES)
async def test_no_body_breaks_it(service: SimulatedEdge, path: str) -> None:
    """Whatever is sent is answered, or refused in the words of the API that was asked; never by a 500."""
    valid = {"model": MODEL} | _BODIES[path]
    with service.client() as client:

        @settings(max_examples=40)
        @given(_bodies(valid))
        def send(body: bytes) -> None:
            _check(path, client.post(path, content=body))

        await asyncio.to_thread(send)
