"""Users, memberships, invites, sessions, refresh tokens, signing keys, and invalidations of users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("invalidations", sa.Column("user_id", sa.String(36)))
    _create_people()
    _create_sessions()


def _create_people() -> None:
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(36)),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("tier", sa.String(64)),
        sa.Column("default_workspace_id", sa.String(36)),
        sa.Column("password_hash", sa.String(256), nullable=False),
        sa.Column("blocked", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "memberships",
        sa.Column("workspace_id", sa.String(36)),
        sa.Column("user_id", sa.String(36)),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "user_id", name="pk_memberships"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.workspace_id"], name="fk_memberships_workspace_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_memberships_user_id"),
    )
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])
    op.create_table(
        "invites",
        sa.Column("invite_id", sa.String(36)),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        sa.Column("email", sa.String(254)),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("use_time", sa.BigInteger),
        sa.PrimaryKeyConstraint("invite_id", name="pk_invites"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.workspace_id"], name="fk_invites_workspace_id"),
    )


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String(36)),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("client_address", sa.String(45), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("revoke_time", sa.BigInteger),
        sa.PrimaryKeyConstraint("session_id", name="pk_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_sessions_user_id"),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_table(
        "refresh_tokens",
        sa.Column("session_id", sa.String(36)),
        sa.Column("generation", sa.Integer, autoincrement=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        sa.Column("spend_time", sa.BigInteger),
        sa.PrimaryKeyConstraint("session_id", "generation", name="pk_refresh_tokens"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name="fk_refresh_tokens_session_id"),
    )
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.String(36)),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.Column("private_key", sa.LargeBinary, nullable=False),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kid", name="pk_signing_keys"),
    )


def downgrade() -> None:
    for table in ("signing_keys", "refresh_tokens", "sessions", "invites", "memberships", "users"):
        op.drop_table(table)
    # The caches forget what these numbers were for; a later upgrade's epoch is the same and numbers go on.
    op.execute("DELETE FROM invalidations WHERE key_id = ''")
    with op.batch_alter_table("invalidations") as batch:
        batch.drop_column("user_id")
