"""What an export of usage events has in a line."""

from __future__ import annotations

from naru.api.accounting.v1 import usage_event_pb2
from naru.export import Exported, Value, time_text

COLUMNS = (
    "reserve_time",
    "end_time",
    "event_id",
    "attempt",
    "request_id",
    "workspace_id",
    "key_id",
    "user_id",
    "service_account",
    "tier",
    "endpoint",
    "requested_model",
    "served_model",
    "outcome",
    "accuracy",
    "prompt_tokens",
    "completion_tokens",
    "cached_prompt_tokens",
    "reasoning_tokens",
    "cost",
    "price_id",
)
"""`cost` is in nano-units of the installation's currency; times are UTC, as 2026-11-21T09:00:00.000000Z."""
_OUTCOMES = {number: name.removeprefix("OUTCOME_").lower() for name, number in usage_event_pb2.Outcome.items()}
_ACCURACIES = {number: name.removeprefix("ACCURACY_").lower() for name, number in usage_event_pb2.Accuracy.items()}


def _values(record: usage_event_pb2.UsageRecord) -> tuple[Value, ...]:
    usage = record.usage
    return (
        time_text(record.reserve_time),
        time_text(record.end_time) if record.HasField("end_time") else None,
        record.event_id,
        record.attempt,
        record.request_id,
        record.workspace_id,
        record.key_id,
        record.user_id,
        record.service_account,
        record.tier,
        record.endpoint,
        record.requested_model,
        record.served_model,
        _OUTCOMES.get(record.outcome, str(record.outcome)),
        _ACCURACIES.get(record.accuracy, str(record.accuracy)),
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_prompt_tokens,
        usage.reasoning_tokens,
        record.cost,
        record.price_id,
    )


USAGE = Exported("usage", COLUMNS, _values)
"""Usage events."""
