"""The answers of /v1/messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from edge.generation import Delta, ToolCallDelta
from edge.openai.answers import SERVICE_FINISH_REASONS, AnswerOptions
from naru.usage import Usage

_encode = msgspec.json.encode


class MessageStream:
    """Renders an answer as Anthropic's events: a message of blocks, each begun, filled and stopped in turn."""

    def __init__(self, options: AnswerOptions) -> None:
        self.numbered = 0
        self._options = options
        self._ending = Ending()
        self._open: tuple[str, int] | None = None
        self._blocks = 0

    def start(self) -> bytes:
        """The message, with the tokens of its prompt and no content yet."""
        usage = usage_object(Usage(prompt_tokens=self._options.prompt_tokens))
        message = message_object(self._options, [], None, None, usage)
        return event("message_start", {"message": message})

    def render(self, deltas: Iterable[Delta]) -> bytes:
        """The events of the blocks that grew."""
        chunks: list[bytes] = []
        for delta in deltas:
            self._ending.add(delta)
            if delta.reasoning:
                self._begin(chunks, ("thinking", 0), {"type": "thinking", "thinking": "", "signature": ""})
                chunks.append(self._grow({"type": "thinking_delta", "thinking": delta.reasoning}))
            if delta.text:
                self._begin(chunks, ("text", 0), {"type": "text", "text": ""})
                chunks.append(self._grow({"type": "text_delta", "text": delta.text}))
            for call in delta.tool_calls:
                begun = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                self._begin(chunks, ("tool_use", call.index), begun)
                if call.arguments:
                    chunks.append(self._grow({"type": "input_json_delta", "partial_json": call.arguments}))
        return b"".join(chunks)

    def finish(self, usage: Usage, cost: int | None = None) -> bytes:
        """Why it ended, the usage, and the end. Anthropic's usage has no cost."""
        chunks: list[bytes] = []
        self._stop(chunks)
        reason, sequence = self._ending.reason()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        chunks.append(event("message_delta", {"delta": delta, "usage": usage_object(usage)}))
        chunks.append(event("message_stop", {}))
        return b"".join(chunks)

    def _begin(self, chunks: list[bytes], block: tuple[str, int], begun: dict[str, Any]) -> None:
        """Opens `block` unless it is the one that is open; one is open at a time."""
        if self._open == block:
            return
        self._stop(chunks)
        self._open = block
        chunks.append(event("content_block_start", {"index": self._blocks, "content_block": begun}))

    def _grow(self, delta: dict[str, str]) -> bytes:
        return event("content_block_delta", {"index": self._blocks, "delta": delta})

    def _stop(self, chunks: list[bytes]) -> None:
        if self._open is not None:
            chunks.append(event("content_block_stop", {"index": self._blocks}))
            self._open = None
            self._blocks += 1


class MessageAnswer:
    """Collects a message."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._ending = Ending()
        self._thinking: list[str] = []
        self._texts: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}

    def add(self, deltas: Iterable[Delta]) -> None:
        """Takes what one step brought."""
        for delta in deltas:
            self._ending.add(delta)
            self._thinking.append(delta.reasoning)
            self._texts.append(delta.text)
            for call in delta.tool_calls:
                self._calls.setdefault(call.index, []).append(call)

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The `message` object."""
        content: list[dict[str, Any]] = []
        thinking, text = "".join(self._thinking), "".join(self._texts)
        if thinking:
            content.append({"type": "thinking", "thinking": thinking, "signature": ""})
        if text:
            content.append({"type": "text", "text": text})
        content += [_tool_use(pieces) for pieces in self._calls.values()]
        reason, sequence = self._ending.reason()
        return _encode(message_object(self._options, content, reason, sequence, usage_object(usage)))


class Ending:
    """Why a message ends, in Anthropic's words."""

    def __init__(self) -> None:
        self._finish_reason = ""
        self._stop_text = ""
        self._called = False

    def add(self, delta: Delta) -> None:
        """Takes what one step brought."""
        self._called = self._called or bool(delta.tool_calls)
        if delta.finish_reason and delta.finish_reason not in SERVICE_FINISH_REASONS:
            self._finish_reason, self._stop_text = delta.finish_reason, delta.stop_text

    def reason(self) -> tuple[str | None, str | None]:
        """The reason, and the stop sequence when that is it."""
        match self._finish_reason:
            case "":
                return None, None
            case "length":
                return "max_tokens", None
            case "tool_calls":
                return "tool_use", None
            case "content_filter":
                # An upstream's.
                return "refusal", None
            case _ if self._stop_text:
                return "stop_sequence", self._stop_text
            case _:
                # A call that was forced by name ends with "stop", as OpenAI has it.
                return "tool_use" if self._called else "end_turn", None


def event(kind: str, fields: dict[str, Any]) -> bytes:
    """One server-sent event of this type."""
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"


def message_object(
    options: AnswerOptions,
    content: list[dict[str, Any]],
    reason: str | None,
    sequence: str | None,
    usage: dict[str, Any],
) -> dict[str, Any]:
    """A message."""
    return {
        "id": options.answer_id,
        "type": "message",
        "role": "assistant",
        "model": options.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """`usage` as Anthropic tells it: `input_tokens` are those of the prompt that did not come from the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "standard",
    }


def answer_id(event_id: str) -> str:
    """The id of the message that answers the request of this event."""
    return "msg_" + event_id.replace("-", "")


def _tool_use(pieces: list[ToolCallDelta]) -> dict[str, Any]:
    arguments = "".join(piece.arguments for piece in pieces).strip()
    return {
        "type": "tool_use",
        "id": pieces[0].id,
        "name": pieces[0].name,
        "input": _object(arguments),
    }


def _object(arguments: str) -> Any:
    """The arguments as they were generated, digit by digit; an empty object for those that are none: cut short, or too deep."""
    try:
        complete = isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, RecursionError):
        complete = False
    return msgspec.Raw(arguments.encode()) if complete else {}
