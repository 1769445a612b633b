"""The answers of /v1/completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from edge.generation import Delta
from edge.openai.answers import (
    SERVICE_FINISH_REASONS,
    AnswerOptions,
    CollectedChoice,
    Collector,
    TokenTally,
    completion_logprobs,
    prompt_token_ids,
    stop_reason,
    usage_object,
)
from naru.usage import Usage

_encode = msgspec.json.encode


class CompletionStream:
    """Renders chunks; as `edge.openai.chat.ChatStream`."""

    def __init__(self, options: AnswerOptions) -> None:
        self.numbered = 0
        self._options = options
        self._tally = TokenTally(options.prompt_tokens)
        self._offsets = [0] * options.choices
        self._head = (
            b'data: {"id":'
            + _encode(options.answer_id)
            + b',"object":"text_completion","created":%d,"model":' % options.created
            + _encode(options.model)
            + b',"choices":['
        )
        self._tail = b'],"usage":null}\n\n' if options.include_usage else b"]}\n\n"
        self._prefixes = [self._head + b'{"index":%d,"text":' % index for index in range(options.choices)]
        self._suffix = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._plain = not (options.continuous_usage or options.token_ids)

    def start(self) -> bytes:
        """Nothing: completions have no role."""
        return b""

    def render(self, deltas: Iterable[Delta]) -> bytes:
        """A chunk for each delta with something to tell."""
        chunks = []
        for delta in deltas:
            if self._plain and not (delta.finish_reason or delta.logprobs or delta.prompt):
                if delta.text:
                    chunks.append(self._prefixes[delta.choice_index] + _encode(delta.text) + self._suffix)
            else:
                chunks.append(self._full(delta))
        return b"".join(chunks)

    def finish(self, usage: Usage, cost: int | None = None) -> bytes:
        """The usage, when it was asked for."""
        if not self._options.include_usage:
            return b""
        return self._head + b'],"usage":' + _encode(usage_object(usage, cost)) + b"}\n\n"

    def _full(self, delta: Delta) -> bytes:
        options = self._options
        tail = self._tail
        if options.continuous_usage:
            tail = b'],"usage":' + _encode(usage_object(self._tally.usage(delta))) + b"}\n\n"
        ended = delta.finish_reason if delta.finish_reason not in SERVICE_FINISH_REASONS else ""
        if not (delta.text or delta.logprobs or ended or delta.prompt or (options.token_ids and delta.token_ids)):
            return b""
        offset = self._offsets[delta.choice_index]
        self._offsets[delta.choice_index] += sum(len(logprob.chosen.token) for logprob in delta.logprobs)
        choice = {
            "index": delta.choice_index,
            "text": delta.text,
            "logprobs": completion_logprobs(delta.logprobs, offset=offset, as_ids=options.tokens_as_ids),
            "finish_reason": ended or None,
            "stop_reason": stop_reason(delta),
        }
        if options.token_ids:
            choice["token_ids"] = delta.token_ids
        choice |= prompt_token_ids(delta.prompt)
        return self._head + _encode(choice) + tail


class CompletionAnswer(Collector):
    """Collects a completion."""

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The `text_completion` object."""
        return self._render("text_completion", usage, cost, self._content)

    def _content(self, choice: CollectedChoice) -> dict[str, Any]:
        return {
            "text": "".join(choice.texts),
            "logprobs": completion_logprobs(choice.logprobs, offset=0, as_ids=self._options.tokens_as_ids),
            **choice.prompt(),
        }


def answer_id(event_id: str) -> str:
    """The id of the answer to the request of this event."""
    return "cmpl-" + event_id.replace("-", "")
