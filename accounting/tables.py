"""The tables. Times are integers: microseconds since the Unix epoch."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

usage_events = sa.Table(
    "usage_events",
    metadata,
    sa.Column("event_id", sa.String(36), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
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
    # NULL: the lease may go on, so better evidence may come; such a row counts nowhere yet.
    sa.Column("settled_time", sa.BigInteger),
    sa.Index(None, "reserve_time"),
    sa.Index(None, "key_id", "reserve_time"),
    sa.Index(None, "workspace_id", "reserve_time"),
)
sa.Index(
    "ix_usage_events_unsettled",
    usage_events.c.record_time,
    sqlite_where=usage_events.c.settled_time.is_(None),
    postgresql_where=usage_events.c.settled_time.is_(None),
)

# What better evidence changed in figures that counted already: the difference, booked in the original time.
usage_corrections = sa.Table(
    "usage_corrections",
    metadata,
    sa.Column("event_id", sa.String(36), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("evidence", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("previous_evidence", sa.SmallInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
    sa.Column("reserve_time", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

# What the limiter has to be told still. Written with the event, deleted once the limiter knows.
settlement_outbox = sa.Table(
    "settlement_outbox",
    metadata,
    sa.Column("event_id", sa.String(36), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("evidence", sa.SmallInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Index(None, "create_time"),
)

request_log = sa.Table(
    "request_log",
    metadata,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("start_time", sa.BigInteger, primary_key=True, autoincrement=False),
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
    sa.Index(None, "start_time"),
)

# One row once the limiter has ever begun: tells a Redis that was emptied from one that was never used.
limiter_epoch = sa.Table(
    "limiter_epoch",
    metadata,
    sa.Column("limiter_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.String(36), nullable=False),
)
