"""The ledger equals what the engine itself counted, whatever clients ask for and however they leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from naru.api.accounting.v1 import usage_event_pb2
from tests.support import accounts
from tests.support.platform import MODEL, Platform, until

# The first one starts the installation.
pytestmark = pytest.mark.timeout(300)

STORY: list[Any] = [{"role": "user", "content": "Tell me a long story about a ferry."}]
PROMPTS = ["The capital of France is", "One, two,", "나루는"]
LONG = 300
FIGURES = ("requests", "prompt_tokens", "cached_prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, and the usage that its client was told; None when it was told none."""

    name: str
    usage: Any


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    """Usage of a chat that is answered whole."""
    return client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=24, **fields).usage


def completion(client: openai.OpenAI, **fields: Any) -> Any:
    """Usage of three prompts at once."""
    return client.completions.create(model=MODEL, prompt=PROMPTS, max_tokens=9, **fields).usage


def streamed(chunks: Iterator[Any], most: int | None = None) -> Any:
    """Usage at the end of a stream; None when none came, and when the client hung up after `most` chunks."""
    usage = None
    for number, chunk in enumerate(chunks, 1):
        usage = chunk.usage or usage
        if number == most:
            chunks.close()  # type: ignore[attr-defined] # the SDK's stream
            return None
    return usage


def mix(client: openai.OpenAI) -> dict[str, Callable[[], Any]]:
    """Every way to ask that changes how tokens are counted or told."""
    told = {"stream": True, "stream_options": {"include_usage": True}}
    always = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}

    def chat_stream(most: int | None = None, **fields: Any) -> Any:
        wanted = {"model": MODEL, "messages": STORY, "max_tokens": 24, "stream": True} | fields
        return streamed(client.chat.completions.create(**wanted), most)

    def completion_stream(most: int | None = None, **fields: Any) -> Any:
        wanted = {"model": MODEL, "prompt": PROMPTS, "max_tokens": 9, "stream": True} | fields
        return streamed(client.completions.create(**wanted), most)

    return {
        "whole": lambda: chat(client),
        "whole, n = 3": lambda: chat(client, n=3, temperature=1.0),
        "stream": chat_stream,
        "stream, usage": lambda: chat_stream(**told),
        "stream, usage in every chunk": lambda: chat_stream(**always),
        "stream, n = 3": lambda: chat_stream(n=3, temperature=1.0),
        "stream, usage, n = 3": lambda: chat_stream(n=3, temperature=1.0, **told),
        "stop text": lambda: chat(client, stop=["."]),
        "prompts": lambda: completion(client),
        "prompts, n = 3": lambda: completion(client, n=3, temperature=1.0),
        "prompts, stream": completion_stream,
        "prompts, stream, usage, n = 3": lambda: completion_stream(n=3, temperature=1.0, **told),
        "hung up": lambda: chat_stream(3, max_tokens=LONG),
        "hung up, usage": lambda: chat_stream(5, max_tokens=LONG, **told),
        "hung up, n = 3": lambda: chat_stream(7, max_tokens=LONG, n=3, temperature=1.0),
        "prompts, hung up, usage, n = 3": lambda: completion_stream(9, max_tokens=LONG, n=3, **told),
        "hung up at once": lambda: chat_stream(1, max_tokens=LONG, **always),
    }


def ask_all(client: openai.OpenAI) -> list[Asked]:
    """Asks in all ways at once."""
    asked: list[Asked] = []
    threads = [
        threading.Thread(target=lambda name, ask: asked.append(Asked(name, ask())), args=one)
        for one in mix(client).items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == len(threads)
    return asked


def counted(naru: Platform) -> dict[str, int]:
    """What the engine itself has counted, warm-up excluded."""
    return {
        figure: int(naru.metric("inference", f'naru_inference_engine_counted{{figure="{figure}"}}'))
        for figure in FIGURES
    }


def test_the_ledger_is_what_the_engine_counted(naru: Platform) -> None:
    """`include_usage` or not, hung up or not, `n` = 3, several prompts: tokens, requests and cost agree exactly."""
    accounts.sell(naru)
    key = naru.new_key(description="metering", tier="unlimited")
    until(lambda: naru.leases() == 0, 30, "nothing of others to run")
    before = counted(naru)
    asked = ask_all(naru.client(key))
    until(lambda: naru.metric("inference", "naru_inference_generations") == 0, 30, "an idle engine")
    row = accounts.used(naru, key)
    after = counted(naru)
    engine = {figure: after[figure] - before[figure] for figure in FIGURES}
    assert engine["requests"] == row.requests == len(asked)
    assert engine == {
        "requests": row.requests,
        "prompt_tokens": row.usage.prompt_tokens,
        "cached_prompt_tokens": row.usage.cached_prompt_tokens,
        "completion_tokens": row.usage.completion_tokens,
    }
    assert row.cost == accounts.cost(
        row.requests, row.usage.prompt_tokens, row.usage.completion_tokens, row.usage.cached_prompt_tokens
    )
    events = {event.event_id: event for event in accounts.events(naru, key)}
    posted = accounts.entries(naru, list(events))
    assert {entry.event_id: -entry.amount for entry in posted} == {one: event.cost for one, event in events.items()}
    assert len(posted) == len(events) == len(asked)
    assert_told_what_was_billed(asked, list(events.values()))
    assert accounts.findings(naru) == []


def assert_told_what_was_billed(asked: list[Asked], events: list[Any]) -> None:
    """What clients were told is among what was billed; those that hung up were cut short."""
    billed = [(event.usage.prompt_tokens, event.usage.completion_tokens) for event in events]
    told = {one.name: one.usage for one in asked}
    assert {name for name, usage in told.items() if usage is not None} >= {
        "whole", "whole, n = 3", "stream, usage", "stream, usage, n = 3", "prompts, stream, usage, n = 3",
    }  # fmt: skip
    for name, usage in told.items():
        if usage is not None:
            assert (usage.prompt_tokens, usage.completion_tokens) in billed, name
    hung_up = [name for name in told if "hung up" in name]
    assert sum(event.outcome == usage_event_pb2.OUTCOME_ABORTED for event in events) == len(hung_up) == 5
