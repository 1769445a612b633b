"""Exports: messages as lines of CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

Value = str | int | None
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# What makes a formula of a cell in spreadsheets: a caller may call a model "=HYPERLINK(...)".
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class ExportFormat(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Exported:
    """What is exported.

    Attributes:
        name: In the name of the file.
        columns: Their names.
        values: Of a message, as many.
    """

    name: str
    columns: tuple[str, ...]
    values: Callable[[Any], tuple[Value, ...]]

    def header(self, written: ExportFormat) -> bytes:
        """What comes before the first line."""
        return (",".join(self.columns) + "\r\n").encode() if written is ExportFormat.CSV else b""

    def lines(self, written: ExportFormat, messages: Iterable[Any]) -> bytes:
        """A line for each message. In CSV a text that a spreadsheet would take for a formula gets an apostrophe in front."""
        if written is ExportFormat.JSONL:
            rows = (dict(zip(self.columns, self.values(message), strict=True)) for message in messages)
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        text = io.StringIO()
        csv.writer(text).writerows([_cell(value) for value in self.values(message)] for message in messages)
        return text.getvalue().encode()


def time_text(time: Timestamp) -> str:
    """A time in UTC, as 2026-11-21T09:00:00.000000Z."""
    moment = _BEGINNING + timedelta(seconds=time.seconds, microseconds=time.nanos // 1_000)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _cell(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
