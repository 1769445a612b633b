"""What the edge reads of a request body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.openai.requests import parse_chat, parse_completion
from naru.errors import NaruError, Reason
from naru.prompt_estimate import estimate_prompt_tokens


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields).encode()


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "hi"} | fields).encode()


def test_defaults() -> None:
    """A minimal request: whole answer, one choice, no cap."""
    body = chat()
    request = parse_chat(body)
    assert (request.model, request.stream, request.output_tokens, request.include_usage) == ("m", False, 0, False)
    assert request.body is body


@pytest.mark.parametrize(
    ("fields", "output_tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": None, "n": None, "stream": None}, 0),
    ],
)
def test_chat_output_tokens(fields: dict[str, Any], output_tokens: int) -> None:
    """What can be generated is n times the cap, and max_completion_tokens wins."""
    assert parse_chat(chat(**fields)).output_tokens == output_tokens


@pytest.mark.parametrize(
    ("prompt", "prompts", "most_input"),
    [
        ("hello", 1, 40),
        (["hello", "world", "!"], 3, 110),
        ([1, 2, 3], 1, 3),
        ([[1, 2, 3], [4]], 2, 4),
        (["hello", [1, 2]], 2, 40),
    ],
)
def test_completion_prompts(prompt: Any, prompts: int, most_input: int) -> None:
    """Prompts are counted in every form; without a cap each choice generates 16 tokens, as OpenAI's API says."""
    request = parse_completion(completion(prompt=prompt, n=2))
    assert (request.output_tokens, request.choices) == (prompts * 2 * 16, prompts * 2)
    assert len(str(prompt)) / 10 <= request.input_tokens <= most_input


def test_stream_options() -> None:
    """Usage in streams is off, at the end, or in every chunk."""
    assert parse_chat(chat(stream=True)).include_usage is False
    assert parse_chat(chat(stream=True, stream_options={"include_usage": True})).include_usage is True
    both = parse_chat(chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    assert both.continuous_usage is True
    assert parse_chat(chat(), stream=True).stream is True
    assert parse_chat(chat(stream=False), stream=True).stream is False


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (chat(model=None), "model", "you must provide a model parameter"),
        (chat(model=""), "model", "you must provide a model parameter"),
        (chat(model=5), "model", "Invalid type for 'model': expected a string, but got an integer instead."),
        (chat(n="2"), "n", "Invalid type for 'n': expected an integer, but got a string instead."),
        (chat(n=129), "n", "Invalid value for 'n': 129. Must be between 1 and 128."),
        (chat(n=10**30), "n", None),
        (chat(max_tokens=1.5), "max_tokens", None),
        (chat(max_tokens=2**31), "max_tokens", None),
        (chat(max_completion_tokens=0), "max_completion_tokens", None),
        (chat(messages=None), "messages", None),
        (chat(messages={}), "messages", None),
        (chat(stream=1), "stream", "Invalid type for 'stream': expected a boolean, but got an integer instead."),
        (chat(stream=True, stream_options=True), "stream_options", None),
        (chat(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage", None),
        (chat(stream_options={"include_usage": True}), "stream_options", None),
    ],
)
def test_wrong_chat_fields(body: bytes, field: str, message: str | None) -> None:
    """A wrong field is named, in OpenAI's words."""
    with pytest.raises(NaruError) as failure:
        parse_chat(body)
    assert failure.value.reason is Reason.INVALID_ARGUMENT
    assert failure.value.metadata == {"field": field}
    if message is not None:
        assert failure.value.message == message


@pytest.mark.parametrize("model", ["x" * 513, "a\0b", "a\nb"])
def test_what_is_no_name_of_a_model(model: str) -> None:
    """A name that no model can have is refused without quoting it: it would fill logs, or break them."""
    with pytest.raises(NaruError) as failure:
        parse_chat(chat(model=model))
    assert failure.value.metadata == {"field": "model"}
    assert model not in failure.value.message


@pytest.mark.parametrize("prompt", [{"a": 1}, [1, "a"], [1.5], [["a"]], True])
def test_wrong_prompts(prompt: Any) -> None:
    """A prompt in no known form is refused by name."""
    with pytest.raises(NaruError) as failure:
        parse_completion(completion(prompt=prompt))
    assert failure.value.metadata["field"].startswith("prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"secret"',
        b"\xff\xfe",
        b'{"model":"\xff"}',
        b'{"model":"m","messages":[],"usage":null,"\xff":1}',
        b'{"x":' + b"[" * 100_000,
    ],
)
def test_no_json_object(body: bytes) -> None:
    """What is no JSON object is refused without quoting it."""
    with pytest.raises(NaruError) as failure:
        parse_chat(body)
    assert failure.value.reason is Reason.INVALID_ARGUMENT
    assert "JSON" in failure.value.message
    assert "secret" not in failure.value.message


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # Tokens that SmolLM2's tokenizer makes of these, with the default system prompt of its chat template.
        ("What is the capital of France?", 37),
        ("The quick brown fox jumps over the lazy dog. " * 20, 231),
        ("def add(a: int, b: int) -> int:\n    return a + b\n" * 10, 230),
        ("대한민국의 수도는 서울입니다. " * 20, 751),
    ],
)
def test_estimate_leans_upwards(text: str, tokens: int) -> None:
    """The estimate is above what the tokenizer makes of English, code and Korean, and below twice that."""
    body = json.dumps([{"role": "user", "content": text}]).encode()
    assert tokens <= estimate_prompt_tokens(body) <= tokens * 2


