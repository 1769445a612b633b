"""Usage events, their corrections and outbox, the request log, and the limiter's epoch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage_events",
        sa.Column("event_id", sa.String(36)),
        sa.Column("attempt", sa.Integer, autoincrement=False),
        sa.Column("evidence", sa.SmallInteger, nullable=False),
        sa.Column("accuracy", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("service_account", sa.String(64), nullable=False),
        sa.Column("workspace_id", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(64), nullable=False),
        sa.Column("requested_model", sa.String(512), nullable=False),
        sa.Column("served_model", sa.String(512), nullable=False),
        sa.Column("endpoint", sa.String(128), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("reserve_time", sa.BigInteger, nullable=False),
        sa.Column("accept_time", sa.BigInteger),
        sa.Column("end_time", sa.BigInteger),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("replica", sa.String(128), nullable=False),
        sa.Column("epoch", sa.String(128), nullable=False),
        sa.Column("record_time", sa.BigInteger, nullable=False),
        sa.Column("settled_time", sa.BigInteger),
        sa.PrimaryKeyConstraint("event_id", "attempt", name="pk_usage_events"),
    )
    op.create_index("ix_usage_events_key_id_reserve_time", "usage_events", ["key_id", "reserve_time"])
    op.create_index("ix_usage_events_reserve_time", "usage_events", ["reserve_time"])
    op.create_index(
        "ix_usage_events_unsettled",
        "usage_events",
        ["record_time"],
        sqlite_where=sa.text("settled_time IS NULL"),
        postgresql_where=sa.text("settled_time IS NULL"),
    )
    op.create_index("ix_usage_events_workspace_id_reserve_time", "usage_events", ["workspace_id", "reserve_time"])
    op.create_table(
        "usage_corrections",
        sa.Column("event_id", sa.String(36)),
        sa.Column("attempt", sa.Integer, autoincrement=False),
        sa.Column("evidence", sa.SmallInteger, autoincrement=False),
        sa.Column("previous_evidence", sa.SmallInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("reserve_time", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("event_id", "attempt", "evidence", name="pk_usage_corrections"),
    )
    op.create_table(
        "settlement_outbox",
        sa.Column("event_id", sa.String(36)),
        sa.Column("attempt", sa.Integer, autoincrement=False),
        sa.Column("evidence", sa.SmallInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("event_id", "attempt", name="pk_settlement_outbox"),
    )
    op.create_index("ix_settlement_outbox_create_time", "settlement_outbox", ["create_time"])
    op.create_table(
        "request_log",
        sa.Column("request_id", sa.String(128)),
        sa.Column("start_time", sa.BigInteger, autoincrement=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("service_account", sa.String(64), nullable=False),
        sa.Column("workspace_id", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(128), nullable=False),
        sa.Column("requested_model", sa.String(512), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("duration_us", sa.BigInteger, nullable=False),
        sa.Column("first_byte_us", sa.BigInteger, nullable=False),
        sa.Column("request_bytes", sa.BigInteger, nullable=False),
        sa.Column("response_bytes", sa.BigInteger, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "start_time", name="pk_request_log"),
    )
    op.create_index("ix_request_log_start_time", "request_log", ["start_time"])
    op.create_table(
        "limiter_epoch",
        sa.Column("limiter_id", sa.Integer, autoincrement=False),
        sa.Column("epoch", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("limiter_id", name="pk_limiter_epoch"),
    )


def downgrade() -> None:
    for table in ("limiter_epoch", "request_log", "settlement_outbox", "usage_corrections", "usage_events"):
        op.drop_table(table)
