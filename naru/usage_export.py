"""Usage events as lines of CSV or JSON, for exports."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from google.protobuf.timestamp_pb2 import Timestamp

from naru.api.accounting.v1 import usage_event_pb2

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
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# What makes a formula of a cell in spreadsheets: a caller may call a model "=HYPERLINK(...)".
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_OUTCOMES = {number: name.removeprefix("OUTCOME_").lower() for name, number in usage_event_pb2.Outcome.items()}
_ACCURACIES = {number: name.removeprefix("ACCURACY_").lower() for name, number in usage_event_pb2.Accuracy.items()}


class ExportFormat(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    JSONL = "jsonl"


def header(written: ExportFormat) -> bytes:
    """What comes before the first line."""
    return (",".join(COLUMNS) + "\r\n").encode() if written is ExportFormat.CSV else b""


def lines(written: ExportFormat, records: Iterable[usage_event_pb2.UsageRecord]) -> bytes:
    """A line for each record. In CSV a text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if written is ExportFormat.JSONL:
        rows = (dict(zip(COLUMNS, _values(record), strict=True)) for record in records)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in _values(record)] for record in records)
    return text.getvalue().encode()


def _values(record: usage_event_pb2.UsageRecord) -> tuple[str | int | None, ...]:
    usage = record.usage
    return (
        _time(record.reserve_time),
        _time(record.end_time) if record.HasField("end_time") else None,
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


def _time(time: Timestamp) -> str:
    moment = _BEGINNING + timedelta(seconds=time.seconds, microseconds=time.nanos // 1_000)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _cell(value: str | int | None) -> str | int | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
