"""Workspaces, API keys, and the numbered list of invalidations."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    installation = op.create_table(
        "installation",
        sa.Column("installation_id", sa.Integer, autoincrement=False),
        sa.Column("epoch", sa.String(36), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("first_workspace_id", sa.String(36)),
        sa.PrimaryKeyConstraint("installation_id", name="pk_installation"),
    )
    op.bulk_insert(installation, [{"installation_id": 1, "epoch": str(uuid.uuid4()), "sequence": 0}])
    op.create_table(
        "workspaces",
        sa.Column("workspace_id", sa.String(36)),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(64), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", name="pk_workspaces"),
        sa.UniqueConstraint("name", name="uq_workspaces_name"),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(12)),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("user_id", sa.String(36)),
        sa.Column("service_account", sa.String(64)),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("tier", sa.String(64)),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger),
        sa.Column("revoke_time", sa.BigInteger),
        sa.Column("request_caller", sa.String(64)),
        sa.Column("request_id", sa.String(36)),
        sa.Column("request_digest", sa.LargeBinary(32)),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.workspace_id"], name="fk_api_keys_workspace_id"),
        sa.UniqueConstraint("request_caller", "request_id", name="uq_api_keys_request_caller_request_id"),
    )
    op.create_index("ix_api_keys_create_time_key_id", "api_keys", ["create_time", "key_id"])
    op.create_index(
        "ix_api_keys_workspace_id_create_time_key_id", "api_keys", ["workspace_id", "create_time", "key_id"]
    )
    op.create_table(
        "invalidations",
        sa.Column("sequence", sa.BigInteger, autoincrement=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_invalidations"),
    )


def downgrade() -> None:
    for table in ("invalidations", "api_keys", "workspaces", "installation"):
        op.drop_table(table)
