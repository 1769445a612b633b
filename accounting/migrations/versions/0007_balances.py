"""What was taken off what workspaces may use, what budgets were made as, and why requests ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("ledger_accounts", sa.Column("lowered", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("request_log", sa.Column("finish_reason", sa.String(32), nullable=False, server_default=""))
    op.add_column("budgets", sa.Column("wish", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("request_log") as table:
        table.drop_column("finish_reason")
    with op.batch_alter_table("budgets") as table:
        table.drop_column("wish")
    with op.batch_alter_table("ledger_accounts") as table:
        table.drop_column("lowered")
