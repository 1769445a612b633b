"""What an export of the audit has in a line."""

from __future__ import annotations

from naru.api.auth.v1 import audit_service_pb2
from naru.export import Exported, Value, time_text

COLUMNS = (
    "time",
    "entry_id",
    "actor",
    "client_address",
    "request_id",
    "action",
    "object_id",
    "workspace_id",
    "before_json",
    "after_json",
)
"""`before_json` and `after_json` are JSON objects, or empty; times are UTC, as 2026-11-21T09:00:00.000000Z."""


def _values(entry: audit_service_pb2.AuditEntry) -> tuple[Value, ...]:
    return (
        time_text(entry.time),
        entry.entry_id,
        entry.actor,
        entry.client_address,
        entry.request_id,
        entry.action,
        entry.object_id,
        entry.workspace_id,
        entry.before_json,
        entry.after_json,
    )


AUDIT = Exported("audit", COLUMNS, _values)
"""Entries of the audit."""
