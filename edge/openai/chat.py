"""The answers of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from edge.generation import Delta, ToolCallDelta
from edge.openai.answers import (
    SERVICE_FINISH_REASONS,
    AnswerOptions,
    CollectedChoice,
    Collector,
    TokenTally,
    chat_logprobs,
    prompt_token_ids,
    stop_reason,
    usage_object,
)
from naru.usage import Usage

_encode = msgspec.json.encode


class ChatStream:
    """Renders chunks. All that is the same in every chunk is built once; per chunk only the text is escaped."""

    def __init__(self, options: AnswerOptions) -> None:
        self.numbered = 0
        self._options = options
        self._tally = TokenTally(options.prompt_tokens)
        self._head = (
            b'data: {"id":'
            + _encode(options.answer_id)
            + b',"object":"chat.completion.chunk","created":%d,"model":' % options.created
            + _encode(options.model)
            + b',"choices":['
        )
        self._tail = b'],"usage":null}\n\n' if options.include_usage else b"]}\n\n"
        self._prefixes = [self._head + b'{"index":%d,"delta":{"content":' % index for index in range(options.choices)]
        self._suffix = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._plain = not (options.continuous_usage or options.token_ids)

    def start(self) -> bytes:
        """The role of every choice."""
        tail = self._usage_tail(Usage(prompt_tokens=self._options.prompt_tokens))
        return b"".join(
            self._head
            + b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
            + tail
            for index in range(self._options.choices)
        )

    def render(self, deltas: Iterable[Delta]) -> bytes:
        """A chunk for each delta with something to tell, and one for each choice that ended."""
        chunks = []
        for delta in deltas:
            if self._plain and not (
                delta.finish_reason or delta.logprobs or delta.reasoning or delta.tool_calls or delta.prompt
            ):
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
        tail = self._usage_tail(self._tally.usage(delta)) if options.continuous_usage else self._tail
        chunks = b""
        told = _message_delta(delta)
        prompt = prompt_token_ids(delta.prompt) if delta.choice_index == 0 else {}
        if told or delta.logprobs or prompt or (options.token_ids and delta.token_ids):
            choice = {
                "index": delta.choice_index,
                "delta": told or {"content": ""},
                "logprobs": chat_logprobs(delta.logprobs, as_ids=options.tokens_as_ids),
                "finish_reason": None,
            }
            if options.token_ids:
                choice["token_ids"] = delta.token_ids
            chunks = self._head + _encode(choice) + (_with_fields(tail, prompt) if prompt else tail)
        if delta.finish_reason and delta.finish_reason not in SERVICE_FINISH_REASONS:
            end = {
                "index": delta.choice_index,
                "delta": {},
                "logprobs": None,
                "finish_reason": delta.finish_reason,
                "stop_reason": stop_reason(delta),
            }
            chunks += self._head + _encode(end) + tail
        return chunks

    def _usage_tail(self, usage: Usage) -> bytes:
        if not self._options.continuous_usage:
            return self._tail
        return b'],"usage":' + _encode(usage_object(usage)) + b"}\n\n"


class ChatAnswer(Collector):
    """Collects a chat completion."""

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The `chat.completion` object."""
        return self._render("chat.completion", usage, cost, self._content, **self._choices[0].prompt())

    def _content(self, choice: CollectedChoice) -> dict[str, Any]:
        text = "".join(choice.texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.reasoning:
            message["reasoning"] = "".join(choice.reasoning)
        if choice.calls:
            message["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in choice.calls.values()
            ]
        if not text and (choice.reasoning or choice.calls):
            message["content"] = None
        return {
            "message": message,
            "logprobs": chat_logprobs(choice.logprobs, as_ids=self._options.tokens_as_ids),
        }


def _message_delta(delta: Delta) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if delta.reasoning:
        told["reasoning"] = delta.reasoning
    if delta.text:
        told["content"] = delta.text
    if delta.tool_calls:
        told["tool_calls"] = [_call_delta(piece) for piece in delta.tool_calls]
    return told


def _call_delta(piece: ToolCallDelta) -> dict[str, Any]:
    if not piece.id:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    return {
        "index": piece.index,
        "id": piece.id,
        "type": "function",
        "function": {"name": piece.name, "arguments": piece.arguments},
    }


def _with_fields(tail: bytes, fields: dict[str, Any]) -> bytes:
    """The end of a chunk with more fields of the chunk itself; `tail` begins by closing its choices."""
    return b"]," + _encode(fields)[1:-1] + tail[1:]


def answer_id(event_id: str) -> str:
    """The id of the answer to the request of this event."""
    return "chatcmpl-" + event_id.replace("-", "")
