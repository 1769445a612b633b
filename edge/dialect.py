"""How an API speaks besides its answers: errors, limits, and the events of a stream that are no part of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge import sse
from edge.accounts import LimitState
from edge.http_errors import HttpError, error_body, http_error, plain_error
from edge.limits import limit_headers
from naru.errors import NaruError


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API's way.

    Attributes:
        error: How an error is answered; takes the request's id too.
        plain_error: How an error of HTTP itself is answered, by status, message, code (may be None) and request id.
        error_event: What ends a stream that broke; takes the request's id and how many numbered events came before it too.
        keep_alive: What fills silence.
        last_event: What ends a complete stream, after all that its answer says.
        headers: What every answer tells of itself, from the request's id, its limits, tightest first, and the seconds since
            the Unix epoch.
    """

    error: Callable[[NaruError, str], HttpError]
    plain_error: Callable[[int, str, str | None, str], HttpError]
    error_event: Callable[[NaruError, str, int], bytes]
    keep_alive: bytes
    last_event: bytes
    headers: Callable[[str, Sequence[LimitState], float], dict[str, str]]


OPENAI = Dialect(
    error=lambda error, _: http_error(error),
    plain_error=lambda status, message, code, _: plain_error(status, message, code),
    error_event=lambda error, _, __: sse.event(error_body(error)) + sse.DONE,
    keep_alive=sse.KEEP_ALIVE,
    last_event=sse.DONE,
    headers=lambda _, limits, __: limit_headers(limits),
)
