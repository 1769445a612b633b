"""How the Responses API speaks besides its answers, where that is not as in the rest of OpenAI's API."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from edge.dialect import OPENAI, Dialect
from edge.http_errors import error_body, http_error
from edge.responses.errors import in_our_words
from naru.errors import NaruError


def response_error_event(error: NaruError, request_id: str, numbered: int) -> bytes:
    """The event that ends a stream that broke, after so many others."""
    shown = msgspec.json.decode(error_body(in_our_words(error)))["error"]
    data = {
        "type": "error",
        "sequence_number": numbered,
        **{name: shown[name] for name in ("code", "message", "param")},
    }
    return b"event: error\ndata: " + msgspec.json.encode(data) + b"\n\n"


RESPONSES_DIALECT: Dialect = replace(
    OPENAI,
    error=lambda error, _: http_error(in_our_words(error)),
    error_event=response_error_event,
    last_event=b"",
)
