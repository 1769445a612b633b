"""The tables. Times are integers: microseconds since the Unix epoch."""

from __future__ import annotations

from typing import Any

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
    sa.Column("cost", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    # Empty: no price was set.
    sa.Column("price_id", sa.String(36), nullable=False, server_default=""),
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
    sa.Column("cost", sa.BigInteger, nullable=False, server_default=sa.text("0")),
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
    sa.Column("cost", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Index(None, "create_time"),
)

_ENGINE_FIGURES = ("requests", "prompt_tokens", "cached_prompt_tokens", "completion_tokens")

# What the engine of each run of a replica counted itself, as it last told, and what was pruned of its exact events.
engine_counters = sa.Table(
    "engine_counters",
    metadata,
    sa.Column("replica", sa.String(128), primary_key=True),
    sa.Column("epoch", sa.String(128), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in _ENGINE_FIGURES),
    sa.Column("closed", sa.Boolean, nullable=False),
    sa.Column("update_time", sa.BigInteger, nullable=False),
    *(sa.Column(f"pruned_{name}", sa.BigInteger, nullable=False) for name in _ENGINE_FIGURES),
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
    sa.Column("finish_reason", sa.String(32), nullable=False, server_default=""),
    sa.Index(None, "start_time"),
    sa.Index(None, "key_id", "start_time"),
    sa.Index(None, "workspace_id", "start_time"),
    sa.Index(None, "trace_id"),
)


def _bucket(time: str) -> list[sa.Column[Any]]:
    """What sums are kept by. The hour, or day, is its number since the Unix epoch, in UTC."""
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


# Sums of usage that counts, kept for good. What was used is these and the changes that are not added to them yet.
usage_hours = sa.Table(
    "usage_hours",
    metadata,
    *_bucket("hour"),
    *_sums(),
    sa.PrimaryKeyConstraint(
        "hour", "workspace_id", "key_id", "user_id", "service_account", "model", "endpoint", name="pk_usage_hours"
    ),
    sa.Index(None, "key_id", "hour"),
    sa.Index(None, "workspace_id", "hour"),
)

# The same by the day.
usage_days = sa.Table(
    "usage_days",
    metadata,
    *_bucket("day"),
    *_sums(),
    sa.PrimaryKeyConstraint(
        "day", "workspace_id", "key_id", "user_id", "service_account", "model", "endpoint", name="pk_usage_days"
    ),
    sa.Index(None, "key_id", "day"),
    sa.Index(None, "workspace_id", "day"),
)

# What has to be added to these sums, some of it negative: written by whoever changes what counts, in the same transaction.
usage_changes = sa.Table(
    "usage_changes",
    metadata,
    sa.Column("change_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    *_bucket("hour"),
    *_sums(),
)

# One row, written by the migration: whoever rolls or prunes usage locks it. Nothing booked before `pruned_before` may come
# any more, since it may have been there.
usage_rollups = sa.Table(
    "usage_rollups",
    metadata,
    sa.Column("rollups_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("pruned_before", sa.BigInteger, nullable=False),
)

# One row once the limiter has ever begun: tells a Redis that was emptied from one that was never used.
limiter_epoch = sa.Table(
    "limiter_epoch",
    metadata,
    sa.Column("limiter_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.String(36), nullable=False),
)

# Tiers made or changed at run time. The built-in ones and those of the configuration's file are not here.
tiers = sa.Table(
    "tiers",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    # A JSON list.
    sa.Column("limits", sa.Text, nullable=False),
    sa.Column("default_output_tokens", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("update_time", sa.BigInteger, nullable=False),
)

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("budget_id", sa.String(36), primary_key=True),
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("scope_id", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("window", sa.String(16), nullable=False),
    sa.Column("limit_amount", sa.BigInteger, nullable=False),
    sa.Column("model", sa.String(512), nullable=False),
    sa.Column("shadow", sa.Boolean, nullable=False),
    # A JSON list.
    sa.Column("soft_thresholds", sa.Text, nullable=False),
    sa.Column("description", sa.String(200), nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("update_time", sa.BigInteger, nullable=False),
    # A digest of what the request that made it asked for.
    sa.Column("wish", sa.String(64), nullable=False, server_default=""),
    sa.Index(None, "create_time", "budget_id"),
    sa.Index(None, "scope", "scope_id"),
)

# What models cost from a time on. `workspace_id` empty: for everybody.
prices = sa.Table(
    "prices",
    metadata,
    sa.Column("price_id", sa.String(36), primary_key=True),
    sa.Column("model", sa.String(512), nullable=False),
    sa.Column("workspace_id", sa.String(64), nullable=False),
    sa.Column("input_million", sa.BigInteger, nullable=False),
    sa.Column("cached_input_million", sa.BigInteger, nullable=False),
    sa.Column("output_million", sa.BigInteger, nullable=False),
    sa.Column("request", sa.BigInteger, nullable=False),
    sa.Column("effective_time", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("model", "workspace_id", "effective_time"),
    sa.Index(None, "effective_time", "price_id"),
)

# One row, written by the migration. Whoever changes tiers, budgets or prices locks it first and counts it up in the same
# transaction: changes come one after the other, and a revision tells exactly what was seen.
catalogue_revision = sa.Table(
    "catalogue_revision",
    metadata,
    sa.Column("catalogue_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

# What changed the balances of workspaces. Rows are never changed and never deleted: triggers see to it.
ledger_entries = sa.Table(
    "ledger_entries",
    metadata,
    sa.Column("entry_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("workspace_id", sa.String(64), nullable=False),
    # Empty where it is not about usage.
    sa.Column("event_id", sa.String(36), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("evidence", sa.SmallInteger, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("description", sa.String(200), nullable=False),
    sa.Column("request_id", sa.String(36), nullable=False),
    sa.Column("caller", sa.String(128), nullable=False),
    sa.Column("booked_time", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Index(None, "event_id"),
    sa.Index(None, "workspace_id", "booked_time", "entry_id"),
)

ledger_postings = sa.Table(
    "ledger_postings",
    metadata,
    sa.Column("entry_id", sa.String(64), primary_key=True),
    sa.Column("account", sa.String(80), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

# What the entries of a workspace come to, changed with them. `overdraft` NULL: billed in arrears.
ledger_accounts = sa.Table(
    "ledger_accounts",
    metadata,
    sa.Column("workspace_id", sa.String(64), primary_key=True),
    sa.Column("credited", sa.BigInteger, nullable=False),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Column("overdraft", sa.BigInteger),
    sa.Column("lowered", sa.BigInteger, nullable=False, server_default="0"),
)
