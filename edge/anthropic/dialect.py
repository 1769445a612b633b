"""Anthropic's way of speaking."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from edge.accounts import LimitKind, LimitState
from edge.anthropic.answers import event
from edge.anthropic.errors import anthropic_error, anthropic_error_event, anthropic_plain_error
from edge.dialect import Dialect
from edge.limits import TOKEN_KINDS

_KINDS = {
    "requests": (LimitKind.REQUESTS,),
    "tokens": TOKEN_KINDS,
    "input-tokens": (LimitKind.INPUT_TOKENS,),
    "output-tokens": (LimitKind.OUTPUT_TOKENS,),
}


def anthropic_headers(request_id: str, limits: Sequence[LimitState], now: float) -> dict[str, str]:
    """The request's id and where its limits stand; only those there are, and that can refuse."""
    headers = {"Request-Id": request_id}
    for name, kinds in _KINDS.items():
        state = next((state for state in limits if state.kind in kinds and not state.shadow), None)
        if state is not None:
            prefix = f"Anthropic-RateLimit-{name.title()}"
            headers[f"{prefix}-Limit"] = str(state.limit)
            headers[f"{prefix}-Remaining"] = str(max(0, state.remaining))
            if state.reset_delay is not None:
                reset = datetime.fromtimestamp(now + state.reset_delay, UTC)
                headers[f"{prefix}-Reset"] = reset.isoformat(timespec="seconds").replace("+00:00", "Z")
    return headers


ANTHROPIC = Dialect(
    error=anthropic_error,
    plain_error=lambda status, message, _, request_id: anthropic_plain_error(status, message, request_id),
    error_event=anthropic_error_event,
    keep_alive=event("ping", {}),
    last_event=b"",
    headers=anthropic_headers,
)
