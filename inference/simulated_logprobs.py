"""Log probabilities that the simulated engine makes up."""

from __future__ import annotations

from typing import Any

from inference.engine import TokenCandidate, TokenLogprob
from inference.simulated_text import WORDS
from naru.errors import invalid_argument

_MOST_LOGPROBS = 20


def top_logprobs(body: dict[str, Any], chat: bool) -> int | None:
    """How many a request asks for per token; None for none. Raises NaruError for too many."""
    top: int | None = body.get("logprobs")
    if chat:
        top = (body.get("top_logprobs") or 0) if top else None
    if top is not None and not 0 <= top <= _MOST_LOGPROBS:
        field = "top_logprobs" if chat else "logprobs"
        raise invalid_argument(field, f"`{field}` must be an integer from 0 to {_MOST_LOGPROBS}.")
    return top


def logprob(token: tuple[int, str], top: int) -> TokenLogprob:
    """The chosen token first, then its neighbours in the list of words, each a little less likely."""
    number, text = token
    candidates = [TokenCandidate(text, -0.5, number)]
    for rank in range(1, top):
        neighbour = (number + rank) % len(WORDS)
        candidates.append(TokenCandidate(" " + WORDS[neighbour], -0.5 - rank, neighbour))
    return TokenLogprob(candidates[0], tuple(candidates[:top]))
