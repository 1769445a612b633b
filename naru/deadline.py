"""Deadlines, handed from each RPC to the RPCs it makes.

Python's gRPC does not do that by itself. The idea of taking a little off at each hop, so that the callee can still say what
ran out of time, and of refusing work that cannot finish, is letsencrypt/boulder's (`grpc/interceptors.go`).
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token

from naru.errors import NaruError, Reason

SHAVE_SECONDS = 0.02
FLOOR_SECONDS = 0.01

_deadline: ContextVar[float | None] = ContextVar("naru_deadline", default=None)


def enter(seconds: float | None) -> Token[float | None]:
    """Gives the current task `seconds` from now; None leaves it without a deadline."""
    return _deadline.set(None if seconds is None else time.monotonic() + seconds)


def leave(token: Token[float | None]) -> None:
    """Undoes `enter`."""
    _deadline.reset(token)


def remaining() -> float | None:
    """Seconds left to the current task; None when it has no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def bounded(timeout: float) -> float:
    """`timeout`, or what is left of the current deadline less a shave, if that is shorter.

    Raises NaruError DEADLINE_EXCEEDED when too little is left to try.
    """
    left = remaining()
    if left is None:
        return timeout
    left -= SHAVE_SECONDS
    if left < FLOOR_SECONDS:
        raise NaruError(Reason.DEADLINE_EXCEEDED, "There is not enough time left for this request.")
    return min(timeout, left)
