"""Bodies of the Responses API as bodies of chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from edge.openai.requests import OpenAiRequest, decode, parse_chat
from edge.responses.conversation import Item, chat_messages
from naru.errors import NaruError, Reason, invalid_argument

_STATE = "nothing is kept between requests; send the whole conversation as `input`"
_REFUSED = {
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "prompt": "there are no stored prompts here",
    "background": "answers are given at once, whole or streamed",
    "max_tool_calls": "tools are called by the client",
    "top_logprobs": "log probabilities are told by /v1/chat/completions",
}
_LOGPROBS = "message.output_text.logprobs"


class _Tool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None


class _Format(msgspec.Struct):
    type: str
    name: str | None = None
    schema: msgspec.Raw = msgspec.Raw()
    description: str | None = None
    strict: bool | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    include: list[str] | None = None
    store: bool | None = None
    truncation: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    stream_options: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None


_BODY = msgspec.json.Decoder(_Body)


def parse_responses(body: bytes, *, stream: bool | None = None) -> OpenAiRequest:
    """Reads a body of /v1/responses. Raises NaruError INVALID_ARGUMENT or NOT_SUPPORTED naming the field."""
    request = decode(_BODY, body)
    _refuse(request)
    if request.input is None:
        raise invalid_argument("input", "Missing required parameter: 'input'.")
    most = request.max_output_tokens
    if most is not None and most < 1:
        raise invalid_argument("max_output_tokens", "Invalid value for 'max_output_tokens': must be at least 1.")
    messages = chat_messages(request.input)
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)] if request.tools else None
    translated = {
        "model": request.model,
        "messages": messages,
        "stream": request.stream,
        "max_completion_tokens": most,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": tools,
        "tool_choice": _tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _response_format(request.text.format) if request.text and request.text.format else None,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "user": request.user,
    }
    chat = msgspec.json.encode({name: value for name, value in translated.items() if value is not None})
    return replace(parse_chat(chat, stream=stream), repeated=_repeated(request))


def _refuse(request: _Body) -> None:
    for field, why in _REFUSED.items():
        if getattr(request, field):
            raise _not_supported(field, why)
    if request.service_tier not in (None, "auto", "default"):
        raise _not_supported("service_tier", "tiers belong to keys")
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        raise _not_supported("text.verbosity", "tell the model in words")
    if request.truncation not in (None, "disabled"):
        raise _not_supported("truncation", "send what fits into the model's context")
    if request.include and _LOGPROBS in request.include:
        raise _not_supported("include", _REFUSED["top_logprobs"])


def _tool(tool: _Tool, where: str) -> dict[str, Any]:
    if tool.type != "function":
        raise _not_supported(f"{where}.type", "only functions of your own can be called")
    if not tool.name:
        raise invalid_argument(f"{where}.name", f"Missing required parameter: '{where}.name'.")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: str | _ToolChoice | None) -> Any:
    if not isinstance(choice, _ToolChoice):
        return choice
    if choice.type != "function" or not choice.name:
        raise _not_supported("tool_choice", "it is none, auto, required, or one function by its name")
    return {"type": "function", "function": {"name": choice.name}}


def _response_format(wanted: _Format) -> dict[str, Any]:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    if not wanted.name or not bytes(wanted.schema):
        raise invalid_argument("text.format", "Missing required parameter: 'text.format.name' or 'text.format.schema'.")
    fields = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict, "description": wanted.description}
    return {"type": "json_schema", "json_schema": {name: value for name, value in fields.items() if value is not None}}


def _repeated(request: _Body) -> Mapping[str, Any]:
    reasoning = request.reasoning or _Reasoning()
    text = request.text or _Text()
    given = text.format or _Format("text")
    shape = {"name": given.name, "description": given.description, "strict": given.strict} if given.name else {}
    schema = {"schema": given.schema} if bytes(given.schema) else {}
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "temperature": request.temperature,
        "text": {"format": {"type": given.type, **shape, **schema}},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_p": request.top_p,
        "user": request.user,
    }


def _not_supported(field: str, why: str) -> NaruError:
    return NaruError(Reason.NOT_SUPPORTED, f"'{field}' is not supported; {why}.", metadata={"field": field})
