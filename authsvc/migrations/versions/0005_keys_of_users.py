"""Finds the keys of a user, whose number is bounded."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_api_keys_user_id_create_time", "api_keys", ["user_id", "create_time"])


def downgrade() -> None:
    op.drop_index("ix_api_keys_user_id_create_time", "api_keys")
