"""Tiers, budgets and prices that change at run time, and what usage costs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tiers",
        sa.Column("name", sa.String(64)),
        sa.Column("limits", sa.Text, nullable=False),
        sa.Column("default_output_tokens", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tiers"),
    )
    op.create_table(
        "budgets",
        sa.Column("budget_id", sa.String(36)),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("window", sa.String(16), nullable=False),
        sa.Column("limit_amount", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("shadow", sa.Boolean, nullable=False),
        sa.Column("soft_thresholds", sa.Text, nullable=False),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("budget_id", name="pk_budgets"),
    )
    op.create_index("ix_budgets_create_time_budget_id", "budgets", ["create_time", "budget_id"])
    op.create_index("ix_budgets_scope_scope_id", "budgets", ["scope", "scope_id"])
    op.create_table(
        "prices",
        sa.Column("price_id", sa.String(36)),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("workspace_id", sa.String(64), nullable=False),
        sa.Column("input_million", sa.BigInteger, nullable=False),
        sa.Column("cached_input_million", sa.BigInteger, nullable=False),
        sa.Column("output_million", sa.BigInteger, nullable=False),
        sa.Column("request", sa.BigInteger, nullable=False),
        sa.Column("effective_time", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("price_id", name="pk_prices"),
        sa.UniqueConstraint(
            "model", "workspace_id", "effective_time", name="uq_prices_model_workspace_id_effective_time"
        ),
    )
    op.create_index("ix_prices_effective_time_price_id", "prices", ["effective_time", "price_id"])
    revisions = op.create_table(
        "catalogue_revision",
        sa.Column("catalogue_id", sa.Integer, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("catalogue_id", name="pk_catalogue_revision"),
    )
    op.bulk_insert(revisions, [{"catalogue_id": 1, "revision": 0}])
    for table in ("usage_events", "usage_corrections", "settlement_outbox"):
        op.add_column(table, sa.Column("cost", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("usage_events", sa.Column("price_id", sa.String(36), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("usage_events", "price_id")
    for table in ("settlement_outbox", "usage_corrections", "usage_events"):
        op.drop_column(table, "cost")
    for table in ("catalogue_revision", "prices", "budgets", "tiers"):
        op.drop_table(table)
