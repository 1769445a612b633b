"""Limits as they are written on a command line."""

from __future__ import annotations

import pytest

from naru.api.accounting.v1 import limit_pb2, tier_service_pb2
from naru.cli.rules import Kind, Scope, Window, kind_text, limit_text, make_rule, parse_limit, scope_text, window_text


def limit(
    kind: limit_pb2.LimitKind.ValueType,
    window: limit_pb2.LimitWindow.ValueType,
    most: int,
    scope: limit_pb2.LimitScope.ValueType = limit_pb2.LIMIT_SCOPE_UNSPECIFIED,
    model: str = "",
    shadow: bool = False,
    soft: tuple[int, ...] = (),
) -> tier_service_pb2.TierLimit:
    rule = limit_pb2.LimitRule(kind=kind, window=window, limit=most, model=model, shadow=shadow, soft_thresholds=soft)
    return tier_service_pb2.TierLimit(scope=scope, rule=rule)


LIMITS = {
    "requests/minute=60": limit(limit_pb2.LIMIT_KIND_REQUESTS, limit_pb2.LIMIT_WINDOW_MINUTE, 60),
    "tokens/hour=100000": limit(limit_pb2.LIMIT_KIND_TOTAL_TOKENS, limit_pb2.LIMIT_WINDOW_HOUR, 100_000),
    "key:cost/total=20": limit(
        limit_pb2.LIMIT_KIND_COST, limit_pb2.LIMIT_WINDOW_TOTAL, 20_000_000_000, limit_pb2.LIMIT_SCOPE_KEY
    ),
    "concurrency=0": limit(limit_pb2.LIMIT_KIND_CONCURRENCY, limit_pb2.LIMIT_WINDOW_UNSPECIFIED, 0),
    "workspace:cost/month=50.5": limit(
        limit_pb2.LIMIT_KIND_COST,
        limit_pb2.LIMIT_WINDOW_MONTH,
        50_500_000_000,
        limit_pb2.LIMIT_SCOPE_WORKSPACE,
    ),
    "user:output-tokens/day@org/model:tag=7,shadow,warn=80,warn=95": limit(
        limit_pb2.LIMIT_KIND_OUTPUT_TOKENS,
        limit_pb2.LIMIT_WINDOW_DAY,
        7,
        limit_pb2.LIMIT_SCOPE_USER,
        "org/model:tag",
        True,
        (80, 95),
    ),
}


@pytest.mark.parametrize(("text", "read"), LIMITS.items())
def test_limits_are_read_and_written(text: str, read: tier_service_pb2.TierLimit) -> None:
    """Each is read as it is shown."""
    assert parse_limit(text) == read
    assert limit_text(read) == text


def test_other_spellings() -> None:
    """Underscores and the API's name of a kind are taken too, as are flags in any order."""
    assert parse_limit("input_tokens/day=5") == parse_limit("input-tokens/day=5")
    assert parse_limit("total_tokens/day=5") == parse_limit("tokens/day=5")
    assert parse_limit("cost/day=5.00,warn=80,shadow") == parse_limit("cost/day=5,shadow,warn=80")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no limit"),
        ("requests", "is no limit"),
        ("requests/minute", "is no limit"),
        ("requests/minute=", "is no limit"),
        ("planet:requests/minute=5", "'planet' is no scope"),
        ("jokes/minute=5", "'jokes' is no kind"),
        ("requests/year=5", "'year' is no window"),
        ("requests=5", "needs a window"),
        ("concurrency/minute=5", "has no window"),
        ("requests/minute=5.5", "'5.5' is no whole number"),
        ("requests/minute=-5", "is no whole number"),
        ("requests/minute=9000000000000001", "too much"),
        ("requests/minute=90000000000000000", "is no whole number"),
        ("cost/month=9000000.000000001", "too much"),
        ("cost/month=0.0000000001", "too fine"),
        ("cost/month=1e3", "is no amount"),
        ("requests/minute=5,shadows", "'shadows' is no flag"),
        ("requests/minute=5,warn=0", "from 1 to 100"),
        ("requests/minute=5,warn=101", "from 1 to 100"),
        ("requests/minute=5,", "is no limit"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=said):
        parse_limit(text)


def test_all_that_the_api_has_can_be_written() -> None:
    """No scope, kind or window of the API is missing here, and what a newer one has is shown as its number."""
    assert {scope_text(value) for value in limit_pb2.LimitScope.values() if value} == set(Scope)
    assert {kind_text(value) for value in limit_pb2.LimitKind.values() if value} == set(Kind)
    assert {window_text(value) for value in limit_pb2.LimitWindow.values() if value} == set(Window)
    assert window_text(limit_pb2.LIMIT_WINDOW_UNSPECIFIED) == ""
    unknown = limit_pb2.LimitRule.FromString(b"\x08\x63")
    assert kind_text(unknown.kind) == "99"


def test_a_rule_of_money_is_in_nano_units() -> None:
    """Units of the currency become nano-units."""
    rule = make_rule(Kind.COST, "5.00", Window.MONTH, model="m", shadow=False, warn_at=[80])
    assert (rule.limit, list(rule.soft_thresholds)) == (5_000_000_000, [80])
