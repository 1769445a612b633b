"""What engines counted themselves, to be compared with their events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FIGURES = ("requests", "prompt_tokens", "cached_prompt_tokens", "completion_tokens")


def upgrade() -> None:
    op.create_table(
        "engine_counters",
        sa.Column("replica", sa.String(128)),
        sa.Column("epoch", sa.String(128)),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _FIGURES),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        *(sa.Column(f"pruned_{name}", sa.BigInteger, nullable=False) for name in _FIGURES),
        sa.PrimaryKeyConstraint("replica", "epoch", name="pk_engine_counters"),
    )


def downgrade() -> None:
    op.drop_table("engine_counters")
