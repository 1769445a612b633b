"""Sums take changes in that are written with the events, instead of looking for events that changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BUCKET = ("hour", "workspace_id", "key_id", "user_id", "service_account", "model", "endpoint")
_SUMS = (
    "requests",
    "unpriced_requests",
    "cost",
    "prompt_tokens",
    "completion_tokens",
    "cached_prompt_tokens",
    "reasoning_tokens",
)
_ALL = ", ".join((*_BUCKET, *_SUMS))
_NEGATED = ", ".join((*_BUCKET, *(f"-{name}" for name in _SUMS)))
_SUPERSEDED = "EXISTS (SELECT 1 FROM usage_events h WHERE h.event_id = e.event_id AND h.attempt > e.attempt)"
_HOUR_MICROS = 3_600_000_000


def upgrade() -> None:
    _create("usage_changes", "change_id")
    # What the sums did not have yet, or had of something that counts no more.
    op.execute(f"INSERT INTO usage_changes ({_ALL}) SELECT {_NEGATED} FROM usage_reversals")  # noqa: S608 -- constants
    _note(1, f"e.roll_state = 0 AND e.settled_time IS NOT NULL AND NOT {_SUPERSEDED}")
    _note(-1, f"e.roll_state = 1 AND {_SUPERSEDED}")
    op.drop_table("usage_reversals")
    op.drop_index("ix_usage_events_unrolled", "usage_events")
    op.drop_column("usage_events", "roll_state")


def downgrade() -> None:
    op.add_column("usage_events", sa.Column("roll_state", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
    op.execute(f"""
        UPDATE usage_events AS e SET roll_state = CASE WHEN settled_time IS NOT NULL AND NOT {_SUPERSEDED} THEN 1 ELSE 2 END
    """)  # noqa: S608 -- made of constants
    op.create_index(
        "ix_usage_events_unrolled",
        "usage_events",
        ["reserve_time"],
        sqlite_where=sa.text("roll_state = 0"),
        postgresql_where=sa.text("roll_state = 0"),
    )
    _create("usage_reversals", "reversal_id")
    op.execute(f"INSERT INTO usage_reversals ({_ALL}) SELECT {_NEGATED} FROM usage_changes")  # noqa: S608 -- constants
    op.drop_table("usage_changes")


def _create(table: str, key: str) -> None:
    op.create_table(
        table,
        sa.Column(key, sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        sa.Column("hour", sa.Integer, nullable=False, autoincrement=False),
        *(sa.Column(name, sa.String(64), nullable=False) for name in _BUCKET[1:5]),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("endpoint", sa.String(128), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint(key, name=f"pk_{table}"),
    )


def _note(sign: int, condition: str) -> None:
    figures = ("1", "CASE WHEN e.price_id = '' THEN 1 ELSE 0 END", *(f"e.{name}" for name in _SUMS[2:]))
    op.execute(f"""
        INSERT INTO usage_changes ({_ALL})
        SELECT CAST(e.reserve_time / {_HOUR_MICROS} AS INTEGER), e.workspace_id, e.key_id, e.user_id, e.service_account,
            e.served_model, e.endpoint, {", ".join(f"{sign} * {figure}" for figure in figures)}
        FROM usage_events e WHERE {condition}
    """)  # noqa: S608 -- made of constants
