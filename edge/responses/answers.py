"""The answers of /v1/responses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from edge.generation import Delta, ToolCallDelta
from edge.openai.answers import SERVICE_FINISH_REASONS, AnswerOptions
from naru.usage import Usage

_encode = msgspec.json.encode
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Ends of a chat completion that leave a response incomplete, and how this API names them. The filter is an upstream's."""


class ResponseStream:
    """Renders an answer as the API's events: items, each added, filled and done in turn, then the whole response.

    Attributes:
        numbered: How many events it has rendered.
    """

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self.numbered = 0
        self._output: list[dict[str, Any]] = []
        self._open: tuple[str, int] | None = None
        self._pieces: list[str] = []
        self._incomplete: str | None = None

    def start(self) -> bytes:
        """The response, with no output yet."""
        response = self._response("in_progress", None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def render(self, deltas: Iterable[Delta]) -> bytes:
        """The events of the items that grew."""
        chunks: list[bytes] = []
        for delta in deltas:
            if delta.reasoning:
                self._grow(chunks, ("reasoning", 0), delta.reasoning)
            if delta.text:
                self._grow(chunks, ("message", 0), delta.text)
            for call in delta.tool_calls:
                self._grow(chunks, ("function_call", call.index), call.arguments, call)
            if delta.finish_reason and delta.finish_reason not in SERVICE_FINISH_REASONS:
                self._incomplete = _INCOMPLETE.get(delta.finish_reason)
        return b"".join(chunks)

    def finish(self, usage: Usage, cost: int | None = None) -> bytes:
        """The whole response. The API's usage has no cost."""
        chunks: list[bytes] = []
        response = self.complete(usage, chunks)
        chunks.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(chunks)

    def complete(self, usage: Usage, chunks: list[bytes]) -> dict[str, Any]:
        """Ends the open item, whose events go to `chunks`, and returns the whole response."""
        status = "incomplete" if self._incomplete else "completed"
        self._close(chunks, status)
        return self._response(status, usage)

    def _grow(self, chunks: list[bytes], which: tuple[str, int], text: str, call: ToolCallDelta | None = None) -> None:
        if self._open != which:
            self._close(chunks, "completed")
            self._begin(chunks, which, call)
        self._pieces.append(text)
        kind = which[0]
        if kind == "function_call":
            if text:
                chunks.append(self._item_event("response.function_call_arguments.delta", delta=text))
        elif kind == "message":
            chunks.append(self._item_event("response.output_text.delta", content_index=0, delta=text, logprobs=[]))
        else:
            chunks.append(self._item_event("response.reasoning_text.delta", content_index=0, delta=text))

    def _begin(self, chunks: list[bytes], which: tuple[str, int], call: ToolCallDelta | None) -> None:
        self._open, self._pieces = which, []
        item = self._new_item(which[0], call)
        self._output.append(item)
        chunks.append(self._event("response.output_item.added", output_index=len(self._output) - 1, item=item))
        if call is None:
            chunks.append(self._item_event("response.content_part.added", content_index=0, part=self._part("")))

    def _close(self, chunks: list[bytes], status: str) -> None:
        if self._open is None:
            return
        text, item = "".join(self._pieces), self._output[-1]
        item["status"] = status
        match self._open[0]:
            case "function_call":
                item["arguments"] = text
                chunks.append(
                    self._item_event("response.function_call_arguments.done", name=item["name"], arguments=text)
                )
            case "message":
                chunks.append(self._item_event("response.output_text.done", content_index=0, text=text, logprobs=[]))
            case _:
                chunks.append(self._item_event("response.reasoning_text.done", content_index=0, text=text))
        if self._open[0] != "function_call":
            item["content"] = [self._part(text)]
            chunks.append(self._item_event("response.content_part.done", content_index=0, part=self._part(text)))
        chunks.append(self._event("response.output_item.done", output_index=len(self._output) - 1, item=item))
        self._open = None

    def _new_item(self, kind: str, call: ToolCallDelta | None) -> dict[str, Any]:
        suffix = f"{self._options.answer_id.removeprefix('resp_')}{len(self._output):02}"
        if call is not None:
            named = {"call_id": call.id, "name": call.name, "arguments": ""}
            return {"id": f"fc_{suffix}", "type": kind, "status": "in_progress", **named}
        if kind == "message":
            return {"id": f"msg_{suffix}", "type": kind, "status": "in_progress", "role": "assistant", "content": []}
        return {"id": f"rs_{suffix}", "type": kind, "status": "in_progress", "summary": [], "content": []}

    def _part(self, text: str) -> dict[str, Any]:
        if self._output[-1]["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = _encode({"type": kind, "sequence_number": self.numbered, **fields})
        self.numbered += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _response(self, status: str, usage: Usage | None) -> dict[str, Any]:
        options = self._options
        return {
            "id": options.answer_id,
            "object": "response",
            "created_at": options.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": self._incomplete} if self._incomplete else None,
            "model": options.model,
            "output": self._output,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": None if usage is None else _usage_object(usage),
            **options.repeated,
        }


class ResponseAnswer:
    """Collects a response: what the last event of its stream would hold."""

    def __init__(self, options: AnswerOptions) -> None:
        self._stream = ResponseStream(options)

    def add(self, deltas: Iterable[Delta]) -> None:
        """Takes what one step brought."""
        self._stream.render(deltas)

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The `response` object."""
        return _encode(self._stream.complete(usage, []))


def answer_id(event_id: str) -> str:
    """The id of the response to the request of this event."""
    return "resp_" + event_id.replace("-", "")


def _usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_prompt_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
