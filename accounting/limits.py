"""What is allowed to whom, pure: the rules of tiers and budgets, and which of them apply to a request."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from accounting.quota import Limit, LimitKind, LimitScope, LimitWindow
from naru.errors import NaruError, invalid_argument
from naru.identity import Principal

DEFAULT_OUTPUT_TOKENS = 4_096
"""Generated tokens per choice where a limit on them, or on money, applies and the caller set no cap."""
FALLBACK_TIER = "free"
"""The tier of callers whose own is not defined."""
MAX_LIMIT = 9 * 10**15
"""Highest limit: exact in every store, the doubles of the limiter included."""
MAX_SOFT_THRESHOLDS = 8
MAX_TIER_LIMITS = 64
_MODEL_CHARACTERS_MAX = 512


@dataclass(frozen=True, slots=True)
class LimitRule:
    """What is allowed, before it is known to whom. `model` empty: all served models together."""

    kind: LimitKind
    window: LimitWindow
    limit: int
    model: str = ""
    shadow: bool = False
    soft_thresholds: tuple[int, ...] = ()

    def limit_of(self, scope: LimitScope, scope_id: str) -> Limit:
        """The rule as a limit of somebody."""
        return Limit(scope, scope_id, self.kind, self.window, self.limit, self.model, self.shadow, self.soft_thresholds)


@dataclass(frozen=True, slots=True)
class TierLimit:
    """One limit of a tier, counted for each in `scope`."""

    rule: LimitRule
    scope: LimitScope = LimitScope.CALLER


@dataclass(frozen=True, slots=True)
class Tier:
    """A named set of limits.

    Attributes:
        default_output_tokens: Taken, and sent to the engine as a cap, where a limit on generated tokens or money applies and
            the caller set none.
        create_time: Microseconds since the Unix epoch; None for a tier of the configuration.
    """

    name: str
    limits: tuple[TierLimit, ...] = ()
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    create_time: int | None = None
    update_time: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit of one subject. Times in microseconds since the Unix epoch.

    Attributes:
        wish: A digest of what the request that made it asked for, whatever became of it since.
    """

    budget_id: str
    scope: LimitScope
    scope_id: str
    rule: LimitRule
    description: str = ""
    create_time: int = 0
    update_time: int = 0
    wish: str = field(default="", compare=False)


def subjects(principal: Principal, client_address: str) -> dict[LimitScope, str]:
    """Who a request counts for, by scope; a scope that it has nobody in is left out."""
    everyone = {
        LimitScope.KEY: principal.key_id,
        LimitScope.USER: principal.user_id,
        LimitScope.WORKSPACE: principal.workspace_id,
        LimitScope.ADDRESS: client_address,
        LimitScope.TIER: principal.tier,
    }
    return {scope: scope_id for scope, scope_id in everyone.items() if scope_id}


def caller_scope(principal: Principal) -> LimitScope:
    """Whom a principal's requests count against: its key, else its user, else its workspace."""
    if principal.key_id:
        return LimitScope.KEY
    return LimitScope.USER if principal.user_id else LimitScope.WORKSPACE


def check_rule(rule: LimitRule, field: str) -> None:
    """Raises NaruError INVALID_ARGUMENT, naming what is wrong below `field`."""
    if (rule.kind is LimitKind.CONCURRENCY) != (rule.window is LimitWindow.NONE):
        needs = "no window" if rule.kind is LimitKind.CONCURRENCY else "a window: minute, hour, day, month or total"
        raise invalid_argument(f"{field}.window", f"A limit on {_words(rule.kind)} needs {needs}.")
    if not 0 <= rule.limit <= MAX_LIMIT:
        raise invalid_argument(f"{field}.limit", f"{field}.limit must be a whole number from 0 to {MAX_LIMIT:,}.")
    if len(rule.model) > _MODEL_CHARACTERS_MAX or not rule.model.isprintable():
        raise invalid_argument(
            f"{field}.model",
            f"{field}.model must be the name of a model, of at most {_MODEL_CHARACTERS_MAX} characters.",
        )
    thresholds = rule.soft_thresholds
    if len(thresholds) > MAX_SOFT_THRESHOLDS or len(set(thresholds)) != len(thresholds):
        raise invalid_argument(
            f"{field}.soft_thresholds",
            f"{field}.soft_thresholds must be at most {MAX_SOFT_THRESHOLDS} different numbers.",
        )
    if not all(1 <= threshold <= 100 for threshold in thresholds):
        raise invalid_argument(
            f"{field}.soft_thresholds", f"{field}.soft_thresholds must be percentages from 1 to 100."
        )


def check_tier(tier: Tier, field: str) -> None:
    """Raises NaruError INVALID_ARGUMENT, naming what is wrong below `field`. The name is not looked at."""
    if len(tier.limits) > MAX_TIER_LIMITS:
        raise invalid_argument(f"{field}.limits", f"A tier has at most {MAX_TIER_LIMITS} limits.")
    seen = set()
    for index, one in enumerate(tier.limits):
        check_rule(one.rule, f"{field}.limits[{index}].rule")
        what = (one.scope, one.rule.kind, one.rule.window, one.rule.model)
        if what in seen:
            raise invalid_argument(
                f"{field}.limits[{index}]", "A tier has one limit for the same scope, kind, window and model, not two."
            )
        seen.add(what)
    if not 1 <= tier.default_output_tokens <= 10**12:
        raise invalid_argument(
            f"{field}.default_output_tokens",
            f"{field}.default_output_tokens must be a whole number from 1 to {10**12:,}.",
        )


def check_subject(scope: LimitScope, scope_id: str, field: str) -> str:
    """The subject's id, an address in its one form.

    Raises NaruError INVALID_ARGUMENT, naming what is wrong below `field`.
    """
    if scope is LimitScope.CALLER:
        raise invalid_argument(f"{field}.scope", f"{field}.scope must be key, user, workspace, address or tier.")
    if not 1 <= len(scope_id) <= 128 or not scope_id.isprintable():
        raise invalid_argument(f"{field}.scope_id", f"{field}.scope_id must have 1 to 128 characters.")
    if scope is not LimitScope.ADDRESS:
        return scope_id
    try:
        return str(ipaddress.ip_address(scope_id))
    except ValueError:
        raise _bad_address(field) from None


def _bad_address(field: str) -> NaruError:
    return invalid_argument(f"{field}.scope_id", f"{field}.scope_id must be an IPv4 or IPv6 address.")


def _words(kind: LimitKind) -> str:
    return "requests in flight" if kind is LimitKind.CONCURRENCY else kind.value.replace("_", " ")
