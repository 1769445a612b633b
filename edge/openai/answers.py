"""What chat completions and completions have in common: usage, logprobs, and collecting a whole answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from edge.generation import Candidate, Delta, Logprob, PromptOutput, ToolCallDelta
from naru.money import format_money
from naru.usage import Usage

SERVICE_FINISH_REASONS = ("abort", "error")
"""Reasons OpenAI does not have: the service ended the choice, and an error follows."""
_LEAST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What is the same in every part of one answer.

    Attributes:
        answer_id: Such as "chatcmpl-0198c7c28d6f7c39a1f56f1f60a7a4b1".
        created: Seconds since the Unix epoch.
        model: The model's name as the caller sees it.
        choices: How many choices there are, over all prompts.
        prompt_tokens: Tokens of all prompts.
        include_usage: Whether a stream ends with a chunk that tells the usage.
        continuous_usage: Whether every chunk tells the usage so far.
        token_ids: Whether choices tell their token ids.
        tokens_as_ids: Whether logprobs name tokens as "token_id:<id>".
        repeated: What of its request decides how it looks, by its field.
    """

    answer_id: str
    created: int
    model: str
    choices: int
    prompt_tokens: int
    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False
    repeated: Mapping[str, Any] = field(default_factory=dict)


class AnswerStream(Protocol):
    """Renders an answer as server-sent events.

    Attributes:
        numbered: How many events it has rendered that have a number; 0 where the API numbers none.
    """

    numbered: int

    def start(self) -> bytes:
        """What comes before any text; may be empty."""

    def render(self, deltas: Iterable[Delta]) -> bytes:
        """The events for what one step brought; may be empty."""

    def finish(self, usage: Usage, cost: int | None = None) -> bytes:
        """What comes after all text, without the last event; may be empty. `cost`: as `usage_object`."""


class WholeAnswer(Protocol):
    """Collects an answer and renders it as one JSON object."""

    def add(self, deltas: Iterable[Delta]) -> None:
        """Takes what one step brought."""

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The JSON object. `cost`: as `usage_object`."""


@dataclass(slots=True)
class CollectedCall:
    """One tool call of a choice, so far."""

    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def add(self, piece: ToolCallDelta) -> None:
        """Takes the next piece of it."""
        self.call_id = self.call_id or piece.id
        self.name = self.name or piece.name
        self.arguments.append(piece.arguments)


@dataclass(slots=True)
class CollectedChoice:
    """One choice of an answer, so far. `calls`: its tool calls, by their index."""

    texts: list[str] = field(default_factory=list)
    finish_reason: str = ""
    stop_reason: str | int | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, CollectedCall] = field(default_factory=dict)
    prompt_token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[Logprob] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Takes what it gained."""
        self.texts.append(delta.text)
        self.logprobs.extend(delta.logprobs)
        self.token_ids.extend(delta.token_ids)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            self.calls.setdefault(piece.index, CollectedCall()).add(piece)
        if delta.prompt is not None:
            self.prompt_token_ids.extend(delta.prompt.token_ids)
            self.prompt_logprobs.extend(delta.prompt.logprobs)
        if delta.finish_reason:
            self.finish_reason = delta.finish_reason
            self.stop_reason = stop_reason(delta)

    def prompt(self) -> dict[str, Any]:
        """What was asked about the prompt, as vLLM shows it; empty when nothing was."""
        shown: dict[str, Any] = {}
        if self.prompt_token_ids:
            shown["prompt_token_ids"] = self.prompt_token_ids
        if self.prompt_logprobs:
            shown["prompt_logprobs"] = [_prompt_logprob(logprob) for logprob in self.prompt_logprobs]
        return shown


