"""Answers have OpenAI's shapes: checked as JSON, and by the SDK's own models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from edge.generation import Candidate, Delta, Logprob, ServedModel
from edge.openai.answers import AnswerOptions
from edge.openai.chat import ChatAnswer, ChatStream, answer_id
from edge.openai.completions import CompletionAnswer, CompletionStream
from edge.openai.models import models_answer
from naru.usage import Usage

USAGE = Usage(prompt_tokens=7, completion_tokens=3, cached_prompt_tokens=4, reasoning_tokens=1)
USAGE_OBJECT = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
AWKWARD = 'quote " back\\slash\nnewline\u2028 emoji 🙂 한글 \x00 </script>'


def options(**more: Any) -> AnswerOptions:
    fixed = {"answer_id": "chatcmpl-1", "created": 1_800_000_000, "model": 'm"1', "choices": 1, "prompt_tokens": 7}
    return AnswerOptions(**(fixed | more))


def events(data: bytes) -> list[dict[str, Any]]:
    """The events, which must be one line of JSON each."""
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def logprob(token: str, value: float, token_id: int, *top: tuple[str, float, int]) -> Logprob:
    return Logprob(Candidate(token, value, token_id), tuple(Candidate(*candidate) for candidate in top))


def test_chat_stream_is_exact() -> None:
    """Every chunk is exactly what OpenAI sends: role, text, reason."""
    stream = ChatStream(options())
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_800_000_000, "model": 'm"1'}

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason} | more
        return common | {"choices": [choice]}

    assert events(stream.start()) == [chunk({"role": "assistant", "content": ""})]
    assert events(stream.render([Delta(0, AWKWARD, 1), Delta(0, "", 2)])) == [chunk({"content": AWKWARD})]
    assert events(stream.render([Delta(0, "end", 3, finish_reason="stop", stop_text="###")])) == [
        chunk({"content": "end"}),
        chunk({}, "stop", stop_reason="###"),
    ]
    assert stream.finish(USAGE) == b""


def test_chat_stream_passes_the_sdks_models() -> None:
    """All chunks of a stream with two choices, logprobs and usage validate as the SDK's ChatCompletionChunk."""
    stream = ChatStream(options(choices=2, include_usage=True))
    deltas = [
        Delta(0, "a", 1, logprobs=(logprob("a", -0.5, 5, ("a", -0.5, 5), ("b", float("-inf"), 6)),)),
        Delta(1, "b", 1, finish_reason="length"),
    ]
    chunks = events(stream.start() + stream.render(deltas) + stream.finish(USAGE))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert [chunk["choices"][0]["index"] for chunk in chunks[:2]] == [0, 1]
    assert chunks[2]["choices"][0]["logprobs"]["content"][0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -9999.0, "bytes": [98]},
        ],
    }
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["usage"] == USAGE_OBJECT
    assert chunks[-1]["choices"] == []


def test_continuous_usage_counts_all_choices() -> None:
    """With continuous usage every chunk tells the tokens so far, over all choices."""
    stream = ChatStream(options(choices=2, include_usage=True, continuous_usage=True))
    chunks = events(stream.start() + stream.render([Delta(0, "a", 2), Delta(1, "b", 3), Delta(0, "c", 4)]))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 0, 2, 5, 7]
    assert all(chunk["usage"]["prompt_tokens"] == 7 for chunk in chunks)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_reasons_of_the_service_are_not_shown(reason: str) -> None:
    """OpenAI has no such finish reasons: the text is shown, and an error follows from elsewhere."""
    for stream in (ChatStream(options()), CompletionStream(options())):
        chunks = events(stream.render([Delta(0, "last", 1, finish_reason=reason)]))
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None]


