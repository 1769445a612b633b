"""Reading an OpenAI request body: what every engine checks before it looks at its own fields.

vLLM's request classes take text for numbers and any role; OpenAI's API refuses both and names the field, and so do we.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from inference.engine import POOLING_KINDS, EngineRequest, InputKind, Sampling
from naru.errors import NaruError, Reason, invalid_argument

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MOST_CHOICES_PER_PROMPT = 128
MOST_CHOICES = 1024
MOST_STOP_TEXTS = 4

_TEXT_PARTS = ("text", "refusal")
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_INTEGERS = ("max_tokens", "max_completion_tokens", "top_k", "seed", "min_tokens", "top_logprobs", "prompt_logprobs")
_BOOLEANS = ("stream", "echo", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "return_token_ids")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def read_body(request: EngineRequest) -> dict[str, Any]:
    """The request as an OpenAI body, of whichever kind it came, with its common fields checked.

    Raises:
        NaruError: INVALID_ARGUMENT or NOT_SUPPORTED, naming the field.
    """
    body = decode_body(request)
    check_body(request, body)
    return body


def check_body(request: EngineRequest, body: Mapping[str, Any]) -> None:
    """Checks the common fields of a body, of whichever kind the request came.

    Raises:
        NaruError: INVALID_ARGUMENT or NOT_SUPPORTED, naming the field.
    """
    _check_common(body)
    if is_chat(request):
        _check_messages(body.get("messages"))
        _check_type(body, "logprobs", _is_boolean, "a boolean")
    else:
        _check_prompt(body.get("prompt"))
        _check_type(body, "logprobs", _is_integer, "an integer")
    choices = prompts(body, is_chat(request)) * choices_per_prompt(body)
    if choices > MOST_CHOICES:
        raise invalid_argument(
            "n", f"`n` times the prompts makes {choices} choices; at most {MOST_CHOICES} are allowed."
        )


def decode_body(request: EngineRequest) -> dict[str, Any]:
    """The request as an OpenAI body, unchecked.

    Raises:
        NaruError: INVALID_ARGUMENT: it is no JSON object; NOT_SUPPORTED: it is not for a model that generates text.
    """
    if request.kind in POOLING_KINDS:
        raise not_supported("model", "The model generates text; it makes no embeddings and no scores.")
    match request.kind:
        case InputKind.OPENAI_CHAT | InputKind.OPENAI_COMPLETION:
            return decode_object(request.openai_json)
        case InputKind.CHAT:
            messages = [{"role": role, "content": content} for role, content in request.messages]
            return {"messages": messages, **_sampling_fields(request.sampling)}
        case InputKind.TEXT:
            return {"prompt": request.text, **_sampling_fields(request.sampling)}
        case InputKind.TOKEN_IDS:
            return {"prompt": list(request.token_ids), **_sampling_fields(request.sampling)}
        case _:
            raise ValueError(request.kind)


def is_chat(request: EngineRequest) -> bool:
    """Whether the request is a conversation rather than a text to go on from."""
    return request.kind in (InputKind.OPENAI_CHAT, InputKind.CHAT)


def decode_object(text: bytes) -> dict[str, Any]:
    """Decodes a JSON object. Numbers keep all their digits, which schemas may need.

    Raises:
        NaruError: INVALID_ARGUMENT; it is something else.
    """
    try:
        body = _JSON.decode(text.decode(json.detect_encoding(text), "surrogatepass"))
        is_unicode = b"\\ud" not in text.lower() or _is_unicode(body)
    except (ValueError, RecursionError):
        raise invalid_argument("body", "The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise invalid_argument("body", "The body must be a JSON object.")
    if not is_unicode:
        raise invalid_argument("body", "The body holds half of a surrogate pair, which is no text.")
    return body


def choices_per_prompt(body: Mapping[str, Any]) -> int:
    """How many choices each prompt gets."""
    n = body.get("n")
    return 1 if n is None else int(n)


def prompts(body: Mapping[str, Any], chat: bool) -> int:
    """How many prompts the body holds; a conversation is one, whatever else its body holds."""
    if chat:
        return 1
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def asked_max_tokens(body: Mapping[str, Any], chat: bool) -> tuple[str, int] | None:
    """The field and figure by which the caller limited the output; None when they did not."""
    for field in ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",):
        value = body.get(field)
        if value is not None:
            return field, int(value)
    return None


def too_long(field: str, prompt_tokens: int, context_tokens: int, asked: int | None = None) -> NaruError:
    """Prompt, or prompt and output, do not fit in the context; in OpenAI's words."""
    message = f"This model's maximum context length is {context_tokens} tokens. However, "
    where = "messages" if field == "messages" else "prompt"
    if asked is None:
        message += f"your {where} resulted in {prompt_tokens} tokens. Please reduce the length of the {where}."
    else:
        message += (
            f"you requested {prompt_tokens + asked} tokens ({prompt_tokens} in the {where}, {asked} in the completion). "
            f"Please reduce the length of the {where} or completion."
        )
    metadata = {"field": field, "prompt_tokens": str(prompt_tokens), "context_tokens": str(context_tokens)}
    if asked is not None:
        metadata["max_tokens"] = str(asked)
    return NaruError(Reason.CONTEXT_LENGTH_EXCEEDED, message, metadata=metadata)


