"""Reading what an upstream sends, which may be anything: chunks of a stream, and whole answers as one chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from inference.engine import ChoiceOutput, PromptOutput, TokenCandidate, TokenLogprob, ToolCallDelta
from inference.upstream_errors import BROKEN
from naru.errors import NaruError, unavailable
from naru.usage import Usage

_LEAST_LOGPROB = -9999.0
_LARGEST_INTEGER = 2**31 - 1
"""Of ids and counts on their way to the edge."""
_MOST_CALLS = 1024
_LONGEST_REASON = 64
_REASONING = ("reasoning", "reasoning_content")
"""OpenRouter's and vLLM's name, and DeepSeek's; who sends both means the same by them."""


@dataclass(frozen=True, slots=True)
class ChoicePiece:
    """What a choice gained. `output` says nothing of counts; `finish_reason` and the stop come with the end."""

    output: ChoiceOutput
    finish_reason: str = ""
    stop_text: str = ""
    stop_token_id: int | None = None


def broken() -> NaruError:
    """The answer is not what the API promises."""
    return unavailable("inference", BROKEN)


def read_chunk(chunk: object, *, chat: bool, whole: bool, choices: int) -> list[ChoicePiece]:
    """What the choices gained by a chunk.

    Args:
        chunk: Decoded JSON.
        chat: Whether choices hold messages.
        whole: Whether it is an answer that was not streamed.
        choices: How many choices were asked for.

    Raises:
        NaruError: SERVICE_UNAVAILABLE; it is no chunk.
    """
    if not isinstance(chunk, dict):
        raise broken()
    try:
        return [_piece(choice, chunk, chat, whole, choices) for choice in chunk.get("choices") or ()]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise broken() from None


def read_usage(chunk: object) -> Usage | None:
    """The usage that a chunk tells; None when it tells none that makes sense."""
    said = chunk.get("usage") if isinstance(chunk, dict) else None
    if not isinstance(said, dict):
        return None
    prompt, completion = _count(said, "prompt_tokens"), _count(said, "completion_tokens")
    if prompt is None or completion is None:
        return None
    cached = _count(said.get("prompt_tokens_details"), "cached_tokens") or 0
    reasoning = _count(said.get("completion_tokens_details"), "reasoning_tokens") or 0
    return Usage(prompt, completion, min(cached, prompt), min(reasoning, completion))


def _count(counts: object, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if _is_whole(value) else None


def _is_whole(value: object, most: int = _LARGEST_INTEGER) -> TypeGuard[int]:
    """Whether it is a whole number from 0 to `most`. To Python, true is one too."""
    return type(value) is int and 0 <= value <= most


def _piece(choice: Mapping[str, Any], chunk: Mapping[str, Any], chat: bool, whole: bool, choices: int) -> ChoicePiece:
    index = choice.get("index") or 0
    if not _is_whole(index, choices - 1):
        raise ValueError
    said = (choice.get("message" if whole else "delta") or {}) if chat else choice
    logprobs = choice.get("logprobs")
    prompt_ids = choice.get("prompt_token_ids") or chunk.get("prompt_token_ids") or ()
    output = ChoiceOutput(
        choice_index=index,
        text=_text(said, "content", "refusal") if chat else _text(said, "text"),
        completion_tokens=0,
        logprobs=() if not logprobs else _chat_logprobs(logprobs) if chat else _completion_logprobs(logprobs),
        token_ids=_token_ids(choice.get("token_ids")),
        reasoning=_first_text(said, _REASONING),
        tool_calls=tuple(_tool_call(call, number) for number, call in enumerate(said.get("tool_calls") or ())),
        prompt=PromptOutput(token_ids=_token_ids(prompt_ids)) if prompt_ids else None,
    )
    reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
    return ChoicePiece(
        output,
        finish_reason=_clean(str(reason))[:_LONGEST_REASON] if reason else "",
        stop_text=_clean(stop) if isinstance(stop, str) and reason == "stop" else "",
        stop_token_id=stop if _is_whole(stop) else None,
    )


def _text(said: Mapping[str, Any], *names: str) -> str:
    """The texts of fields, one after the other."""
    texts = [said.get(name) or "" for name in names]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return _clean("".join(texts))


def _clean(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can hold and nothing else can."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _token_ids(said: Any) -> tuple[int, ...]:
    ids = tuple(said or ())
    if not all(map(_is_whole, ids)):
        raise ValueError
    return ids


def _first_text(said: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := _text(said, name))), "")


def _tool_call(call: Mapping[str, Any], number: int) -> ToolCallDelta:
    """A piece of a call; a whole answer has no index, its calls stand in order."""
    function = call.get("function") or {}
    index = call.get("index")
    if index is None:
        index = number
    if not _is_whole(index, _MOST_CALLS - 1):
        raise ValueError
    return ToolCallDelta(
        index=index,
        id=_text(call, "id"),
        name=_text(function, "name"),
        arguments=_text(function, "arguments"),
    )


def _chat_logprobs(logprobs: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(_candidate(entry), tuple(map(_candidate, entry.get("top_logprobs") or ())))
        for entry in logprobs.get("content") or ()
    )


def _candidate(entry: Mapping[str, Any]) -> TokenCandidate:
    """A token of an upstream, which tells no ids."""
    logprob = float(entry["logprob"])
    return TokenCandidate(_clean(str(entry["token"])), logprob if logprob > _LEAST_LOGPROB else _LEAST_LOGPROB, 0)


def _completion_logprobs(logprobs: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    tokens, chosen = logprobs.get("tokens") or (), logprobs.get("token_logprobs") or ()
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    read = []
    for token, logprob, top in zip(tokens, chosen, tops, strict=True):
        # A prompt that is echoed has a first token, before which there is nothing to go by.
        of_token = {"token": token, "logprob": 0.0 if logprob is None else logprob}
        candidates = sorted((top or {}).items(), key=lambda entry: -float(entry[1]))
        likeliest = tuple(_candidate({"token": text, "logprob": number}) for text, number in candidates)
        read.append(TokenLogprob(_candidate(of_token), likeliest, unknown=logprob is None))
    return tuple(read)
