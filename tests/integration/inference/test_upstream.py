"""A Naru whose model is served by another Naru: the real edge, the real inference service, over HTTP with a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from naru.api.accounting.v1 import usage_event_pb2
from tests.support.edge_harness import until
from tests.support.upstream import SmallNaru, behind, small_naru

pytestmark = pytest.mark.behaviour

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me of the ferry."}]


@dataclass(frozen=True, slots=True)
class Pair:
    """The Naru that is asked, and the one that answers."""

    front: SmallNaru
    upstream: SmallNaru

    async def both(self) -> tuple[usage_event_pb2.UsageEvent, usage_event_pb2.UsageEvent]:
        """The event of usage of each, of the only request there was."""
        (front,) = await self.front.events(1)
        (upstream,) = await self.upstream.events(1)
        return front, upstream


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """The front has a model of its own besides."""
    async with AsyncExitStack() as stack:
        simulated = {"served_model_name": "theirs", "simulated_tokens_per_second": 400.0}
        upstream = await stack.enter_async_context(small_naru(tmp_path / "upstream", simulated))
        own = {"served_model_name": "own", "simulated_tokens_per_second": 1000.0}
        front = await stack.enter_async_context(small_naru(tmp_path / "front", own, behind(upstream.url, upstream.key)))
        yield Pair(front, upstream)


def same(front: usage_event_pb2.UsageEvent, upstream: usage_event_pb2.UsageEvent) -> None:
    """What is billed here is what was billed there, and said to be a claim."""
    assert front.usage == upstream.usage
    assert front.usage.completion_tokens > 0
    assert front.accuracy == usage_event_pb2.ACCURACY_REPORTED
    assert front.outcome == usage_event_pb2.OUTCOME_COMPLETED
    assert (front.served_model, upstream.served_model) == ("ours", "theirs")


async def test_a_whole_chat(pair: Pair) -> None:
    """The SDK gets the upstream's answer under our model's name, and both books say what it was told."""
    answer = await pair.front.client.chat.completions.create(model="ours", messages=MESSAGES, n=2, max_tokens=12)
    direct = await pair.upstream.client.chat.completions.create(model="theirs", messages=MESSAGES, n=2, max_tokens=12)
    assert [choice.message.content for choice in answer.choices] == [c.message.content for c in direct.choices]
    assert answer.model == "ours"
    assert answer.usage == direct.usage
    same(*await pair.both())


async def test_a_streamed_chat(pair: Pair) -> None:
    """A stream brings the same texts, one end for each choice, and the upstream's usage."""
    stream = await pair.front.client.chat.completions.create(
        model="ours",
        messages=MESSAGES,
        n=2,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    )
    texts, ends, usage = {0: "", 1: ""}, [], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
            if choice.delta.content:
                assert choice.logprobs is not None
                assert choice.logprobs.content is not None
                assert "".join(entry.token for entry in choice.logprobs.content) == choice.delta.content
                assert len(choice.logprobs.content[0].top_logprobs) == 2
    direct = await pair.upstream.client.chat.completions.create(model="theirs", messages=MESSAGES, n=2, max_tokens=12)
    assert list(texts.values()) == [choice.message.content for choice in direct.choices]
    assert sorted(ends) == [(0, "length"), (1, "length")]
    assert usage == direct.usage
    same(*await pair.both())


@pytest.mark.parametrize("stream", [False, True])
async def test_completions(pair: Pair, stream: bool) -> None:
    """Several prompts at once, with log probabilities and a stop text, streamed or not."""
    asked: dict[str, Any] = {"prompt": ["A ferry", "A bridge"], "n": 2, "max_tokens": 20, "stop": ["er"], "logprobs": 1}
    direct = await pair.upstream.client.completions.create(model="theirs", **asked)
    if stream:
        texts = ["", "", "", ""]
        async for chunk in await pair.front.client.completions.create(model="ours", stream=True, **asked):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in direct.choices]
    else:
        answer = await pair.front.client.completions.create(model="ours", **asked)
        for ours, theirs in zip(answer.choices, direct.choices, strict=True):
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert ours.logprobs is not None
            assert theirs.logprobs is not None
            assert ours.logprobs.tokens == theirs.logprobs.tokens
            assert ours.logprobs.token_logprobs == theirs.logprobs.token_logprobs
        assert answer.usage == direct.usage
    (front,) = await pair.front.events(1)
    upstream = (await pair.upstream.events(2))[1]
    same(front, upstream)


