"""Bodies of any shape, against a real edge before a real inference service with the simulated engine."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.app import running
from edge.config import EdgeConfig
from naru.lifecycle import Lifecycle
from tests.support.inference_service import inference_service

_MODEL = "small"
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
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=6)
    | st.sampled_from(["", "text", "none", "auto", "required", "\ud800", "\x00", "tool_use", "image", "a" * 3_000])
)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True, slots=True)
class Service:
    """Where it listens, and a key for it."""

    url: str
    key: str


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        inference = await stack.enter_async_context(
            inference_service(tmp_path, simulated_tokens_per_second=5000.0, simulated_prefill_seconds=0.0)
        )
        config = EdgeConfig(
            port=0,
            service_tokens_dir=tmp_path / "tokens",
            authsvc_address=inference.peers_address,
            accounting_address=inference.peers_address,
            inference_addresses=(f"127.0.0.1:{inference.port}",),
            shutdown_grace=0.2,
        )
        up = await stack.enter_async_context(running(config, Lifecycle()))
        key, _ = inference.new_key()
        made = Service(f"http://127.0.0.1:{up.port}", key)
        await asyncio.to_thread(_wait_for_model, made)
        yield made


def _wait_for_model(service: Service) -> None:
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, timeout=10) as client:
        for _ in range(500):
            if client.get("/health").status_code == 200:
                return
    raise AssertionError("the edge did not become healthy")


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
        holder[path[-1]] = draw(_JSON)
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
async def test_no_body_breaks_it(service: Service, path: str) -> None:
    """Whatever is sent is answered, or refused in the words of the API that was asked; never by a 500."""
    valid = {"model": _MODEL} | _BODIES[path]
    headers = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=10) as client:

        @settings(max_examples=40, deadline=None, derandomize=True, database=None)
        @given(_bodies(valid))
        def send(body: bytes) -> None:
            _check(path, client.post(path, content=body))

        await asyncio.to_thread(send)
