"""Anthropic's bodies become bodies of chat completions that say the same, or a 400 that says why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.anthropic.requests import parse_countable, parse_messages
from naru.errors import NaruError, Reason

USER = {"role": "user", "content": "Hi"}


def translated(**fields: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 5, "messages": [USER]} | fields
    result: dict[str, Any] = json.loads(parse_messages(json.dumps(body).encode()).body)
    return result


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": one} for one in texts]


CALL = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"b": 1, "a": 2}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "Rain."}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"b": 1, "a": 2}'}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], [USER]),
        ([{"role": "user", "content": text("Hi")}], [USER]),
        ([{"role": "user", "content": text("a", "b")}], [{"role": "user", "content": text("a", "b")}]),
        ([USER, USER], [{"role": "user", "content": text("Hi", "Hi")}]),
        (
            [USER, {"role": "assistant", "content": text("a", "b")}, USER],
            [USER, {"role": "assistant", "content": "ab"}, USER],
        ),
        (
            [
                USER,
                {"role": "assistant", "content": [*text("Let me ask."), CALL]},
                {"role": "user", "content": [RESULT]},
            ],
            [
                USER,
                {"role": "assistant", "content": "Let me ask.", "tool_calls": [OPENAI_CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
            ],
        ),
        (
            [USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [RESULT, *text("So?")]}],
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
                {"role": "user", "content": "So?"},
            ],
        ),
        (
            [{"role": "user", "content": [{**RESULT, "content": text("a", "b"), "is_error": True}]}],
            [{"role": "tool", "tool_call_id": "c1", "content": "Error: a\nb"}],
        ),
        (
            [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1"}]}],
            [{"role": "tool", "tool_call_id": "c1", "content": ""}],
        ),
        (
            [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": ""},
                        {"type": "redacted_thinking", "data": "x"},
                        *text("Yes."),
                    ],
                },
                USER,
            ],
            [USER, {"role": "assistant", "content": "Yes.", "reasoning": "Hm."}, USER],
        ),
        ([USER, {"role": "system", "content": "Now brief."}], [USER, {"role": "system", "content": "Now brief."}]),
        ([USER, {"role": "assistant", "content": ""}], [USER]),
    ],
)
def test_conversations(messages: list[Any], expected: list[Any]) -> None:
    """Blocks become OpenAI's messages: each turn one, each tool's result one of its own, arguments as they were written."""
    assert translated(messages=messages)["messages"] == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"system": text("a", "b")}, {"messages": [{"role": "system", "content": "a\nb"}, USER]}),
        ({"system": ""}, {}),
        ({"stop_sequences": ["END"]}, {"stop": ["END"]}),
        ({"stop_sequences": []}, {}),
        ({"stream": True}, {"stream": True}),
        ({"top_p": 0.5, "top_k": 3, "temperature": 0.25}, {"top_p": 0.5, "top_k": 3, "temperature": 0.25}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ),
        ({"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"z": 1, "a": 2}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"z": 1, "a": 2}, "strict": True},
                }
            },
        ),
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "w", "disable_parallel_tool_use": True}},
            {"tool_choice": {"type": "function", "function": {"name": "w"}}, "parallel_tool_calls": False},
        ),
        (
            {"tools": [{"name": "w", "description": "d", "input_schema": {"type": "object"}, "cache_control": {}}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "w", "parameters": {"type": "object"}, "description": "d"},
                    }
                ]
            },
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "The best is ("}]},
            {
                "messages": [USER, {"role": "assistant", "content": "The best is ("}],
                "add_generation_prompt": False,
                "continue_final_message": True,
            },
        ),
        ({"service_tier": "auto", "cache_control": {"type": "ephemeral"}, "container": None, "mcp_servers": []}, {}),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}, {}),
        ({"speed": "standard"}, {}),
    ],
)
def test_fields(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each field has its counterpart, and one that was not given is not made up."""
    assert translated(**fields) == {"model": "m", "max_completion_tokens": 5, "messages": [USER]} | expected


def test_schemas_and_arguments_arrive_as_they_were_written() -> None:
    """The order of keys, numbers beyond 64 bits and spaces are the client's."""
    schema = '{"z": 123456789012345678901234567890, "a":  1.10}'
    call = '{"type":"tool_use","id":"c","name":"w","input":SCHEMA}'
    body = (
        '{"model":"m","max_tokens":5,"tools":[{"name":"w","input_schema":SCHEMA}],"messages":[{"role":"assistant",'
        f'"content":[{call}]}},{{"role":"user","content":"x"}}]}}'
    )
    made = parse_messages(body.replace("SCHEMA", schema).encode()).body.decode()
    assert f'"parameters":{schema}' in made
    assert json.loads(made)["messages"][0]["tool_calls"][0]["function"]["arguments"] == schema


