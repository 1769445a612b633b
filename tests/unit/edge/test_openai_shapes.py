"""Answers have OpenAI's shapes: checked as JSON, and by the SDK's own models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from edge.generation import Candidate, Delta, Logprob, PromptOutput, ServedModel, ToolCallDelta
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
    (model,) = listed.pop("data")
    assert listed == {"object": "list"}
    (permission,) = model.pop("permission")
    assert permission["object"] == "model_permission"
    assert model == {
        "id": "m",
        "object": "model",
        "created": 1_800_000_000,
        "owned_by": "naru",
        "root": "m",
        "parent": None,
        "max_model_len": 2048,
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


CALLS = [
    Delta(0, "", 1, reasoning="I need "),
    Delta(0, "", 2, reasoning="a tool."),
    Delta(0, "Wait. ", 3, tool_calls=(ToolCallDelta(0, "call-a", "get_weather"),)),
    Delta(0, "", 4, tool_calls=(ToolCallDelta(0, arguments='{"city":'), ToolCallDelta(1, "call-b", "get_time", "{}"))),
    Delta(0, "", 5, finish_reason="tool_calls", tool_calls=(ToolCallDelta(0, arguments=' "Paris"}'),)),
]


def test_tool_calls_and_reasoning_are_streamed() -> None:
    """Every piece carries its index, the first one id, type and name; reasoning is apart; the SDK's models take it all."""
    sent = events(ChatStream(options()).render(CALLS))
    for chunk in sent:
        ChatCompletionChunk.model_validate(chunk)
    shown = [chunk["choices"][0]["delta"] for chunk in sent]
    assert shown == [
        {"reasoning": "I need "},
        {"reasoning": "a tool."},
        {
            "content": "Wait. ",
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call-a",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ""},
                }
            ],
        },
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": '{"city":'}},
                {"index": 1, "id": "call-b", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "Paris"}'}}]},
        {},
    ]
    assert sent[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_whole_answer_holds_its_calls() -> None:
    """The pieces of each call are put together; content is null where there is nothing but calls."""
    answer = ChatAnswer(options())
    answer.add(CALLS)
    message = json.loads(answer.render(USAGE))["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("Wait. ", "I need a tool.")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"name": "get_time", "arguments": "{}"},
    ]
    bare = ChatAnswer(options())
    bare.add([Delta(0, "", 1, finish_reason="tool_calls", tool_calls=(ToolCallDelta(0, "c", "f", "{}"),))])
    parsed = ChatCompletion.model_validate(json.loads(bare.render(USAGE)), strict=True)
    assert parsed.choices[0].message.content is None
    assert parsed.choices[0].finish_reason == "tool_calls"


def test_what_was_asked_about_the_prompt_is_told() -> None:
    """As vLLM tells it: of a chat beside its choices, of a completion in each; null for the token that nothing precedes."""
    first = Logprob(Candidate("The", 0.0, 5), unknown=True)
    second = Logprob(Candidate("x", -2.0, 6, 4), (Candidate("x", -2.0, 6, 4), Candidate("y", -0.5, 7, 1)))
    delta = Delta(0, "a", 1, finish_reason="stop", token_ids=(9,), prompt=PromptOutput((5, 6), (first, second)))
    told = [
        None,
        {
            "6": {"logprob": -2.0, "rank": 4, "decoded_token": "x"},
            "7": {"logprob": -0.5, "rank": 1, "decoded_token": "y"},
        },
    ]
    chat, completion = ChatAnswer(options(token_ids=True)), CompletionAnswer(options(token_ids=True))
    for answer in (chat, completion):
        answer.add([delta])
    of_chat, of_choice = json.loads(chat.render(USAGE)), json.loads(completion.render(USAGE))["choices"][0]
    assert (of_chat["prompt_token_ids"], of_chat["prompt_logprobs"]) == ([5, 6], told)
    assert (of_choice["prompt_token_ids"], of_choice["prompt_logprobs"]) == ([5, 6], told)
    assert events(ChatStream(options(token_ids=True)).render([delta]))[0]["prompt_token_ids"] == [5, 6]
    streamed = events(CompletionStream(options(token_ids=True)).render([delta]))[0]
    assert streamed["choices"][0]["prompt_token_ids"] == [5, 6]


def test_an_echo_s_first_token_has_no_probability() -> None:
    """Logprobs of a completion are null for it, and hold the chosen token beside the likeliest."""
    first = Logprob(Candidate("The", 0.0, 5), unknown=True)
    second = logprob("x", -2.0, 6, ("y", -0.5, 7))
    answer = CompletionAnswer(options())
    answer.add([Delta(0, "Thex", 1, finish_reason="length", logprobs=(first, second))])
    assert json.loads(answer.render(USAGE))["choices"][0]["logprobs"] == {
        "text_offset": [0, 3],
        "tokens": ["The", "x"],
        "token_logprobs": [None, -2.0],
        "top_logprobs": [None, {"x": -2.0, "y": -0.5}],
    }