def test_token_ids_are_shown_when_asked_for() -> None:
    """The `return_token_ids` of vLLM works, also for tokens without text, and for names in logprobs."""
    stream = ChatStream(options(token_ids=True, tokens_as_ids=True))
    chunks = events(stream.render([Delta(0, "", 1, token_ids=(42,), logprobs=(logprob("x", -1.0, 42),))]))
    assert chunks[0]["choices"][0]["token_ids"] == [42]
    assert chunks[0]["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:42"


def test_whole_chat_answer() -> None:
    """A whole answer validates as the SDK's ChatCompletion and holds each choice's text, reason and logprobs."""
    answer = ChatAnswer(options(choices=2))
    answer.add([Delta(0, "Hel", 1, logprobs=(logprob("Hel", -1.0, 1),)), Delta(1, "other", 1)])
    answer.add([Delta(0, "lo", 2, finish_reason="stop", stop_token_id=9, logprobs=(logprob("lo", -2.0, 2),))])
    answer.add([Delta(1, "", 2, finish_reason="length")])
    body = json.loads(answer.render(USAGE))
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert [choice.message.content for choice in parsed.choices] == ["Hello", "other"]
    assert [choice.finish_reason for choice in parsed.choices] == ["stop", "length"]
    assert [content["token"] for content in body["choices"][0]["logprobs"]["content"]] == ["Hel", "lo"]
    assert body["choices"][1]["logprobs"] is None
    assert body["choices"][0]["stop_reason"] == 9
    assert body["usage"] == USAGE_OBJECT
    assert body["system_fingerprint"] is None


def test_completion_stream() -> None:
    """Completions stream text; logprobs have offsets that go on from chunk to chunk."""
    stream = CompletionStream(options(include_usage=True))
    assert stream.start() == b""
    chunks = events(
        stream.render([Delta(0, AWKWARD, 1)])
        + stream.render([Delta(0, "ab", 2, logprobs=(logprob("ab", -0.1, 3, ("ab", -0.1, 3)),))])
        + stream.render([Delta(0, "c", 3, finish_reason="stop", logprobs=(logprob("c", -0.2, 4),))])
        + stream.finish(USAGE)
    )
    assert chunks[0]["choices"][0]["text"] == AWKWARD
    assert chunks[1]["choices"][0]["logprobs"] == {
        "text_offset": [0],
        "tokens": ["ab"],
        "token_logprobs": [-0.1],
        "top_logprobs": [{"ab": -0.1}],
    }
    assert chunks[2]["choices"][0]["logprobs"]["text_offset"] == [2]
    assert chunks[2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[3]["usage"] == USAGE_OBJECT
    # The SDK's own type wants a finish reason in every chunk, which no server sends; what it parses it constructs.
    assert Completion.construct(**chunks[0]).choices


def test_whole_completion() -> None:
    """A whole completion validates as the SDK's Completion."""
    answer = CompletionAnswer(options())
    answer.add([Delta(0, "a", 1), Delta(0, "b", 2, finish_reason="length")])
    parsed = Completion.model_validate(json.loads(answer.render(USAGE)), strict=True)
    assert parsed.choices[0].text == "ab"
    assert parsed.choices[0].finish_reason == "length"


def test_ids_and_models() -> None:
    """Answer ids carry the event; models are listed as OpenAI lists them."""
    assert answer_id("0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1") == "chatcmpl-0198c7c28d6f7c39a1f56f1f60a7a4b1"
    listed = json.loads(models_answer([ServedModel("m", "naru", 1_800_000_000.7, 2048)]))
    assert listed == {
        "object": "list",
        "data": [{"id": "m", "object": "model", "created": 1_800_000_000, "owned_by": "naru", "max_model_len": 2048}],
    }


@pytest.mark.parametrize(
    ("cost", "shown"),
    [(12_345, "0.000012345"), (0, "0"), (5 * 10**9, "5"), (123_456_789_123_456_789, "123456789.123456789")],
)
def test_cost_is_a_number_of_units(cost: int, shown: str) -> None:
    """The cost is in the usage, exact to the nano-unit, of whole answers and streams; without one there is no such field."""
    for answer in (ChatAnswer(options()), CompletionAnswer(options())):
        body = json.loads(answer.render(USAGE, cost), parse_float=str, parse_int=str)
        assert body["usage"]["cost"] == shown
        assert "cost" not in json.loads(answer.render(USAGE))["usage"]
    for stream in (ChatStream(options(include_usage=True)), CompletionStream(options(include_usage=True))):
        assert b'"cost":' + shown.encode() + b"}" in stream.finish(USAGE, cost)
        assert b"cost" not in stream.finish(USAGE)
