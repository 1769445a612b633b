"""What a refusal looks like to a caller."""

from __future__ import annotations

from accounting.quota import (
    EventRef,
    Limit,
    LimitKind,
    LimitScope,
    LimitState,
    LimitWindow,
    Refusal,
    closed_error,
    refusal_error,
    tightest_first,
)
from naru.errors import Reason


def test_a_limit_over_time() -> None:
    """Names the limit, and when to come back."""
    error = refusal_error(Refusal("key", LimitKind.INPUT_TOKENS, LimitWindow.HOUR, 1_000, 10, 12.5))
    assert (error.reason, error.retry_after) == (Reason.RATE_LIMIT_EXCEEDED, 12.5)
    assert error.metadata == {"scope": "key", "kind": "input_tokens", "window": "hour", "limit": "1000"}
    assert error.message == "The key's limit of 1000 input tokens per hour is used up."


def test_a_limit_on_what_is_in_flight() -> None:
    """Says how many."""
    error = refusal_error(Refusal("user", LimitKind.CONCURRENCY, LimitWindow.NONE, 4, 1, 1.0))
    assert (error.reason, error.retry_after) == (Reason.CONCURRENCY_LIMIT_EXCEEDED, 1.0)
    assert error.metadata == {"scope": "user", "limit": "4"}


def test_larger_than_a_whole_limit() -> None:
    """Says how much was asked for, and nothing about waiting."""
    error = refusal_error(Refusal("key", LimitKind.TOTAL_TOKENS, LimitWindow.MINUTE, 10, 11, None))
    assert (error.reason, error.retry_after) == (Reason.REQUEST_EXCEEDS_LIMIT, None)
    assert error.metadata == {"scope": "key", "kind": "total_tokens", "limit": "10", "requested": "11"}


def test_a_limit_for_all_time() -> None:
    """No waiting helps, and the code is the one for money that is spent; what can never fit is told apart."""
    spent = refusal_error(Refusal(LimitScope.KEY, LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, 10, 10, None))
    assert (spent.reason, spent.retry_after) == (Reason.INSUFFICIENT_QUOTA, None)
    assert spent.metadata == {"scope": "key", "window": "total"}
    assert spent.message.startswith("The key's lifetime limit of 10 total tokens is used up")
    larger = refusal_error(Refusal(LimitScope.KEY, LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, 10, 11, None))
    assert larger.reason is Reason.REQUEST_EXCEEDS_LIMIT
    credit = refusal_error(Refusal(LimitScope.WORKSPACE, LimitKind.COST, LimitWindow.TOTAL, 10, 11, None))
    assert (credit.reason, credit.retry_after) == (Reason.INSUFFICIENT_QUOTA, None)
    assert credit.message.startswith("The workspace's credit is used up")


def test_a_closed_attempt() -> None:
    """Names its event."""
    error = closed_error(EventRef("e", 0))
    assert (error.reason, error.metadata) == (Reason.FAILED_PRECONDITION, {"event_id": "e"})


def test_tightest_first() -> None:
    """By the share that is left; a limit of nothing is the tightest."""
    states = [
        LimitState(Limit(LimitScope.KEY, "k", LimitKind.REQUESTS, LimitWindow.MINUTE, limit), remaining, 0)
        for limit, remaining in ((100, 50), (10, 1), (1_000, 900), (0, 0))
    ]
    assert [state.limit.limit for state in tightest_first(states)] == [0, 10, 100, 1_000]