async def test_messages_and_responses(pair: Pair) -> None:
    """The other two APIs work over an upstream that knows chats alone."""
    origin = pair.front.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=origin, api_key=pair.front.key, max_retries=0) as client:
        message = await client.messages.create(model="ours", messages=MESSAGES, max_tokens=8)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 8
    response = await pair.front.client.responses.create(
        model="ours", input="Tell me of the ferry.", max_output_tokens=8
    )
    assert response.usage is not None
    assert response.usage.output_tokens == 8
    front, upstream = await pair.front.events(2), await pair.upstream.events(2)
    assert [event.usage for event in front] == [event.usage for event in upstream]
    assert [event.endpoint for event in front] == ["/v1/messages", "/v1/responses"]


async def test_a_hang_up_ends_the_upstreams_request(pair: Pair) -> None:
    """Who hangs up ends the request there too, at once; here it is billed by an estimate, and says so."""
    stream = await pair.front.client.chat.completions.create(
        model="ours", messages=MESSAGES, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    seen = 0
    async for chunk in stream:
        seen += bool(chunk.choices and chunk.choices[0].delta.content)
        if seen == 20:
            break
    await stream.close()
    front, upstream = await pair.both()
    assert upstream.outcome == usage_event_pb2.OUTCOME_ABORTED
    assert upstream.usage.completion_tokens < 500
    assert front.outcome == usage_event_pb2.OUTCOME_ABORTED
    assert front.accuracy == usage_event_pb2.ACCURACY_ESTIMATED
    assert seen <= front.usage.completion_tokens <= 2 * upstream.usage.completion_tokens
    assert front.usage.prompt_tokens >= upstream.usage.prompt_tokens


async def test_a_hang_up_before_the_answer(pair: Pair, tmp_path: Path) -> None:
    """A whole answer that nobody waits for any more is stopped at the upstream before it is there."""
    body = {"model": "ours", "messages": MESSAGES, "max_tokens": 4000, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {pair.front.key}"}
    async with aiohttp.ClientSession() as http:
        asked = asyncio.create_task(http.post(f"{pair.front.url}/chat/completions", json=body, headers=headers))
        # Until its engine has it: all of it takes ten seconds.
        journal = tmp_path / "upstream/journal-0"
        await until(lambda: any(b'"kind":"accepted"' in part.read_bytes() for part in journal.glob("*.segment")))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    front, upstream = await pair.both()
    assert upstream.outcome == front.outcome == usage_event_pb2.OUTCOME_ABORTED
    assert upstream.usage.completion_tokens < 1000
    assert front.accuracy == usage_event_pb2.ACCURACY_ESTIMATED
    assert front.usage.prompt_tokens > 0


async def test_errors_of_the_request_are_told(pair: Pair) -> None:
    """What the upstream finds wrong with a request, streamed or not, is a 400 that says what; nothing is billed."""
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await pair.front.client.chat.completions.create(
                model="ours", messages=MESSAGES, stream=stream, logprobs=True, top_logprobs=33
            )
        assert "top_logprobs" in refused.value.message
    with pytest.raises(openai.BadRequestError) as long:
        await pair.front.client.chat.completions.create(model="ours", messages=MESSAGES, max_tokens=9000)
    assert long.value.code == "context_length_exceeded"
    await until(lambda: len(pair.front.accounting.released) == 3)
    assert not pair.front.accounting.events


async def test_models_side_by_side(pair: Pair) -> None:
    """One edge serves its own model and the upstream's, each by its name, with what the upstream says of it."""
    listed = {model.id: model for model in (await pair.front.client.models.list()).data}
    assert sorted(listed) == ["ours", "own"]
    assert (listed["ours"].owned_by, listed["own"].owned_by) == ("upstream", "simulated")
    assert listed["ours"].max_model_len == 8192  # type: ignore[attr-defined] # vLLM's field
    for model in ("own", "ours"):
        await pair.front.client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4)
    own, ours = await pair.front.events(2)
    assert (own.replica, own.accuracy) == ("replica-0", usage_event_pb2.ACCURACY_EXACT)
    assert (ours.replica, ours.accuracy) == ("replica-1", usage_event_pb2.ACCURACY_REPORTED)
    assert len(await pair.upstream.events(1)) == 1


async def test_no_tokenizer(pair: Pair) -> None:
    """Tokens of an upstream's model are not known, and nobody pretends they were."""
    origin = pair.front.url.removesuffix("/v1")
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {pair.front.key}"}) as http,
        http.post(f"{origin}/tokenize", json={"model": "ours", "prompt": "A ferry"}) as answer,
    ):
        assert answer.status == 400
        assert "upstream" in (await answer.json())["error"]["message"]
