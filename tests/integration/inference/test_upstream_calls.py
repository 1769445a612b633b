"""Tool calls of upstreams that do not write them as OpenAI does: a real edge and a real service before such a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.support.upstream import FakeUpstream, SmallNaru, behind, chunk, fake_upstream, gained, small_naru, whole

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Seoul?"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
END = chunk(gained(finish_reason="tool_calls"))


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as upstream:
        yield upstream


@pytest.fixture
async def naru(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[SmallNaru]:
    async with small_naru(tmp_path, behind(upstream.url)) as naru:
        yield naru


async def streamed(naru: SmallNaru) -> list[Any]:
    """The pieces of calls that a chat tells."""
    stream = await naru.client.chat.completions.create(model="ours", messages=MESSAGES, tools=TOOLS, stream=True)
    return [call async for part in stream for choice in part.choices for call in choice.delta.tool_calls or ()]


def piece(number: int | None, arguments: str, **call: Any) -> dict[str, Any]:
    """A piece of a call; `number` is its index, and a `name` goes into its function."""
    name = {"name": call.pop("name")} if "name" in call else {}
    index = {} if number is None else {"index": number}
    return {**index, "type": "function", "function": {**name, "arguments": arguments}, **call}


NAMED = {"id": "call_1", "name": "weather"}
ODD_CALLS: dict[str, list[dict[str, Any]]] = {
    "no id": [piece(0, '{"city": ', name="weather"), piece(0, '"Seoul"}')],
    "an empty id": [piece(0, '{"city": ', id="", name="weather"), piece(0, '"Seoul"}', id="", name="")],
    "no index": [piece(None, '{"city": ', **NAMED), piece(None, '"Seoul"}')],
    "an index from 1": [piece(1, '{"city": ', **NAMED), piece(1, '"Seoul"}')],
    "all of it in every piece": [piece(0, '{"city": ', **NAMED), piece(0, '"Seoul"}', **NAMED), piece(0, "", **NAMED)],
    "the name in every piece": [piece(0, '{"city": ', name="weather"), piece(0, '"Seoul"}', name="weather")],
    "another id in every piece": [piece(0, '{"city": ', **NAMED), piece(0, '"Seoul"}', id="call_2")],
}


@pytest.mark.parametrize("pieces", ODD_CALLS.values(), ids=ODD_CALLS.keys())
async def test_odd_calls_streamed(naru: SmallNaru, upstream: FakeUpstream, pieces: list[dict[str, Any]]) -> None:
    """A call has an index, an id and a name, once, whatever the upstream leaves out or repeats; in Messages too."""
    upstream.stream = [*(chunk(gained(tool_calls=[one])) for one in pieces), END]
    told = await streamed(naru)
    assert {call.index for call in told} == {0}
    assert [call.function.name for call in told] == ["weather", None]
    assert told[0].id
    assert told[1].id is None
    assert "".join(call.function.arguments for call in told) == '{"city": "Seoul"}'
    origin = naru.url.removesuffix("/v1")
    async with (
        anthropic.AsyncAnthropic(base_url=origin, api_key=naru.key, max_retries=0) as client,
        client.messages.stream(model="ours", max_tokens=50, messages=MESSAGES) as stream,
    ):
        (block,) = (await stream.get_final_message()).content
    assert block.type == "tool_use"
    assert (block.name, block.input) == ("weather", {"city": "Seoul"})
    assert block.id


async def test_calls_of_one_index(naru: SmallNaru, upstream: FakeUpstream) -> None:
    """Calls that an upstream gives one index each have their own."""
    calls = [piece(0, "{}", id=f"call_{number}", name="weather") for number in (1, 2)]
    upstream.stream = [*(chunk(gained(tool_calls=[one])) for one in calls), END]
    told = [(call.index, call.id, call.function.name) for call in await streamed(naru)]
    assert told == [(0, "call_1", "weather"), (1, "call_2", "weather")]


async def test_calls_without_ids_whole(naru: SmallNaru, upstream: FakeUpstream) -> None:
    """Each call of an answer that is not streamed has an id of its own too, its name and its arguments."""
    upstream.answer = whole({"tool_calls": [piece(None, "{}", name="weather"), piece(None, "{}", id="", name="time")]})
    answer: Any = await naru.client.chat.completions.create(model="ours", messages=MESSAGES, tools=TOOLS)
    first, second = answer.choices[0].message.tool_calls
    assert (first.function.name, second.function.name) == ("weather", "time")
    assert len({first.id, second.id, ""}) == 3
