"""What upstreams send is read, whatever it is, and what they say in errors is shown without secrets."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inference.convert import delta_to_proto
from inference.engine import ChoiceOutput, TokenCandidate, TokenLogprob
from inference.upstream_chunks import read_chunk, read_usage
from inference.upstream_errors import from_status, from_stream, scrub
from naru.errors import NaruError
from naru.usage import Usage

KEY = "my-own-key"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=5)
NAMES = st.sampled_from(
    [
        "index",
        "delta",
        "message",
        "content",
        "text",
        "tool_calls",
        "function",
        "arguments",
        "logprobs",
        "tokens",
        "token",
        "logprob",
        "token_logprobs",
        "top_logprobs",
        "finish_reason",
        "stop_reason",
        "token_ids",
        "usage",
        "reasoning",
        "prompt_token_ids",
        "choices",
        "prompt_tokens",
        "completion_tokens",
        "prompt_tokens_details",
    ]
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=25
)


@settings(max_examples=60)
@given(st.lists(JSON, max_size=3), JSON, st.booleans(), st.booleans())
def test_any_json_is_a_chunk_or_an_error(choices: list[Any], usage: Any, chat: bool, whole: bool) -> None:
    """Nothing but NaruError is raised, and what is read is of choices that were asked for, in whole numbers."""
    chunk = {"choices": choices, "usage": usage}
    said = read_usage(chunk)
    if said is not None:
        assert min(said.prompt_tokens, said.completion_tokens) >= 0
        assert said.cached_prompt_tokens <= said.prompt_tokens
        assert said.reasoning_tokens <= said.completion_tokens
    with suppress(NaruError):
        for piece in read_chunk(chunk, chat=chat, whole=whole, choices=2):
            assert piece.output.choice_index in (0, 1)
            end = replace(piece.output, finish_reason=piece.finish_reason, stop_token_id=piece.stop_token_id)
            assert isinstance(delta_to_proto(end).SerializeToString(), bytes)


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": "half \ud83d of a pair"}, "finish_reason": "\udc00"},
        {"delta": {"tool_calls": [{"id": "\ud83d", "function": {"name": "\ud83d", "arguments": "\ud83d"}}]}},
        {"delta": {}, "logprobs": {"content": [{"token": "\ud83d", "logprob": float("nan")}]}},
        {"delta": {}, "token_ids": [2**31]},
        {"delta": {}, "token_ids": [-1]},
        {"delta": {}, "stop_reason": 2**40},
        {"delta": {"tool_calls": [{"index": 2**40}]}},
    ],
)
def test_what_no_message_can_hold(choice: dict[str, Any]) -> None:
    """Is mended or refused: written to the edge it would break the session of everybody."""
    with suppress(NaruError):
        (piece,) = read_chunk({"choices": [choice]}, chat=True, whole=False, choices=1)
        end = replace(piece.output, finish_reason=piece.finish_reason, stop_token_id=piece.stop_token_id)
        assert "nan" not in str(delta_to_proto(end))


@settings(max_examples=30)
@given(JSON, st.sampled_from([400, 401, 429, 500]))
def test_any_error_is_one_of_ours(body: Any, status: int) -> None:
    """Whatever a body holds, it becomes an error that can be sent."""
    for refusal in (from_status(status, body, {}, KEY), from_stream(body, KEY)):
        assert refusal.error.message
        assert all(isinstance(value, str) for value in refusal.error.metadata.values())


def test_a_completion() -> None:
    """Text, log probabilities, token ids and the stop text of a choice of vLLM's."""
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {"c": -2.0, "b": -0.5}]}
    choice = {"index": 1, "text": "ab", "logprobs": logprobs, "token_ids": [5, 6], "finish_reason": "stop"}
    (piece,) = read_chunk({"choices": [choice | {"stop_reason": "b"}]}, chat=False, whole=True, choices=2)
    a, b, c = TokenCandidate("a", 0.0, 0), TokenCandidate("b", -0.5, 0), TokenCandidate("c", -2.0, 0)
    assert piece.output == ChoiceOutput(
        1, "ab", 0, logprobs=(TokenLogprob(a, unknown=True), TokenLogprob(b, (b, c))), token_ids=(5, 6)
    )
    assert (piece.finish_reason, piece.stop_text, piece.stop_token_id) == ("stop", "b", None)


def test_usage() -> None:
    """Details are within what they are details of; nonsense is no usage."""
    said: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 9}}
    assert read_usage({"usage": said}) == Usage(3, 4, cached_prompt_tokens=3)
    for wrong in (None, [], {}, said | {"completion_tokens": "4"}, said | {"prompt_tokens": True}):
        assert read_usage({"usage": wrong}) is None


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"The key {KEY} is bad", "The key *** is bad"),
        ("Use sk-proj-abcdef123456 or Bearer xyz", "Use *** or ***"),
        ("In organization org-Abcdefgh on\ntokens", "In organization *** on tokens"),
        ("max_tokens is too large: sk-8", "max_tokens is too large: sk-8"),
    ],
)
def test_scrub(said: str, shown: str) -> None:
    """Keys and organisations go, words stay."""
    assert scrub(said, KEY) == shown


def test_scrub_keeps_texts_short() -> None:
    """However much an upstream has to say."""
    assert len(scrub("word " * 1000, KEY)) == 500


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, 1), ({"retry-after": "30"}, 30), ({"retry-after": "30", "retry-after-ms": "250"}, 0.25)]
    + [({"retry-after": wrong}, 1) for wrong in ("-3", "nan", "Wed, 21 Oct 2026 07:28:00 GMT")]
    + [({"retry-after": "1e9"}, 3600)],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    """As the upstream says, if that makes sense."""
    assert from_status(429, None, headers, KEY).error.retry_after == seconds
