"""Bodies of Anthropic's Messages API as bodies of chat completions: what is said is the same, in other words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from edge.anthropic.conversation import Block, Message, openai_messages, texts_of
from edge.openai.requests import OpenAiRequest, decode, parse_chat
from naru.errors import NaruError, Reason, invalid_argument

MOST_STOP_SEQUENCES = 4
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_THINKING = {"disabled": False, "enabled": True, "adaptive": True, "between_tools": True}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_NO_EDITS = "clear_thinking"
"""What begins the name of an edit that changes nothing here: whether old thinking is shown is up to the chat template."""
_REFUSED = {
    "container": "there are no containers here",
    "diagnostics": "there are no diagnostics here",
    "inference_geo": "where a model runs is the operator's choice",
    "mcp_servers": "connect to MCP servers yourself and send their tools",
}


class _Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Edit(msgspec.Struct):
    type: str


class _ContextManagement(msgspec.Struct):
    edits: list[_Edit] = []


class _Countable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What tokens are counted of."""

    model: str | None = None
    messages: list[Message] | None = None
    system: str | list[Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    context_management: _ContextManagement | None = None
    cache_control: msgspec.Raw = msgspec.Raw()
    container: Any = None
    mcp_servers: Any = None
    speed: str | None = None


class _Body(_Countable, kw_only=True):
    max_tokens: int | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None
    service_tier: str | None = None
    diagnostics: Any = None
    inference_geo: Any = None


_BODY = msgspec.json.Decoder(_Body)
_COUNTABLE = msgspec.json.Decoder(_Countable)


def parse_messages(body: bytes, *, stream: bool | None = None) -> OpenAiRequest:
    """Reads a body of /v1/messages. Raises NaruError INVALID_ARGUMENT or NOT_SUPPORTED naming the field."""
    request = decode(_BODY, body)
    translated = _translate(request)
    if request.max_tokens is None:
        raise invalid_argument("max_tokens", "max_tokens: Field required")
    if request.max_tokens < 1:
        raise invalid_argument("max_tokens", "max_tokens: must be at least 1.")
    if request.service_tier not in (None, "auto", "standard_only"):
        raise invalid_argument("service_tier", "service_tier: must be 'auto' or 'standard_only'.")
    translated |= {
        # The newest of OpenAI's chat models, which an upstream may serve, know this name alone.
        "max_completion_tokens": request.max_tokens,
        "stream": request.stream,
        "stop": _stops(request.stop_sequences),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "user": request.metadata.user_id if request.metadata else None,
    }
    return parse_chat(_encode(translated), stream=stream)


def parse_countable(body: bytes) -> tuple[str, bytes]:
    """Reads a body of /v1/messages/count_tokens: the model, and what to tokenize. Raises as `parse_messages`."""
    request = decode(_COUNTABLE, body)
    translated = _translate(request)
    effort = translated.pop("reasoning_effort")
    if effort is not None:
        # What a chat completion tells its template of the effort, /tokenize leaves to who asks.
        told = {"reasoning_effort": effort, "enable_thinking": True}
        translated["chat_template_kwargs"] = told | (translated["chat_template_kwargs"] or {})
    return str(request.model), _encode({**translated, "tool_choice": None, "response_format": None})


def _encode(fields: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def _translate(request: _Countable) -> dict[str, Any]:
    for field, why in _REFUSED.items():
        if getattr(request, field, None):
            raise _not_supported(field, why)
    if request.speed not in (None, "standard"):
        raise _not_supported("speed", "there is one speed")
    if request.context_management is not None:
        _check_edits(request.context_management.edits)
    if not request.model:
        raise invalid_argument("model", "model: Field required")
    if request.messages is None:
        raise invalid_argument("messages", "messages: Field required")
    messages = openai_messages(request.messages)
    if request.system:
        system = request.system if isinstance(request.system, str) else texts_of(request.system, "system")
        messages.insert(0, {"role": "system", "content": system})
    config = request.output_config or _OutputConfig()
    continues = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    return {
        "model": request.model,
        "messages": messages,
        "add_generation_prompt": False if continues else None,
        "continue_final_message": True if continues else None,
        "tools": [_tool(tool, f"tools.{i}") for i, tool in enumerate(request.tools)] if request.tools else None,
        **_tool_choice(request.tool_choice),
        "chat_template_kwargs": _template(request.thinking),
        "reasoning_effort": _effort(config.effort),
        "response_format": _response_format(config.format),
    }


def _check_edits(edits: Iterable[_Edit]) -> None:
    for edit in edits:
        if not edit.type.startswith(_NO_EDITS):
            raise _not_supported("context_management.edits", "send the messages that the model is to see")


def _tool(tool: _Tool, where: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise _not_supported(f"{where}.type", "only tools of your own, with an `input_schema`, can be used")
    if not bytes(tool.input_schema).startswith(b"{"):
        raise invalid_argument(f"{where}.input_schema", f"{where}.input_schema: must be an object.")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: _ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    parallel = False if choice.disable_parallel_tool_use else None
    if choice.type == "tool":
        if not choice.name:
            raise invalid_argument("tool_choice.name", "tool_choice.name: Field required")
        named = {"type": "function", "function": {"name": choice.name}}
        return {"tool_choice": named, "parallel_tool_calls": parallel}
    if choice.type not in _CHOICES:
        raise invalid_argument("tool_choice.type", "tool_choice.type: must be 'auto', 'any', 'tool' or 'none'.")
    return {"tool_choice": _CHOICES[choice.type], "parallel_tool_calls": parallel}


def _template(thinking: _Thinking | None) -> dict[str, bool] | None:
    if thinking is None:
        return None
    if thinking.type not in _THINKING:
        raise invalid_argument("thinking.type", f"thinking.type: must be one of {', '.join(_THINKING)}.")
    return {"enable_thinking": _THINKING[thinking.type]}


def _effort(effort: str | None) -> str | None:
    if effort is not None and effort not in _EFFORTS:
        raise invalid_argument("output_config.effort", f"output_config.effort: must be one of {', '.join(_EFFORTS)}.")
    return effort


def _response_format(wanted: _Format | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        raise invalid_argument("output_config.format.type", "output_config.format.type: must be 'json_schema'.")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.schema, "strict": True}}


def _stops(sequences: list[str] | None) -> list[str] | None:
    if sequences is not None and len(sequences) > MOST_STOP_SEQUENCES:
        raise invalid_argument("stop_sequences", f"stop_sequences: at most {MOST_STOP_SEQUENCES} are supported.")
    if sequences and not all(text.strip() for text in sequences):
        raise invalid_argument("stop_sequences", "stop_sequences: each stop sequence must contain non-whitespace")
    return sequences or None


def _not_supported(field: str, why: str) -> NaruError:
    return NaruError(Reason.NOT_SUPPORTED, f"{field}: not supported; {why}.", metadata={"field": field})