def test_what_the_edge_knows() -> None:
    """The estimate grows with the conversation and its tools; the most output is max_tokens."""
    small = parse_messages(json.dumps({"model": "m", "max_tokens": 5, "messages": [USER]}).encode())
    tools = [{"name": "w", "input_schema": {"type": "object", "description": "x" * 500}}]
    large = parse_messages(json.dumps({"model": "m", "max_tokens": 5, "messages": [USER], "tools": tools}).encode())
    assert (small.model, small.stream, small.output_tokens, small.choices) == ("m", False, 5, 1)
    assert large.input_tokens > small.input_tokens + 200
    assert not small.include_usage


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"max_tokens": None}, "max_tokens", Reason.INVALID_ARGUMENT),
        ({"max_tokens": 0}, "max_tokens", Reason.INVALID_ARGUMENT),
        ({"model": None}, "model", Reason.INVALID_ARGUMENT),
        ({"messages": None}, "messages", Reason.INVALID_ARGUMENT),
        ({"messages": []}, "messages", Reason.INVALID_ARGUMENT),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0", Reason.INVALID_ARGUMENT),
        ({"messages": [{"role": "assistant", "content": []}, USER]}, "messages.0", Reason.INVALID_ARGUMENT),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", Reason.INVALID_ARGUMENT),
        ({"messages": [{"role": "user"}]}, "messages[0]", Reason.INVALID_ARGUMENT),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0.type",
            Reason.NOT_SUPPORTED,
        ),
        (
            {"messages": [{"role": "user", "content": [*text("x"), {"type": "document", "source": {}}]}]},
            "messages.0.content.1.type",
            Reason.NOT_SUPPORTED,
        ),
        (
            {"messages": [{"role": "user", "content": [{**RESULT, "content": [{"type": "image", "source": {}}]}]}]},
            "messages.0.content.0.content.0.type",
            Reason.NOT_SUPPORTED,
        ),
        (
            {"messages": [{"role": "user", "content": [{**RESULT, "content": 7}]}]},
            "messages.0.content.0.content",
            Reason.INVALID_ARGUMENT,
        ),
        (
            {"messages": [{"role": "assistant", "content": [{**CALL, "input": "x"}]}]},
            "messages.0.content.0.input",
            Reason.INVALID_ARGUMENT,
        ),
        ({"stop_sequences": ["1", "2", "3", "4", "5"]}, "stop_sequences", Reason.INVALID_ARGUMENT),
        ({"stop_sequences": [" "]}, "stop_sequences", Reason.INVALID_ARGUMENT),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type", Reason.NOT_SUPPORTED),
        ({"tools": [{"name": "w"}]}, "tools.0.input_schema", Reason.INVALID_ARGUMENT),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type", Reason.INVALID_ARGUMENT),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name", Reason.INVALID_ARGUMENT),
        ({"thinking": {"type": "maybe"}}, "thinking.type", Reason.INVALID_ARGUMENT),
        ({"output_config": {"effort": "some"}}, "output_config.effort", Reason.INVALID_ARGUMENT),
        ({"output_config": {"format": {"type": "x", "schema": {}}}}, "output_config.format.type", None),
        ({"container": "c"}, "container", Reason.NOT_SUPPORTED),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", Reason.NOT_SUPPORTED),
        ({"speed": "fast"}, "speed", Reason.NOT_SUPPORTED),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_1"}]}}, "context_management.edits", None),
        ({"service_tier": "flex"}, "service_tier", Reason.INVALID_ARGUMENT),
        ({"temperature": "hot"}, "temperature", Reason.INVALID_ARGUMENT),
        ({"unheard_of": 1}, "unheard_of", Reason.INVALID_ARGUMENT),
    ],
)
def test_refusals(fields: dict[str, Any], field: str, reason: Reason | None) -> None:
    """What cannot be meant or cannot be done names its field."""
    with pytest.raises(NaruError) as caught:
        translated(**fields)
    assert caught.value.metadata["field"] == field
    assert caught.value.reason in ((reason,) if reason else (Reason.INVALID_ARGUMENT, Reason.NOT_SUPPORTED))


@pytest.mark.parametrize(
    ("thinking", "enabled"), [(None, True), ({"type": "disabled"}, False), ({"type": "adaptive"}, True)]
)
def test_counting_tells_the_template_what_the_message_would(thinking: dict[str, str] | None, enabled: bool) -> None:
    """The effort reaches it as a chat completion brings it: by its name, and as thinking unless that was turned off."""
    body = {"model": "m", "messages": [USER], "output_config": {"effort": "low"}, "thinking": thinking}
    made = json.loads(parse_countable(json.dumps(body).encode())[1])
    assert made["chat_template_kwargs"] == {"reasoning_effort": "low", "enable_thinking": enabled}
    assert "reasoning_effort" not in made


@pytest.mark.parametrize(
    "block",
    [
        b'{"type": "tool_use", "id": "a", "name": "f", "input": {"a": "\xff"}}',
        b'{"type": "tool_result", "tool_use_id": "a", "content": "\xff"}',
    ],
)
def test_no_text(block: bytes) -> None:
    """What is not UTF-8 is refused in words, also where it would go on as it was written."""
    role = b"assistant" if b"tool_use_id" not in block else b"user"
    turn = b'{"role": "user", "content": "x"}, {"role": "%s", "content": [%s]}' % (role, block)
    with pytest.raises(NaruError) as caught:
        parse_messages(b'{"model": "m", "max_tokens": 5, "messages": [%s]}' % turn)
    assert "JSON" in caught.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff"])
def test_no_json_object(body: bytes) -> None:
    """What is no JSON object is refused in words."""
    with pytest.raises(NaruError) as caught:
        parse_messages(body)
    assert "JSON" in caught.value.message


def test_counting_needs_no_max_tokens() -> None:
    """The prompt is the same as that of the message, fields that only generating knows are unknown."""
    body = {"model": "m", "messages": [USER], "system": "Brief.", "tool_choice": {"type": "any"}}
    model, made = parse_countable(json.dumps(body).encode())
    assert model == "m"
    assert json.loads(made) == {
        "model": "m",
        "messages": translated(system="Brief.")["messages"],
    }
    with pytest.raises(NaruError):
        parse_countable(json.dumps(body | {"max_tokens": 5}).encode())
