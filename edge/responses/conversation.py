"""Items of the Responses API as the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from naru.errors import NaruError, Reason, invalid_argument

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class Part(msgspec.Struct):
    """A part of an item's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct):
    """One item of the input; which fields are set depends on its type."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


def chat_messages(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The same conversation as messages. Raises NaruError INVALID_ARGUMENT or NOT_SUPPORTED naming the item."""
    if isinstance(given, str):
        given = [Item(role="user", content=given)]
    messages: list[dict[str, Any]] = []
    reasoning = ""
    for number, item in enumerate(given):
        where = f"input[{number}]"
        match item.type:
            case "message":
                message = _message(item, where)
                if message["role"] == "assistant" and reasoning:
                    message["reasoning"] = reasoning
                # Before anybody else's turn it is what is left of an answer that was cut short.
                reasoning = ""
                messages.append(message)
            case "reasoning":
                reasoning = _text(item.content, f"{where}.content")
            case "function_call":
                _add_call(messages, item, where, reasoning)
                reasoning = ""
            case "function_call_output":
                text = _text(item.output, f"{where}.output")
                messages.append(
                    {"role": "tool", "tool_call_id": _given(item.call_id, f"{where}.call_id"), "content": text}
                )
            case _:
                raise _not_supported(f"{where}.type", item.type)
    if not messages:
        raise invalid_argument("input", "Invalid 'input': there is nothing in it to answer.")
    return messages


def _message(item: Item, where: str) -> dict[str, Any]:
    if item.role not in _ROLES:
        raise invalid_argument(
            f"{where}.role", f"Invalid value for '{where}.role': must be one of {', '.join(_ROLES)}."
        )
    if item.content is None:
        raise invalid_argument(f"{where}.content", f"Missing required parameter: '{where}.content'.")
    return {"role": item.role, "content": _text(item.content, f"{where}.content")}


def _add_call(messages: list[dict[str, Any]], item: Item, where: str, reasoning: str) -> None:
    """Adds a call to the turn of the assistant that it belongs to."""
    function = {"name": _given(item.name, f"{where}.name"), "arguments": item.arguments or "{}"}
    call = {"id": _given(item.call_id, f"{where}.call_id"), "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    if reasoning:
        messages[-1]["reasoning"] = messages[-1].get("reasoning", "") + reasoning
    messages[-1].setdefault("tool_calls", []).append(call)


def _given(value: str | None, where: str) -> str:
    if not value:
        raise invalid_argument(where, f"Missing required parameter: '{where}'.")
    return value


def _text(content: str | list[Part] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for number, part in enumerate(content):
        if part.type == "refusal":
            texts.append(part.refusal or "")
        elif part.type in _TEXTS and part.text is not None:
            texts.append(part.text)
        else:
            raise _not_supported(f"{where}[{number}].type", part.type)
    return "\n".join(texts)


def _not_supported(where: str, kind: str) -> NaruError:
    return NaruError(
        Reason.NOT_SUPPORTED,
        f"Content of type {kind[:40]!r} in '{where}' is not supported; only text and calls of functions are.",
        metadata={"field": where},
    )