def test_estimate_ignores_media_bytes() -> None:
    """An embedded image counts as an image, not as its megabyte of base64."""
    url = "data:image/png;base64," + "iVBORw0KGgo" * 100_000
    body = json.dumps([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]).encode()
    assert 1_024 <= estimate_prompt_tokens(body) < 1_200


def test_estimate_counts_wide_characters_higher() -> None:
    """Text that is not ASCII takes more tokens per byte."""
    assert estimate_prompt_tokens("가".encode() * 100) > estimate_prompt_tokens(b"abc" * 100)


@pytest.mark.parametrize(
    ("usage", "include"),
    [({"include": True}, True), ({"include": False}, False), ({"include": None}, False), (None, False)],
)
def test_asking_for_the_cost(usage: Any, include: bool) -> None:
    """`usage.include` asks for the cost, which brings the usage to streams; the field never reaches the engine."""
    for parse, body in ((parse_chat, chat), (parse_completion, completion)):
        request = parse(body(usage=usage, stream=True))
        assert (request.include_cost, request.include_usage) == (include, include)
        assert json.loads(request.body) == json.loads(body(stream=True))
    assert not parse_chat(chat()).include_cost


def test_the_rest_of_the_body_stays_as_it_was_written() -> None:
    """Numbers, order and texts are untouched when the edge's own field is taken out."""
    rest = b'"a":1.50,"z":123456789012345678901234567890,"\\u0061b":{"y": 1,  "x":"\\u0041"}'
    body = b'{"model":"m","usage":{"include":true},"messages":[],' + rest + b"}"
    taken = parse_chat(body).body
    assert b'"z":123456789012345678901234567890' in taken
    assert b'"a":1.50' in taken
    assert b'{"y": 1,  "x":"\\u0041"}' in taken
    assert b"usage" not in taken
    assert list(json.loads(taken)) == ["model", "messages", "a", "z", "ab"]


@pytest.mark.parametrize(("usage", "field"), [(True, "usage"), ({"include": "yes"}, "usage.include")])
def test_wrong_ways_to_ask_for_the_cost(usage: Any, field: str) -> None:
    """A wrong type is named."""
    with pytest.raises(NaruError) as raised:
        parse_chat(chat(usage=usage))
    assert raised.value.metadata == {"field": field}
