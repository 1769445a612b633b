"""When users and workspaces were deleted, and invites revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, column in (("workspaces", "delete_time"), ("users", "delete_time"), ("invites", "revoke_time")):
        op.add_column(table, sa.Column(column, sa.BigInteger))


def downgrade() -> None:
    # A code that lets nobody in must not come alive again. Deleted users are blocked and without a password, and deleted
    # workspaces without keys and members, also where nobody knows that they were deleted.
    op.execute("UPDATE invites SET use_time = revoke_time WHERE revoke_time IS NOT NULL AND use_time IS NULL")
    for table, column in (("invites", "revoke_time"), ("users", "delete_time"), ("workspaces", "delete_time")):
        # No batch: that makes a SQLite table anew, which others refer to.
        op.drop_column(table, column)
