"""Between the messages of tiers, budgets and prices in `naru.api.accounting.v1` and accounting's own types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from accounting.catalogue.catalogue import Price
from accounting.catalogue.prices import PriceWish
from accounting.limits import DEFAULT_OUTPUT_TOKENS, Budget, LimitRule, Tier, TierLimit
from accounting.quota import LimitKind, LimitScope, LimitWindow
from naru.api.accounting.v1 import budget_service_pb2, limit_pb2, price_pb2, pricing_service_pb2, tier_service_pb2
from naru.errors import invalid_argument
from naru.pricing import UnitPrices

_MICROS = 1_000_000
_SECONDS_MAX = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second of google.protobuf.Timestamp

_SCOPES: Mapping[int, LimitScope] = {
    limit_pb2.LIMIT_SCOPE_UNSPECIFIED: LimitScope.CALLER,
    limit_pb2.LIMIT_SCOPE_KEY: LimitScope.KEY,
    limit_pb2.LIMIT_SCOPE_USER: LimitScope.USER,
    limit_pb2.LIMIT_SCOPE_WORKSPACE: LimitScope.WORKSPACE,
    limit_pb2.LIMIT_SCOPE_ADDRESS: LimitScope.ADDRESS,
    limit_pb2.LIMIT_SCOPE_TIER: LimitScope.TIER,
}
_KINDS: Mapping[int, LimitKind] = {
    limit_pb2.LIMIT_KIND_REQUESTS: LimitKind.REQUESTS,
    limit_pb2.LIMIT_KIND_INPUT_TOKENS: LimitKind.INPUT_TOKENS,
    limit_pb2.LIMIT_KIND_OUTPUT_TOKENS: LimitKind.OUTPUT_TOKENS,
    limit_pb2.LIMIT_KIND_TOTAL_TOKENS: LimitKind.TOTAL_TOKENS,
    limit_pb2.LIMIT_KIND_COST: LimitKind.COST,
    limit_pb2.LIMIT_KIND_CONCURRENCY: LimitKind.CONCURRENCY,
}
_WINDOWS: Mapping[int, LimitWindow] = {
    limit_pb2.LIMIT_WINDOW_UNSPECIFIED: LimitWindow.NONE,
    limit_pb2.LIMIT_WINDOW_MINUTE: LimitWindow.MINUTE,
    limit_pb2.LIMIT_WINDOW_HOUR: LimitWindow.HOUR,
    limit_pb2.LIMIT_WINDOW_DAY: LimitWindow.DAY,
    limit_pb2.LIMIT_WINDOW_MONTH: LimitWindow.MONTH,
    limit_pb2.LIMIT_WINDOW_TOTAL: LimitWindow.TOTAL,
}
SCOPES_TO_PROTO = {scope: limit_pb2.LimitScope.ValueType(number) for number, scope in _SCOPES.items()}
"""Scopes on the wire."""
KINDS_TO_PROTO = {kind: limit_pb2.LimitKind.ValueType(number) for number, kind in _KINDS.items()}
"""Kinds on the wire."""
WINDOWS_TO_PROTO = {window: limit_pb2.LimitWindow.ValueType(number) for number, window in _WINDOWS.items()}
"""Windows on the wire."""

Member = TypeVar("Member")


def tier_from_proto(message: tier_service_pb2.Tier) -> Tier:
    """The tier, without times. Raises NaruError INVALID_ARGUMENT for numbers that nothing is known by."""
    return Tier(
        message.name,
        tuple(
            TierLimit(
                _rule_from_proto(one.rule, f"tier.limits[{index}].rule"),
                _known(_SCOPES, one.scope, f"tier.limits[{index}].scope"),
            )
            for index, one in enumerate(message.limits)
        ),
        message.default_output_tokens or DEFAULT_OUTPUT_TOKENS,
    )


def tier_to_proto(tier: Tier) -> tier_service_pb2.Tier:
    """The tier on the wire."""
    return tier_service_pb2.Tier(
        name=tier.name,
        limits=[
            tier_service_pb2.TierLimit(scope=SCOPES_TO_PROTO[one.scope], rule=_rule_to_proto(one.rule))
            for one in tier.limits
        ],
        default_output_tokens=tier.default_output_tokens,
        create_time=None if tier.create_time is None else time_to_proto(tier.create_time),
        update_time=None if tier.update_time is None else time_to_proto(tier.update_time),
    )


def budget_from_proto(message: budget_service_pb2.Budget) -> Budget:
    """The budget, without times. Raises NaruError INVALID_ARGUMENT for numbers that nothing is known by."""
    return Budget(
        message.budget_id,
        _known(_SCOPES, message.scope, "budget.scope"),
        message.scope_id,
        _rule_from_proto(message.rule, "budget.rule"),
        message.description,
    )


def budget_to_proto(budget: Budget) -> budget_service_pb2.Budget:
    """The budget on the wire."""
    return budget_service_pb2.Budget(
        budget_id=budget.budget_id,
        scope=SCOPES_TO_PROTO[budget.scope],
        scope_id=budget.scope_id,
        rule=_rule_to_proto(budget.rule),
        description=budget.description,
        create_time=time_to_proto(budget.create_time),
        update_time=time_to_proto(budget.update_time),
    )


def scope_filter_from_proto(value: int) -> LimitScope | None:
    """The kind of subject that a list is narrowed to; None: all. Raises NaruError INVALID_ARGUMENT."""
    scope = _known(_SCOPES, value, "scope")
    return None if scope is LimitScope.CALLER else scope


def price_from_proto(request: pricing_service_pb2.CreatePriceRequest) -> PriceWish:
    """The price that is wished. Raises NaruError INVALID_ARGUMENT for a time that does not exist."""
    message, units = request.price, request.price.unit_prices
    return PriceWish(
        message.model,
        UnitPrices(units.input_million, units.cached_input_million, units.output_million, units.request),
        message.workspace_id,
        time_from_proto("price.effective_time", message.effective_time) if message.HasField("effective_time") else None,
    )


def price_to_proto(price: Price) -> price_pb2.Price:
    """The price on the wire."""
    return price_pb2.Price(
        price_id=price.price_id,
        model=price.model,
        workspace_id=price.workspace_id,
        unit_prices=unit_prices_to_proto(price.unit_prices),
        effective_time=time_to_proto(price.effective_time),
        create_time=time_to_proto(price.create_time),
    )


def unit_prices_to_proto(prices: UnitPrices) -> price_pb2.UnitPrices:
    """What units cost."""
    return price_pb2.UnitPrices(
        input_million=prices.input_million,
        cached_input_million=prices.cached_input_million,
        output_million=prices.output_million,
        request=prices.request,
    )


def _rule_from_proto(message: limit_pb2.LimitRule, field: str) -> LimitRule:
    return LimitRule(
        _known(_KINDS, message.kind, f"{field}.kind"),
        _known(_WINDOWS, message.window, f"{field}.window"),
        message.limit,
        message.model,
        message.shadow,
        tuple(message.soft_thresholds),
    )


def _rule_to_proto(rule: LimitRule) -> limit_pb2.LimitRule:
    return limit_pb2.LimitRule(
        kind=KINDS_TO_PROTO[rule.kind],
        window=WINDOWS_TO_PROTO[rule.window],
        limit=rule.limit,
        model=rule.model,
        shadow=rule.shadow,
        soft_thresholds=rule.soft_thresholds,
    )


def _known(members: Mapping[int, Member], number: int, field: str) -> Member:
    member = members.get(number)
    if member is None:
        raise invalid_argument(field, f"{field} must be set to a known value.")
    return member


def time_from_proto(field: str, message: Timestamp) -> int:
    """Microseconds since the Unix epoch; what is finer is cut off."""
    if not 0 <= message.seconds <= _SECONDS_MAX or not 0 <= message.nanos < 1_000_000_000:
        raise invalid_argument(field, f"{field} must be a time from the year 1970 to 9999.")
    return message.seconds * _MICROS + message.nanos // 1_000


def time_to_proto(micros: int) -> Timestamp:
    """Microseconds since the Unix epoch on the wire."""
    seconds, rest = divmod(micros, _MICROS)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