class Collector:
    """Collects the choices of an answer; what implements `WholeAnswer` says how a choice looks."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._choices = [CollectedChoice() for _ in range(options.choices)]

    def add(self, deltas: Iterable[Delta]) -> None:
        """Takes what one step brought."""
        for delta in deltas:
            self._choices[delta.choice_index].add(delta)

    def _render(
        self,
        kind: str,
        usage: Usage,
        cost: int | None,
        content: Callable[[CollectedChoice], dict[str, Any]],
        **more: Any,
    ) -> bytes:
        """The object of this `kind`; `content` makes of a choice the fields that differ between kinds.

        `more`: fields that only some answers have.
        """
        options = self._options
        choices: list[dict[str, Any]] = []
        for index, choice in enumerate(self._choices):
            shown = {
                "index": index,
                **content(choice),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            if options.token_ids:
                shown["token_ids"] = choice.token_ids
            choices.append(shown)
        return msgspec.json.encode(
            {
                "id": options.answer_id,
                "object": kind,
                "created": options.created,
                "model": options.model,
                "choices": choices,
                "usage": usage_object(usage, cost),
                "system_fingerprint": None,
                **more,
            }
        )


class TokenTally:
    """Sums what choices generated so far, for continuous usage."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._by_choice: dict[int, int] = {}
        self._total = 0

    def usage(self, delta: Delta) -> Usage:
        """The usage with `delta` in it."""
        self._total += delta.completion_tokens - self._by_choice.get(delta.choice_index, 0)
        self._by_choice[delta.choice_index] = delta.completion_tokens
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._total)


def stop_reason(delta: Delta) -> str | int | None:
    """The stop text or token that ended a choice, vLLM's addition to OpenAI's shape."""
    return delta.stop_text or delta.stop_token_id


def usage_object(usage: Usage, cost: int | None = None) -> dict[str, Any]:
    """`usage` as OpenAI shows it; with `cost`, in nano-units, also `cost` in units of the currency as OpenRouter shows it."""
    shown: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    if cost is not None:
        # Written digit by digit: a float would round.
        shown["cost"] = msgspec.Raw(format_money(cost).encode())
    return shown


def chat_logprobs(logprobs: Sequence[Logprob], *, as_ids: bool) -> dict[str, Any] | None:
    """Logprobs as chat completions show them; None when there are none."""
    if not logprobs:
        return None
    return {
        "content": [
            {
                **_chat_candidate(logprob.chosen, as_ids=as_ids),
                "top_logprobs": [_chat_candidate(candidate, as_ids=as_ids) for candidate in logprob.top],
            }
            for logprob in logprobs
        ],
        "refusal": None,
    }


def completion_logprobs(logprobs: Sequence[Logprob], *, offset: int, as_ids: bool) -> dict[str, Any] | None:
    """Logprobs as completions show them; None when there are none. `offset`: characters of the choice before them."""
    if not logprobs:
        return None
    offsets = []
    for logprob in logprobs:
        offsets.append(offset)
        offset += len(logprob.chosen.token)
    return {
        "text_offset": offsets,
        "tokens": [_name(logprob.chosen, as_ids=as_ids) for logprob in logprobs],
        "token_logprobs": [None if logprob.unknown else _finite(logprob.chosen.logprob) for logprob in logprobs],
        # The token itself is always among them, which makes one more when it was none of the likeliest.
        "top_logprobs": [
            None
            if logprob.unknown
            else {
                _name(candidate, as_ids=as_ids): _finite(candidate.logprob)
                for candidate in (logprob.chosen, *logprob.top)
            }
            for logprob in logprobs
        ],
    }


def prompt_token_ids(prompt: PromptOutput | None) -> dict[str, Any]:
    """The prompt's token ids as a field of their own; nothing when they were not asked for."""
    return {"prompt_token_ids": prompt.token_ids} if prompt is not None and prompt.token_ids else {}


def _prompt_logprob(logprob: Logprob) -> dict[str, Any] | None:
    if logprob.unknown:
        return None
    return {
        str(candidate.token_id): {
            "logprob": _finite(candidate.logprob),
            "rank": candidate.rank,
            "decoded_token": candidate.token,
        }
        for candidate in (logprob.chosen, *logprob.top)
    }


def _chat_candidate(candidate: Candidate, *, as_ids: bool) -> dict[str, Any]:
    return {
        "token": _name(candidate, as_ids=as_ids),
        "logprob": _finite(candidate.logprob),
        "bytes": list(candidate.token.encode()),
    }


def _name(candidate: Candidate, *, as_ids: bool) -> str:
    return f"token_id:{candidate.token_id}" if as_ids else candidate.token


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, _LEAST_LOGPROB)
