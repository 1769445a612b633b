"""Anthropic's conversations, whose messages are lists of blocks, as OpenAI's, where tools have messages of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from naru.errors import NaruError, Reason, invalid_argument

_ERROR_RESULT = "Error: "


class Block(msgspec.Struct):
    """One block of a message's content; which fields are set depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    tool_use_id: str | None = None
    content: msgspec.Raw = msgspec.Raw()
    is_error: bool | None = None


class Message(msgspec.Struct):
    """One turn."""

    role: str
    content: str | list[Block]


_RESULT = msgspec.json.Decoder(str | list[Block] | None)


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The same conversation in OpenAI's words. Raises NaruError INVALID_ARGUMENT or NOT_SUPPORTED naming the block."""
    translated: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        blocks = _blocks(message.content)
        match message.role:
            case "user":
                made = list(_of_user(blocks, where))
            case "assistant":
                made = list(_of_assistant(blocks, where))
            case "system":
                made = [{"role": "system", "content": texts_of(blocks, f"{where}.content")}] if blocks else []
            case _:
                raise invalid_argument(f"{where}.role", f"{where}.role: must be 'user' or 'assistant'.")
        if not made and (message.role != "assistant" or number < len(messages) - 1):
            raise invalid_argument(
                where,
                f"{where}: all messages must have non-empty content except for the optional final assistant message",
            )
        for one in made:
            _append(translated, one)
    if not translated:
        raise invalid_argument("messages", "messages: at least one message is required")
    return translated


def texts_of(blocks: Iterable[Block], where: str) -> str:
    """The text of blocks that must be nothing else, each on lines of its own."""
    return "\n".join(_text(block, f"{where}.{number}") for number, block in enumerate(blocks))


def _blocks(content: str | list[Block]) -> list[Block]:
    if isinstance(content, str):
        return [Block(type="text", text=content)] if content else []
    return content


def _append(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Adds a message; two turns of the user in a row are one, as with Anthropic."""
    if message["role"] == "user" and messages and messages[-1]["role"] == "user":
        messages[-1]["content"] = _parts(messages[-1]["content"]) + _parts(message["content"])
    else:
        messages.append(message)


def _parts(content: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _of_user(blocks: Iterable[Block], where: str) -> Iterator[dict[str, Any]]:
    """A message of the user, and one for each result of a tool."""
    texts: list[str] = []
    for number, block in enumerate(blocks):
        place = f"{where}.content.{number}"
        if block.type == "tool_result":
            if texts:
                yield _user_message(texts)
                texts = []
            yield _tool_result(block, place)
        else:
            texts.append(_text(block, place))
    if texts:
        yield _user_message(texts)


def _user_message(texts: list[str]) -> dict[str, Any]:
    content = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    return {"role": "user", "content": content}


def _tool_result(block: Block, where: str) -> dict[str, Any]:
    if not block.tool_use_id:
        raise invalid_argument(f"{where}.tool_use_id", f"{where}.tool_use_id: Field required")
    try:
        content = _RESULT.decode(block.content) if bytes(block.content) else None
    except msgspec.ValidationError:
        raise invalid_argument(f"{where}.content", f"{where}.content: must be a string or a list of blocks.") from None
    text = content if isinstance(content, str) else texts_of(content or (), f"{where}.content")
    # OpenAI has no field for it.
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "content": _ERROR_RESULT + text if block.is_error else text,
    }


def _of_assistant(blocks: Iterable[Block], where: str) -> Iterator[dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        place = f"{where}.content.{number}"
        match block.type:
            case "tool_use":
                calls.append(_tool_call(block, place))
            case "thinking":
                thoughts.append(block.thinking or "")
            case "redacted_thinking":
                # Nobody but its maker can read it.
                continue
            case _:
                texts.append(_text(block, place))
    if not texts and not calls:
        return
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None}
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    yield message


def _tool_call(block: Block, where: str) -> dict[str, Any]:
    for field, value in (("id", block.id), ("name", block.name)):
        if not value:
            raise invalid_argument(f"{where}.{field}", f"{where}.{field}: Field required")
    arguments = bytes(block.input)
    if not arguments.startswith(b"{"):
        raise invalid_argument(f"{where}.input", f"{where}.input: must be an object.")
    # As it was written: arguments are text to the model, numbers of any size and the order of keys included.
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments.decode()}}


def _text(block: Block, where: str) -> str:
    if block.type != "text":
        raise NaruError(
            Reason.NOT_SUPPORTED,
            f"{where}: content of type {block.type[:40]!r} is not supported here; only text is.",
            metadata={"field": f"{where}.type"},
        )
    if block.text is None:
        raise invalid_argument(f"{where}.text", f"{where}.text: Field required")
    return block.text
