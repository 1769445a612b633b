"""Headers that tell a client where its limits stand, in OpenAI's forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge.accounts import LimitKind, LimitState, LimitWindow

TOKEN_KINDS = (LimitKind.TOTAL_TOKENS, LimitKind.INPUT_TOKENS, LimitKind.OUTPUT_TOKENS)
"""Kinds that one header for tokens stands for."""


def limit_headers(limits: Sequence[LimitState]) -> dict[str, str]:
    """The headers for `limits`, which stand tightest first; only for those there are, and that can refuse."""
    headers: dict[str, str] = {}
    enforced = [state for state in limits if not state.shadow]
    for name, kinds in (("Requests", (LimitKind.REQUESTS,)), ("Tokens", TOKEN_KINDS)):
        state = next((state for state in enforced if state.kind in kinds), None)
        if state is not None:
            headers[f"X-RateLimit-Limit-{name}"] = str(state.limit)
            headers[f"X-RateLimit-Remaining-{name}"] = str(max(0, state.remaining))
            if state.reset_delay is not None:
                headers[f"X-RateLimit-Reset-{name}"] = format_duration(state.reset_delay)
    for name, window in (("Minute", LimitWindow.MINUTE), ("Hour", LimitWindow.HOUR)):
        state = next((state for state in enforced if state.kind is LimitKind.REQUESTS and state.window is window), None)
        if state is not None:
            headers[f"X-RateLimit-Limit-{name}"] = str(state.limit)
            headers[f"X-RateLimit-Remaining-{name}"] = str(max(0, state.remaining))
    return headers


def format_duration(seconds: float) -> str:
    """A span as OpenAI writes it: "12ms", "1s", "8.64s", "6m0s", "1h0m30s"; rounded up to the millisecond."""
    milliseconds = math.ceil(round(max(0.0, seconds) * 1000, 6))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole, rest = divmod(milliseconds, 1000)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{whole}.{rest:03}".rstrip("0") if rest else str(whole)
    if hours:
        return f"{hours}h{minutes}m{text}s"
    return f"{minutes}m{text}s" if minutes else f"{text}s"
