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

installation = sa.Table(
    "installation",
    metadata,
    # One row, written by the first migration. Taking its lock puts invalidations into an order in which a lower number
    # never appears after a higher one; a database sequence would not, because it is not part of the transaction.
    sa.Column("installation_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.String(36), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    # Set once, by the bootstrap that won.
    sa.Column("first_workspace_id", sa.String(36)),
)

workspaces = sa.Table(
    "workspaces",
    metadata,
    sa.Column("workspace_id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("tier", sa.String(64), nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.String(12), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("description", sa.String(200), nullable=False),
    sa.Column("workspace_id", sa.String(36), sa.ForeignKey("workspaces.workspace_id"), nullable=False),
    sa.Column("user_id", sa.String(36)),
    sa.Column("service_account", sa.String(64)),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("tier", sa.String(64)),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("expire_time", sa.BigInteger),
    sa.Column("revoke_time", sa.BigInteger),
    # A request id belongs to whoever chose it: two callers may choose the same one.
    sa.Column("request_caller", sa.String(64)),
    sa.Column("request_id", sa.String(36)),
    sa.Column("request_digest", sa.LargeBinary(32)),
    sa.UniqueConstraint("request_caller", "request_id"),
    sa.Index(None, "create_time", "key_id"),
    sa.Index(None, "workspace_id", "create_time", "key_id"),
)

invalidations = sa.Table(
    "invalidations",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(12), nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
)
