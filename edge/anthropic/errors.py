"""Errors as Anthropic shows them."""

from __future__ import annotations

import msgspec

from edge.anthropic.answers import event
from edge.http_errors import HttpError, http_error, in_other_words, plain_error
from naru.errors import NaruError, Reason

_OVERLOADED = 529
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_WORDS = (
    ('`tool_choice: "none"`', '`tool_choice: {"type": "none"}`'),
    ("`stop`", "`stop_sequences`"),
    (r"\bmax_completion_tokens\b", "max_tokens"),
    # Not which message: they are numbered differently there.
    (r"\bmessages\[\d+\](\.\w+|\[\d+\])*", "messages"),
    (r"\bresponse_format\b(\.json_schema\b)?", "output_config.format"),
    (r"\breasoning_effort\b", "output_config.effort"),
    (r"\btools\[(\d+)\]\.function\.parameters\b", r"tools.\1.input_schema"),
    (r"\btools\[(\d+)\](\.function\b)?", r"tools.\1"),
    (r"\btool_choice\.function\b", "tool_choice"),
)
"""What inference says of a chat completion, and how the same is written here."""


def anthropic_error(error: NaruError, request_id: str) -> HttpError:
    """How `error` is answered; overload has a status of its own."""
    shown = http_error(error)
    status = _OVERLOADED if error.reason is Reason.OVERLOADED else shown.status
    message = _context_exceeded(error) or in_other_words(error, _WORDS).message
    return HttpError(status, _body(status, message, request_id), shown.headers)


def anthropic_plain_error(status: int, message: str, request_id: str) -> HttpError:
    """An error of HTTP itself."""
    return HttpError(status, _body(status, message, request_id), plain_error(status, message).headers)


def anthropic_error_event(error: NaruError, request_id: str, numbered: int) -> bytes:
    """The event that ends a stream that broke."""
    shown = anthropic_error(error, request_id)
    return event("error", msgspec.json.decode(shown.body))


def _context_exceeded(error: NaruError) -> str:
    """Anthropic's own sentence, of which its clients read the figures; "" where there are none, or it is another error."""
    prompt, context = error.metadata.get("prompt_tokens"), error.metadata.get("context_tokens")
    if error.reason is not Reason.CONTEXT_LENGTH_EXCEEDED or not prompt or not context:
        return ""
    asked = error.metadata.get("max_tokens")
    if asked and int(prompt) <= int(context):
        return (
            f"input length and `max_tokens` exceed context limit: {prompt} + {asked} > {context}, "
            "decrease input length or `max_tokens` and try again"
        )
    return f"prompt is too long: {prompt} tokens > {context} maximum"


def _body(status: int, message: str, request_id: str) -> bytes:
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": message}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})
