"""Anthropic's Messages, OpenAI's Responses and questions about tokens, on a whole installation with a real model."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import anthropic
import pytest

from tests.support.platform import MODEL, Platform

# The first one starts the installation.
pytestmark = pytest.mark.timeout(300)

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def asked(whole: Platform, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        whole.url + path,
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {whole.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_anthropics_sdk(naru: Platform) -> None:
    """It gets the same greedy answer whole and streamed, counted as count_tokens counts it, and a stop sequence ends it."""
    with anthropic.Anthropic(base_url=naru.url, api_key=naru.api_key, max_retries=0) as client:
        ask: dict[str, Any] = {"model": MODEL, "max_tokens": 30, "messages": QUESTION, "extra_body": {"temperature": 0}}
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
        counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)  # type: ignore[arg-type] # as above
        cut = client.messages.create(**ask, stop_sequences=["capital"])
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**ask | {"model": "none"})
    assert whole.content[0].type == streamed.content[0].type == "text"
    assert "Paris" in whole.content[0].text
    assert whole.content[0].text == streamed.content[0].text
    for message in (whole, streamed):
        usage = message.usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", "capital")


def test_anthropics_tools(naru: Platform) -> None:
    """A tool that must be called is called, with input that is its schema's."""
    tool: dict[str, Any] = {
        "name": "get_weather",
        "strict": True,
        "input_schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}}
        | {"required": ["city"], "additionalProperties": False},
    }
    ask: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [tool],
        "tool_choice": {"type": "tool", "name": "get_weather"},
        "extra_body": {"temperature": 0},
    }
    with anthropic.Anthropic(base_url=naru.url, api_key=naru.api_key, max_retries=0) as client:
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
    for message in (whole, streamed):
        (call,) = (block for block in message.content if block.type == "tool_use")
        assert call.name == "get_weather"
        assert isinstance(call.input, dict)
        assert set(call.input) == {"city"}
        assert message.stop_reason == "tool_use"


def test_responses(naru: Platform) -> None:
    """The OpenAI SDK gets the same greedy response whole and streamed."""
    client = naru.client()
    whole = client.responses.create(model=MODEL, input="What is the capital of France?", temperature=0)
    with client.responses.stream(model=MODEL, input="What is the capital of France?", temperature=0) as stream:
        streamed = stream.get_final_response()
    assert "Paris" in whole.output_text
    assert whole.output_text == streamed.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens > 0


def test_tokens_there_and_back(naru: Platform) -> None:
    """A text becomes tokens and the tokens become the text."""
    told = asked(naru, "/tokenize", {"model": MODEL, "prompt": "Once upon a time", "return_token_strs": True})
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) == 4
    assert asked(naru, "/detokenize", {"model": MODEL, "tokens": told["tokens"]}) == {"prompt": "Once upon a time"}
