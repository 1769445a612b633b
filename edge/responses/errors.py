"""Errors of the Responses API: in the words of its client's body, not of the chat completion that is made of it."""

from __future__ import annotations

from edge.http_errors import in_other_words
from naru.errors import NaruError

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
    return in_other_words(error, _WORDS)
