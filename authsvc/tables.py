"""The tables. Times are integers: microseconds since the Unix epoch."""

from __future__ import annotations

import sqlalchemy as sa

MICROS = 1_000_000
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
    # What is deleted stays as a row without a name: usage, ledger and audit go on naming its id.
    sa.Column("delete_time", sa.BigInteger),
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
    sa.Column("block_time", sa.BigInteger),
    sa.Column("rotate_time", sa.BigInteger),
    sa.Column("earlier_secrets_expire_time", sa.BigInteger),
    sa.Column("last_used_time", sa.BigInteger),
    sa.Column("metadata", sa.JSON, nullable=False, server_default=sa.text("'{}'")),
    # A request id belongs to whoever chose it: two callers may choose the same one.
    sa.Column("request_caller", sa.String(64)),
    sa.Column("request_id", sa.String(36)),
    sa.Column("request_digest", sa.LargeBinary(32)),
    sa.UniqueConstraint("request_caller", "request_id"),
    sa.Index(None, "create_time", "key_id"),
    sa.Index(None, "workspace_id", "create_time", "key_id"),
    sa.Index(None, "user_id", "create_time"),
)

invalidations = sa.Table(
    "invalidations",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    # Empty where it is a user that is no longer what it was.
    sa.Column("key_id", sa.String(12), nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("user_id", sa.String(36)),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("user_id", sa.String(36), primary_key=True),
    sa.Column("email", sa.String(254), nullable=False, unique=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("tier", sa.String(64)),
    sa.Column("default_workspace_id", sa.String(36)),
    sa.Column("password_hash", sa.String(256), nullable=False),
    sa.Column("blocked", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    # As of workspaces; the address is free again.
    sa.Column("delete_time", sa.BigInteger),
)

memberships = sa.Table(
    "memberships",
    metadata,
    sa.Column("workspace_id", sa.String(36), sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    sa.Column("user_id", sa.String(36), sa.ForeignKey("users.user_id"), primary_key=True, index=True),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

invites = sa.Table(
    "invites",
    metadata,
    sa.Column("invite_id", sa.String(36), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("email", sa.String(254)),
    sa.Column("workspace_id", sa.String(36), sa.ForeignKey("workspaces.workspace_id"), nullable=False),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("expire_time", sa.BigInteger, nullable=False),
    sa.Column("use_time", sa.BigInteger),
    sa.Column("revoke_time", sa.BigInteger),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sa.String(36), primary_key=True),
    sa.Column("user_id", sa.String(36), sa.ForeignKey("users.user_id"), nullable=False, index=True),
    sa.Column("client_address", sa.String(45), nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("expire_time", sa.BigInteger, nullable=False),
    sa.Column("revoke_time", sa.BigInteger),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.session_id"), primary_key=True),
    # 1 for the token of the log-in; each one's successor has the next number.
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("spend_time", sa.BigInteger),
)

signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.String(36), primary_key=True),
    sa.Column("public_key", sa.LargeBinary(32), nullable=False),
    # Encrypted under a pepper.
    sa.Column("private_key", sa.LargeBinary, nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

earlier_secrets = sa.Table(
    "earlier_secrets",
    metadata,
    sa.Column("key_id", sa.String(12), sa.ForeignKey("api_keys.key_id"), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    # Counts up within a key: of two rotations at once both may have the same time, or the later one the earlier.
    sa.Column("rotation", sa.Integer, nullable=False),
    # When another secret took its place, by the request below.
    sa.Column("rotate_time", sa.BigInteger, nullable=False),
    sa.Column("expire_time", sa.BigInteger, nullable=False),
    sa.Column("request_caller", sa.String(64)),
    sa.Column("request_id", sa.String(36)),
    sa.Column("request_digest", sa.LargeBinary(32)),
    sa.UniqueConstraint("request_caller", "request_id"),
)

audit_entries = sa.Table(
    "audit_entries",
    metadata,
    # Triggers refuse to change or delete a row.
    sa.Column("entry_id", sa.String(36), primary_key=True),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("client_address", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("object_id", sa.String(64), nullable=False),
    sa.Column("workspace_id", sa.String(36), nullable=False),
    sa.Column("before", sa.JSON(none_as_null=True)),
    sa.Column("after", sa.JSON(none_as_null=True)),
    sa.Index(None, "time", "entry_id"),
    sa.Index(None, "workspace_id", "time", "entry_id"),
    sa.Index(None, "object_id", "time", "entry_id"),
)


def micros(seconds: float) -> int:
    """A time as the tables have it."""
    return round(seconds * MICROS)
