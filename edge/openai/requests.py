"""Reads of an OpenAI request what the edge itself decides on. The rest of the bytes goes on to inference untouched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from naru.errors import NaruError, Reason, invalid_argument
from naru.prompt_estimate import estimate_prompt_tokens

COMPLETION_DEFAULT_MAX_TOKENS = 16
"""What /v1/completions generates per choice when the request does not say."""
MAX_CHOICES = 128
"""Most choices per prompt."""
MAX_MODEL_LENGTH = 512
"""Most characters of a model's name: names go into errors, logs and the request log, whether there is such a model or not."""
MAX_TOKENS = 2**31 - 1
"""Most that max_tokens may say."""
_TOOLS_TOKENS = 160
"""What chat templates say about calling tools, beside the tools themselves."""

_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_MISMATCH = re.compile(r"^Expected `([^`]+)`(?:, got `([^`]+)`)?")
_UNKNOWN = re.compile(r"^Object contains unknown field `([^`]*)`")
_TYPE_NAMES = {
    "bool": "a boolean",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "object": "an object",
    "array": "an array",
    "null": "null",
}


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class UsageOptions(msgspec.Struct):
    """OpenRouter's way of asking for the cost, which brings the usage with it."""

    include: bool | None = None


class _Common(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    usage: UsageOptions | msgspec.UnsetType | None = msgspec.UNSET


class _Chat(_Common):
    max_completion_tokens: int | None = None
    messages: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()


class _Completion(_Common):
    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None


_Request = TypeVar("_Request", bound=msgspec.Struct)
_CHAT = msgspec.json.Decoder(_Chat)
_COMPLETION = msgspec.json.Decoder(_Completion)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class OpenAiRequest:
    """What the edge knows of a request.

    Attributes:
        model: The model as the caller named it.
        stream: Whether to answer with server-sent events.
        include_usage: Whether a stream ends with a chunk that tells the usage.
        continuous_usage: Whether every chunk of a stream tells the usage so far.
        include_cost: Whether the usage tells what it costs.
        input_tokens: Estimate of the prompt tokens, leaning upwards.
        output_tokens: Most tokens that can be generated over all prompts and choices; 0 when the request does not say.
        choices: How many choices there are, over all prompts.
        token_ids: Whether choices tell their token ids.
        tokens_as_ids: Whether logprobs name tokens as "token_id:<id>".
        body: The JSON as it came, less the fields that are the edge's own.
        repeated: What of the request decides how the answer looks, by its field.
    """

    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    include_cost: bool
    input_tokens: int
    output_tokens: int
    choices: int
    token_ids: bool
    tokens_as_ids: bool
    body: bytes
    repeated: Mapping[str, Any] = field(default_factory=dict)


def parse_chat(body: bytes, *, stream: bool | None = None) -> OpenAiRequest:
    """Reads a body of /v1/chat/completions.

    Args:
        body: The JSON.
        stream: Overrules the default for a body that does not say; None takes OpenAI's, which is False.

    Raises NaruError INVALID_ARGUMENT naming the field.
    """
    request = decode(_CHAT, body)
    if not bytes(request.messages).startswith(b"["):
        if bytes(request.messages):
            raise invalid_argument("messages", "Invalid type for 'messages': expected an array of objects.")
        raise invalid_argument("messages", "Missing required parameter: 'messages'.")
    field = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    cap = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    tools = bytes(request.tools)
    estimate = estimate_prompt_tokens(bytes(request.messages))
    if tools.startswith(b"["):
        estimate += _TOOLS_TOKENS + len(tools) * 2 // 5
    return _common(request, body, stream=stream, cap=_checked_cap(field, cap), prompts=1, input_tokens=estimate)


def parse_completion(body: bytes, *, stream: bool | None = None) -> OpenAiRequest:
    """Reads a body of /v1/completions; as `parse_chat`."""
    request = decode(_COMPLETION, body)
    prompts, input_tokens = _measure_prompt(request.prompt)
    if request.echo and request.max_tokens == 0:
        # Only the prompt is wanted; the engine generates a token all the same.
        cap = 1
    else:
        cap = _checked_cap("max_tokens", request.max_tokens) or COMPLETION_DEFAULT_MAX_TOKENS
    return _common(request, body, stream=stream, cap=cap, prompts=prompts, input_tokens=input_tokens)


def check_model_name(name: str | None) -> str:
    """The model's name. Raises NaruError INVALID_ARGUMENT when there is none, or none that could be shown."""
    if not name:
        raise invalid_argument("model", "you must provide a model parameter")
    if len(name) > MAX_MODEL_LENGTH or not name.isprintable():
        raise invalid_argument(
            "model", f"Invalid value for 'model': expected at most {MAX_MODEL_LENGTH} printable characters."
        )
    return name


def _measure_prompt(prompt: str | list[str | int | list[int]] | None) -> tuple[int, int]:
    """How many prompts there are, and about how many tokens they have together."""
    if prompt is None:
        return 1, estimate_prompt_tokens(b"")
    if isinstance(prompt, str):
        return 1, estimate_prompt_tokens(prompt.encode())
    if all(isinstance(part, int) for part in prompt):
        return 1, len(prompt)
    if any(isinstance(part, int) for part in prompt):
        raise invalid_argument("prompt", "Invalid 'prompt': token ids and texts cannot be mixed in one array.")
    texts = [part for part in prompt if isinstance(part, str)]
    lists = [part for part in prompt if isinstance(part, list)]
    return len(prompt), sum(estimate_prompt_tokens(text.encode()) for text in texts) + sum(map(len, lists))


def _checked_cap(field: str, cap: int | None) -> int:
    """The cap, or 0 when the request sets none."""
    if cap is None:
        return 0
    if not 1 <= cap <= MAX_TOKENS:
        raise invalid_argument(field, f"Invalid value for '{field}': {cap}. Must be between 1 and {MAX_TOKENS}.")
    return cap


def decode(decoder: msgspec.json.Decoder[_Request], body: bytes) -> _Request:
    """The body of a request. Raises NaruError INVALID_ARGUMENT naming the field that is of a wrong type, or unknown."""
    try:
        # As text: of bytes, msgspec leaves unread what it only passes over, and that may be no UTF-8.
        return decoder.decode(body.decode())
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise NaruError(
            Reason.INVALID_ARGUMENT,
            "We could not parse the JSON body of your request. The API expects a JSON payload, but what was sent was not"
            " valid JSON.",
        ) from None


def _wrong_type(text: str) -> NaruError:
    """Says what msgspec says, in the words OpenAI uses. Holds types and field names only, never values."""
    path = _PATH.search(text)
    field = path[1] if path else ""
    unknown = _UNKNOWN.match(text)
    if unknown is not None:
        name = f"{field}.{unknown[1]}".removeprefix(".")
        return invalid_argument(name, f"Unknown parameter: '{name}'.")
    mismatch = _MISMATCH.match(text)
    if mismatch is None:
        return invalid_argument(field, f"Invalid value for '{field}'.")
    expected = " or ".join(_TYPE_NAMES.get(name, name) for name in mismatch[1].split(" | ") if name != "null")
    got = f", but got {_TYPE_NAMES.get(mismatch[2], mismatch[2])} instead" if mismatch[2] else ""
    if not field:
        return NaruError(Reason.INVALID_ARGUMENT, f"The JSON body of the request must be {expected}{got}.")
    return invalid_argument(field, f"Invalid type for '{field}': expected {expected}{got}.")


def _common(
    request: _Common,
    body: bytes,
    *,
    stream: bool | None,
    cap: int,
    prompts: int,
    input_tokens: int,
) -> OpenAiRequest:
    model = check_model_name(request.model)
    choices = 1 if request.n is None else request.n
    if not 1 <= choices <= MAX_CHOICES:
        raise invalid_argument("n", f"Invalid value for 'n': {choices}. Must be between 1 and {MAX_CHOICES}.")
    streams = request.stream if request.stream is not None else bool(stream)
    options = request.stream_options
    if options is not None and not streams:
        raise invalid_argument(
            "stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        )
    include_cost = bool(request.usage and request.usage.include)
    include_usage = include_cost or bool(options and options.include_usage)
    return OpenAiRequest(
        model=model,
        stream=streams,
        include_usage=include_usage,
        include_cost=include_cost,
        continuous_usage=include_usage and bool(options and options.continuous_usage_stats),
        input_tokens=input_tokens,
        output_tokens=prompts * choices * cap,
        choices=prompts * choices,
        token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        body=body if request.usage is msgspec.UNSET else _without(body, "usage"),
    )


def _without(body: bytes, field: str) -> bytes:
    """The same JSON object less one field; all others stay as they were written, numbers too large for anybody included."""
    fields = fields_of(body)
    del fields[field]
    return msgspec.json.encode(fields)


def fields_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object that was decoded before, each as it was written."""
    return _FIELDS.decode(body)