def not_supported(field: str, message: str) -> NaruError:
    """The field is known but cannot be served; `message` says why."""
    return NaruError(Reason.NOT_SUPPORTED, message, metadata={"field": field})


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "n": sampling.n,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _is_unicode(body: object) -> bool:
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_type(body: Mapping[str, Any], field: str, fits: Callable[[object], bool], what: str) -> None:
    value = body.get(field)
    if value is not None and not fits(value):
        raise invalid_argument(field, f"`{field}` must be {what}.")


def _check_common(body: Mapping[str, Any]) -> None:
    for field, (least, most) in _RANGES.items():
        value = body.get(field)
        if value is not None and not (_is_number(value) and least <= value <= most):
            raise invalid_argument(field, f"`{field}` must be a number from {least:g} to {most:g}.")
    for field in _INTEGERS:
        _check_type(body, field, _is_integer, "an integer")
    for field in _BOOLEANS:
        _check_type(body, field, _is_boolean, "a boolean")
    # A completion of no tokens is its prompt, where that is echoed.
    least = 0 if body.get("echo") and "prompt" in body else 1
    for field in ("max_tokens", "max_completion_tokens"):
        _check_type(body, field, lambda value: isinstance(value, int) and value >= least, f"at least {least}")
    n = body.get("n")
    if n is not None and not (_is_integer(n) and 1 <= n <= MOST_CHOICES_PER_PROMPT):
        raise invalid_argument("n", f"`n` must be an integer from 1 to {MOST_CHOICES_PER_PROMPT}.")
    _check_stop(body.get("stop"))


def _check_stop(stop: object) -> None:
    if stop is None or isinstance(stop, str):
        return
    texts = isinstance(stop, list) and all(isinstance(text, str) for text in stop)
    if not isinstance(stop, list) or not texts or len(stop) > MOST_STOP_TEXTS:
        raise invalid_argument("stop", f"`stop` must be a string or a list of at most {MOST_STOP_TEXTS} strings.")


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise invalid_argument("messages", "`messages` must be a list of at least one message.")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise invalid_argument(where, f"`{where}` must be an object with `role` and `content`.")
        if message.get("role") not in ROLES:
            raise invalid_argument(f"{where}.role", f"`{where}.role` must be one of {', '.join(ROLES)}.")
        content = message.get("content")
        if isinstance(content, list):
            _check_parts(content, f"{where}.content")
        elif not isinstance(content, str) and not (content is None and message["role"] == "assistant"):
            raise invalid_argument(f"{where}.content", f"`{where}.content` must be a string or a list of parts.")


def _check_parts(parts: list[object], where: str) -> None:
    for j, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            raise invalid_argument(f"{where}[{j}]", f"`{where}[{j}]` must be an object with a `type`.")
        if kind not in _TEXT_PARTS:
            field = f"{where}[{j}].type"
            raise not_supported(field, f"Content of type {kind[:40]!r} in `{field}` is not supported; only text is.")
        if not isinstance(part.get(kind), str):
            raise invalid_argument(f"{where}[{j}].{kind}", f"`{where}[{j}].{kind}` must be a string.")


def _check_prompt(prompt: object) -> None:
    one = is_text(prompt) or is_token_ids(prompt)
    many = isinstance(prompt, list) and bool(prompt) and (all(map(is_text, prompt)) or all(map(is_token_ids, prompt)))
    if not one and not many:
        message = "`prompt` must be a string, a list of strings, a list of token ids or a list of those; not empty."
        raise invalid_argument("prompt", message)


def is_text(prompt: object) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(prompt, str) and prompt != ""


def is_token_ids(prompt: object) -> bool:
    """Whether it is a list of what may be token ids, and not empty."""
    return isinstance(prompt, list) and bool(prompt) and all(_is_integer(token) and token >= 0 for token in prompt)
