"""Errors of the Responses API: in the words of its client's body, not of the chat completion that is made of it."""

from __future__ import annotations

from edge.http_errors import FACES, in_other_words
from naru.errors import NaruError, Reason

_ABOUT_THE_BODY = frozenset({Reason.INVALID_ARGUMENT, Reason.NOT_SUPPORTED, Reason.CONTEXT_LENGTH_EXCEEDED})
_WORDS = (
    # Not which message: they are numbered differently from the items.
    (r"\bmessages\b(\[\d+\](\.\w+|\[\d+\])*)?", "input"),
    (r"\bmax(_completion)?_tokens\b", "max_output_tokens"),
    (r"\bresponse_format\b(\.json_schema\b)?", "text.format"),
    (r"\breasoning_effort\b", "reasoning.effort"),
    (r"\b(tools\[\d+\]|tool_choice)\.function\b", r"\1"),
)


def in_our_words(error: NaruError) -> NaruError:
    """The same error as the client knows its body."""
    # A field that there is not is told by the name that the client gave it, which may be that of a chat completion.
    if error.reason not in _ABOUT_THE_BODY or error.message.startswith("Unknown parameter: "):
        return error
    metadata = dict(error.metadata)
    field = metadata.get("field") or FACES[error.reason].param
    if field:
        metadata["field"] = in_other_words(field, _WORDS)
    message = in_other_words(error.message, _WORDS)
    return NaruError(error.reason, message, metadata=metadata, retry_after=error.retry_after)
