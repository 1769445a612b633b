"""What vLLM raises, as the errors Naru promises. Texts are the caller's to read: they name fields, never their content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from inference.openai_body import not_supported
from inference.vllm_compat import Vllm
from naru.errors import NaruError, Reason, invalid_argument, unavailable

_LONGEST_TEXT = 500
_TOO_LONG = ("input_tokens", "input_text")


def to_naru_error(error: Exception, vllm: Vllm, body: Mapping[str, Any], context_tokens: int) -> NaruError | None:
    """The error to tell the caller; None when it was not the caller's fault and not capacity either."""
    if isinstance(error, NaruError):
        return error
    return _no_capacity(error, vllm) or _callers_fault(error, vllm, body, context_tokens)


def _no_capacity(error: Exception, vllm: Vllm) -> NaruError | None:
    if isinstance(error, vllm.EngineDeadError):
        return unavailable("inference", "The engine is not running.")
    if isinstance(error, vllm.GracefulHTTPError):
        message = "The engine is at capacity. Please try again later."
        return NaruError(Reason.OVERLOADED, message, metadata={"service": "inference"}, retry_after=1.0)
    return None


def _callers_fault(error: Exception, vllm: Vllm, body: Mapping[str, Any], context_tokens: int) -> NaruError | None:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    known: NaruError | None = None
    if isinstance(error, vllm.VLLMClientError):
        known = _validation_error(error, body, context_tokens)
    elif "ValidationError" in kinds:
        known = _field_error(error, body)
    elif "TemplateError" in kinds:
        known = invalid_argument("messages", f"The model's chat template refused the messages: {_short(str(error))}")
    elif isinstance(error, NotImplementedError):
        known = not_supported("", _short(str(error)) or "The engine does not support this request.")
    elif isinstance(error, ValueError | TypeError | OverflowError):
        known = invalid_argument(_named_field(str(error), body), _short(str(error)))
    return known


def from_response(response: Any, body: Mapping[str, Any]) -> NaruError:
    """The error in a response object that vLLM returned instead of raising."""
    detail = response.error
    message = _short(str(detail.message))
    field = detail.param or _named_field(message, body)
    return not_supported(field, message) if detail.code == 501 else invalid_argument(field, message)


def _validation_error(error: Exception, body: Mapping[str, Any], context_tokens: int) -> NaruError:
    message = _short(str(error.args[0]) if error.args else str(error))
    parameter = getattr(error, "parameter", None)
    if parameter in _TOO_LONG:
        metadata = {"field": _prompt_field(body), "context_tokens": str(context_tokens)}
        value = getattr(error, "value", None)
        if parameter == "input_tokens" and isinstance(value, int):
            metadata["prompt_tokens"] = str(value)
        return NaruError(Reason.CONTEXT_LENGTH_EXCEEDED, message, metadata=metadata)
    if parameter == "logprobs" and "top_logprobs" in body:
        # The engine's parameter; in a chat request the number is in the other field.
        parameter = "top_logprobs"
    field = str(parameter) if parameter else _named_field(message, body)
    if field == "tools" and "rammar" in message:
        # What comes of it is about a grammar that the caller has never seen.
        message = "The parameters of a tool in `tools` are no JSON schema that can be kept to."
    return invalid_argument(field, message)


def _field_error(error: Any, body: Mapping[str, Any]) -> NaruError:
    """The problem that pydantic found deepest in the body, under the path that the caller wrote.

    Pydantic's own path names the types it tried as well; only the steps that exist in the body are kept.
    """
    problems: Sequence[Mapping[str, Any]] = error.errors(include_input=False, include_url=False)
    problem = max(problems, key=lambda one: len(_path(one["loc"], body)))
    steps = _path(problem["loc"], body)
    if problem["type"] == "missing":
        steps = [*steps, problem["loc"][-1]]
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    return invalid_argument(field or "body", _short(f"`{field or 'body'}`: {problem['msg']}."))


def _path(location: Sequence[int | str], body: Any) -> list[int | str]:
    steps: list[int | str] = []
    for step in location:
        listed = isinstance(body, list) and isinstance(step, int) and step < len(body)
        if listed or (isinstance(body, Mapping) and step in body):
            body = body[step]
            steps.append(step)
    return steps


def _prompt_field(body: Mapping[str, Any]) -> str:
    return next((field for field in ("messages", "input", "documents") if field in body), "prompt")


def _named_field(message: str, body: Mapping[str, Any]) -> str:
    """The field of the body that the message speaks of first; "" when it names none."""
    words = re.findall(r"[a-z_]+", message)
    named = next((word for word in words if word in body), "")
    if named or not body:
        return named
    if "Grammar" in message or "grammar" in words:
        return next((field for field in ("response_format", "structured_outputs", "tools") if body.get(field)), "")
    return _prompt_field(body) if {"prompt", "vocabulary"} & set(words) else ""


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
