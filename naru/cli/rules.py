"""Limits as people write them on a command line, and back."""

from __future__ import annotations

import re
from enum import StrEnum

from naru.api.accounting.v1 import limit_pb2, tier_service_pb2
from naru.money import format_money, parse_money
from naru.pricing import MAX_COST

LIMIT_SYNTAX = (
    "[SCOPE:]KIND[/WINDOW][@MODEL]=AMOUNT[,shadow][,warn=PERCENT]. SCOPE: key, user, workspace, address or tier; without one"
    " it is the key, else the user, else the workspace. KIND: requests, tokens, input-tokens, output-tokens, cost or"
    " concurrency. WINDOW: minute, hour, day, month or total; none for concurrency. AMOUNT: a whole number; for cost, units"
    " of the currency. shadow: count, but never refuse. warn: log when so many percent are used; may be given again."
)
"""What `parse_limit` reads, for the help texts."""
_LIMIT = re.compile(
    r"(?:(?P<scope>[a-z]+):)?(?P<kind>[a-z_-]+)(?:/(?P<window>[a-z]+))?(?:@(?P<model>[^=,]+))?"
    r"=(?P<amount>[^=,]+)(?P<flags>(?:,[^,]+)*)"
)
_MOST = MAX_COST
_WHOLE = re.compile(r"\d{1,16}", re.ASCII)
_WARN = re.compile(r"warn=(\d{1,3})", re.ASCII)


class Scope(StrEnum):
    """For whom a limit counts."""

    KEY = "key"
    USER = "user"
    WORKSPACE = "workspace"
    ADDRESS = "address"
    TIER = "tier"


class Kind(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    INPUT_TOKENS = "input-tokens"
    OUTPUT_TOKENS = "output-tokens"
    TOTAL_TOKENS = "tokens"
    COST = "cost"
    CONCURRENCY = "concurrency"


class Window(StrEnum):
    """Over which time a limit counts."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


SCOPES = {scope: limit_pb2.LimitScope.Value(f"LIMIT_SCOPE_{scope.name}") for scope in Scope}
"""Each scope on the wire."""
_KINDS = {kind: limit_pb2.LimitKind.Value(f"LIMIT_KIND_{kind.name}") for kind in Kind}
_WINDOWS = {window: limit_pb2.LimitWindow.Value(f"LIMIT_WINDOW_{window.name}") for window in Window}
_SCOPE_NAMES = {value: scope for scope, value in SCOPES.items()}
_KIND_NAMES = {value: kind for kind, value in _KINDS.items()}
_WINDOW_NAMES = {value: window for window, value in _WINDOWS.items()}


def parse_limit(text: str) -> tier_service_pb2.TierLimit:
    """A limit of a tier, from LIMIT_SYNTAX. Raises ValueError with a sentence that says what is wrong."""
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no limit; write it as requests/minute=60 or workspace:cost/month=50.00")
    scope = match["scope"]
    if scope is not None and scope not in list(Scope):
        raise ValueError(f"{scope!r} is no scope; it is one of {', '.join(Scope)}")
    name = match["kind"].replace("_", "-")
    # The name that the API has for it.
    kind = "tokens" if name == "total-tokens" else name
    if kind not in list(Kind):
        raise ValueError(f"{name!r} is no kind of limit; it is one of {', '.join(Kind)}")
    window = match["window"]
    if window is not None and window not in list(Window):
        raise ValueError(f"{window!r} is no window; it is one of {', '.join(Window)}")
    shadow, warn_at = False, []
    for flag in match["flags"].split(",")[1:]:
        warn = _WARN.fullmatch(flag)
        if warn is not None:
            warn_at.append(int(warn[1]))
        elif flag == "shadow":
            shadow = True
        else:
            raise ValueError(f"{flag!r} is no flag of a limit; there are shadow and warn=PERCENT")
    rule = make_rule(
        Kind(kind),
        match["amount"],
        Window(window) if window else None,
        model=match["model"] or "",
        shadow=shadow,
        warn_at=warn_at,
    )
    return tier_service_pb2.TierLimit(
        scope=SCOPES[Scope(scope)] if scope else limit_pb2.LIMIT_SCOPE_UNSPECIFIED, rule=rule
    )


def make_rule(
    kind: Kind, amount: str, window: Window | None, *, model: str, shadow: bool, warn_at: list[int]
) -> limit_pb2.LimitRule:
    """What is allowed. Raises ValueError with a sentence that says what is wrong."""
    if kind is Kind.CONCURRENCY and window is not None:
        raise ValueError("a limit of concurrency has no window")
    if kind is not Kind.CONCURRENCY and window is None:
        raise ValueError(f"a limit of {kind} needs a window: {', '.join(Window)}")
    if not all(1 <= percent <= 100 for percent in warn_at):
        raise ValueError("a percentage to warn at is from 1 to 100")
    return limit_pb2.LimitRule(
        kind=_KINDS[kind],
        window=_WINDOWS[window] if window else limit_pb2.LIMIT_WINDOW_UNSPECIFIED,
        limit=_amount(kind, amount),
        model=model,
        shadow=shadow,
        soft_thresholds=warn_at,
    )


def limit_text(limit: tier_service_pb2.TierLimit) -> str:
    """The limit as `parse_limit` reads it."""
    scope = f"{scope_text(limit.scope)}:" if limit.scope else ""
    return scope + rule_text(limit.rule)


def rule_text(rule: limit_pb2.LimitRule) -> str:
    """The rule as `parse_limit` reads it after the scope."""
    text = kind_text(rule.kind)
    if rule.window:
        text += f"/{window_text(rule.window)}"
    if rule.model:
        text += f"@{rule.model}"
    text += f"={amount_text(rule.kind, rule.limit)}"
    if rule.shadow:
        text += ",shadow"
    return text + "".join(f",warn={percent}" for percent in rule.soft_thresholds)


def scope_text(scope: limit_pb2.LimitScope.ValueType) -> str:
    """The scope's name; its number when this build does not know it."""
    return _SCOPE_NAMES.get(scope, str(scope))


def kind_text(kind: limit_pb2.LimitKind.ValueType) -> str:
    """The kind's name; its number when this build does not know it."""
    return _KIND_NAMES.get(kind, str(kind))


def window_text(window: limit_pb2.LimitWindow.ValueType) -> str:
    """The window's name; empty for none, its number when this build does not know it."""
    return _WINDOW_NAMES.get(window, str(window)) if window else ""


def amount_text(kind: limit_pb2.LimitKind.ValueType, amount: int) -> str:
    """The amount in the kind's units: money in units of the currency."""
    return format_money(amount) if kind == limit_pb2.LIMIT_KIND_COST else str(amount)


def _amount(kind: Kind, text: str) -> int:
    if kind is Kind.COST:
        amount = parse_money(text)
    elif _WHOLE.fullmatch(text):
        amount = int(text)
    else:
        raise ValueError(f"{text!r} is no whole number")
    if amount > _MOST:
        raise ValueError(f"{text} is too much; the most is {format_money(_MOST) if kind is Kind.COST else _MOST}")
    return amount
