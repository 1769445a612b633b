"""Anthropic's answers and errors, exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from edge.accounts import LimitKind, LimitScope, LimitState, LimitWindow
from edge.anthropic.answers import MessageAnswer, MessageStream, answer_id
from edge.anthropic.dialect import anthropic_headers
from edge.anthropic.errors import anthropic_error, anthropic_plain_error
from edge.generation import Delta, ToolCallDelta
from edge.openai.answers import AnswerOptions
from naru.errors import NaruError, Reason
from naru.usage import Usage

USAGE = Usage(prompt_tokens=7, completion_tokens=3, cached_prompt_tokens=4, reasoning_tokens=1)
OPTIONS = AnswerOptions(answer_id="msg_1", created=1_800_000_000, model="m", choices=1, prompt_tokens=7)
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def events(data: bytes) -> list[dict[str, Any]]:
    """The events, each of which must bear its own name and pass the SDK's model."""
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    read = []
    for part in parts:
        name, content = part.split("\n")
        event = json.loads(content.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        read.append(event)
    return read


def calling(index: int, arguments: str, call_id: str = "", name: str = "") -> Delta:
    return Delta(0, "", 1, tool_calls=(ToolCallDelta(index, call_id, name, arguments),))


def test_blocks_are_begun_and_stopped_in_turn() -> None:
    """One block is open at a time; each is numbered; a second call is a block of its own."""
    stream = MessageStream(OPTIONS)
    shown = events(
        stream.start()
        + stream.render([Delta(0, "a", 2, reasoning="hm"), Delta(0, "b", 3)])
        + stream.render([calling(0, "", "c0", "f"), calling(0, "{}"), calling(1, "{}", "c1", "g")])
        + stream.render([Delta(0, "", 4, finish_reason="tool_calls")])
        + stream.finish(USAGE)
    )
    assert [(event["type"], event.get("index")) for event in shown[1:-2]] == [
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("content_block_start", 3),
        ("content_block_delta", 3),
        ("content_block_stop", 3),
    ]
    assert shown[-2]["delta"]["stop_reason"] == "tool_use"
    assert shown[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 1}


def test_an_answer_without_a_word() -> None:
    """There is no block, whole and streamed."""
    stream, answer = MessageStream(OPTIONS), MessageAnswer(OPTIONS)
    last = [Delta(0, "", 1, finish_reason="stop")]
    kinds = [event["type"] for event in events(stream.start() + stream.render(last) + stream.finish(USAGE))]
    assert kinds == ["message_start", "message_delta", "message_stop"]
    answer.add(last)
    message = Message.model_validate(json.loads(answer.render(USAGE)), strict=True)
    assert (message.content, message.stop_reason) == ([], "end_turn")


@pytest.mark.parametrize(
    ("deltas", "reason", "sequence"),
    [
        ([Delta(0, "a", 1, finish_reason="stop")], "end_turn", None),
        ([Delta(0, "a", 1, finish_reason="stop", stop_text="###")], "stop_sequence", "###"),
        ([Delta(0, "a", 1, finish_reason="length")], "max_tokens", None),
        ([Delta(0, "a", 1, finish_reason="content_filter")], "refusal", None),
        ([calling(0, "{}", "c", "f"), Delta(0, "", 2, finish_reason="stop")], "tool_use", None),
        ([Delta(0, "a", 1, finish_reason="abort")], None, None),
    ],
)
def test_reasons(deltas: list[Delta], reason: str | None, sequence: str | None) -> None:
    """Each of OpenAI's reasons has Anthropic's; what the service ended has none, as an error follows."""
    answer = MessageAnswer(OPTIONS)
    answer.add(deltas)
    body = json.loads(answer.render(USAGE))
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"z": 12345678901234567890123, "a": 1}', '"input":{"z": 12345678901234567890123, "a": 1}'),
        ("", '"input":{}'),
        ('{"cut', '"input":{}'),
        ("[1]", '"input":{}'),
        ('{"a":' * 5_000, '"input":{}'),
    ],
)
def test_arguments_of_a_call(arguments: str, shown: str) -> None:
    """They are shown as they were generated; those that are no object, as they were cut short or too deep, are empty."""
    answer = MessageAnswer(OPTIONS)
    answer.add([calling(0, arguments[:5], "c", "f"), calling(0, arguments[5:])])
    assert shown in answer.render(USAGE).decode()


def test_every_reason_is_answered() -> None:
    """Each has the status that OpenAI's clients see, but for overload, and one of Anthropic's types."""
    for reason in Reason:
        error = anthropic_error(NaruError(reason, "No."), "req_1")
        body = json.loads(error.body)
        assert body == {
            "type": "error",
            "error": {"type": body["error"]["type"], "message": "No."},
            "request_id": "req_1",
        }
        assert (error.status == 529) == (reason is Reason.OVERLOADED)
    assert json.loads(anthropic_plain_error(408, "Slow.", "r").body)["error"]["type"] == "invalid_request_error"


def test_words_of_a_chat_completion_are_translated() -> None:
    """A message of inference that tells what to send tells what to send here."""
    error = NaruError(Reason.NOT_SUPPORTED, 'Not with this model; `tools` need `tool_choice: "none"`.')
    message = json.loads(anthropic_error(error, "r").body)["error"]["message"]
    assert message == 'Not with this model; `tools` need `tool_choice: {"type": "none"}`.'


def test_headers_of_limits() -> None:
    """The tightest limit of each kind that can refuse, with the time when it is free again."""
    limits = [
        LimitState(LimitScope.KEY, LimitKind.REQUESTS, LimitWindow.MINUTE, 5, 0, 1.0, shadow=True),
        LimitState(LimitScope.KEY, LimitKind.REQUESTS, LimitWindow.MINUTE, 10, 9, 60.0),
        LimitState(LimitScope.KEY, LimitKind.OUTPUT_TOKENS, LimitWindow.DAY, 1000, -5, None),
    ]
    assert anthropic_headers("r1", limits, 1_800_000_000.0) == {
        "Request-Id": "r1",
        "Anthropic-RateLimit-Requests-Limit": "10",
        "Anthropic-RateLimit-Requests-Remaining": "9",
        "Anthropic-RateLimit-Requests-Reset": "2027-01-15T08:01:00Z",
        "Anthropic-RateLimit-Tokens-Limit": "1000",
        "Anthropic-RateLimit-Tokens-Remaining": "0",
        "Anthropic-RateLimit-Output-Tokens-Limit": "1000",
        "Anthropic-RateLimit-Output-Tokens-Remaining": "0",
    }
    assert answer_id("0198c7c2-8d6f") == "msg_0198c7c28d6f"
