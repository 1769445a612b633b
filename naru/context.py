"""What is known of the RPC or HTTP request that the current task works for."""

from __future__ import annotations

import re
from contextvars import ContextVar, Token
from dataclasses import dataclass

from naru.identity import Caller

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request.

    Attributes:
        request_id: Shown to the caller and written on every log line of the request.
        caller: Whoever made the call.
        method: Full RPC name such as "/naru.api.auth.v1.AuthService/Authenticate", or an HTTP route.
        traceparent: W3C trace context that came with it; may be empty.
        client_address: Where the caller's own connection comes from; empty where it is not known.
    """

    request_id: str
    caller: Caller
    method: str
    traceparent: str = ""
    client_address: str = ""


_current: ContextVar[RequestContext] = ContextVar("naru_request_context")


def current() -> RequestContext:
    """The request this task works for. Raises LookupError outside of one."""
    return _current.get()


def current_or_none() -> RequestContext | None:
    """The request this task works for, if it works for one."""
    return _current.get(None)


def enter(context: RequestContext) -> Token[RequestContext]:
    """Makes `context` the current one, until `leave`."""
    return _current.set(context)


def leave(token: Token[RequestContext]) -> None:
    """Undoes `enter`."""
    _current.reset(token)


def is_request_id(text: str) -> bool:
    """Whether a client's request id is taken: 1 to 128 letters, digits, dots, underscores and hyphens."""
    return _REQUEST_ID.fullmatch(text) is not None
