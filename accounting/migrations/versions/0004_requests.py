"""Sums of usage by the hour and day, what retention knows, and ways to look up requests."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BUCKET = ("workspace_id", "key_id", "user_id", "service_account", "model", "endpoint")


def upgrade() -> None:
    # Nothing is rolled yet: the sums are made of it in the background, while questions read what they do not have.
    op.add_column("usage_events", sa.Column("roll_state", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
    op.create_index(
        "ix_usage_events_unrolled",
        "usage_events",
        ["reserve_time"],
        sqlite_where=sa.text("roll_state = 0"),
        postgresql_where=sa.text("roll_state = 0"),
    )
    for time in ("hour", "day"):
        table = f"usage_{time}s"
        op.create_table(
            table,
            *_bucket(time),
            *_sums(),
            sa.PrimaryKeyConstraint(time, *_BUCKET, name=f"pk_{table}"),
        )
        op.create_index(f"ix_{table}_key_id_{time}", table, ["key_id", time])
        op.create_index(f"ix_{table}_workspace_id_{time}", table, ["workspace_id", time])
    op.create_table(
        "usage_reversals",
        sa.Column("reversal_id", sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        *_bucket("hour"),
        *_sums(),
        sa.PrimaryKeyConstraint("reversal_id", name="pk_usage_reversals"),
    )
    rollups = op.create_table(
        "usage_rollups",
        sa.Column("rollups_id", sa.Integer, autoincrement=False),
        sa.Column("pruned_before", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("rollups_id", name="pk_usage_rollups"),
    )
    op.bulk_insert(rollups, [{"rollups_id": 1, "pruned_before": 0}])
    op.create_index("ix_request_log_key_id_start_time", "request_log", ["key_id", "start_time"])
    op.create_index("ix_request_log_trace_id", "request_log", ["trace_id"])
    op.create_index("ix_request_log_workspace_id_start_time", "request_log", ["workspace_id", "start_time"])


def downgrade() -> None:
    op.drop_index("ix_request_log_workspace_id_start_time", "request_log")
    op.drop_index("ix_request_log_trace_id", "request_log")
    op.drop_index("ix_request_log_key_id_start_time", "request_log")
    for table in ("usage_rollups", "usage_reversals", "usage_days", "usage_hours"):
        op.drop_table(table)
    op.drop_index("ix_usage_events_unrolled", "usage_events")
    op.drop_column("usage_events", "roll_state")


def _bucket(time: str) -> list[sa.Column[Any]]:
    return [
        sa.Column(time, sa.Integer, nullable=False, autoincrement=False),
        sa.Column("workspace_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("service_account", sa.String(64), nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("endpoint", sa.String(128), nullable=False),
    ]


def _sums() -> list[sa.Column[Any]]:
    return [
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in (
            "requests",
            "unpriced_requests",
            "cost",
            "prompt_tokens",
            "completion_tokens",
            "cached_prompt_tokens",
            "reasoning_tokens",
        )
    ]
