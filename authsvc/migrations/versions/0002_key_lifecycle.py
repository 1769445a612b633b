"""What changes in a key's life, its earlier secrets, and the audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIMES = ("block_time", "rotate_time", "earlier_secrets_expire_time", "last_used_time")
_REFUSAL = "entries of the audit are never changed or deleted"


def upgrade() -> None:
    for name in _TIMES:
        op.add_column("api_keys", sa.Column(name, sa.BigInteger))
    op.add_column("api_keys", sa.Column("metadata", sa.JSON, nullable=False, server_default=sa.text("'{}'")))
    op.create_table(
        "earlier_secrets",
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        sa.Column("rotation", sa.Integer, nullable=False),
        sa.Column("rotate_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("request_caller", sa.String(64)),
        sa.Column("request_id", sa.String(36)),
        sa.Column("request_digest", sa.LargeBinary(32)),
        sa.PrimaryKeyConstraint("key_id", "digest", name="pk_earlier_secrets"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.key_id"], name="fk_earlier_secrets_key_id"),
        sa.UniqueConstraint("request_caller", "request_id", name="uq_earlier_secrets_request_caller_request_id"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("entry_id", sa.String(36), nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("client_address", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("object_id", sa.String(64), nullable=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("before", sa.JSON(none_as_null=True)),
        sa.Column("after", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("entry_id", name="pk_audit_entries"),
    )
    for leading in ((), ("workspace_id",), ("object_id",)):
        columns = [*leading, "time", "entry_id"]
        op.create_index("_".join(["ix_audit_entries", *columns]), "audit_entries", columns)
    _refuse_changes(op.get_bind().dialect.name)


def downgrade() -> None:
    op.drop_table("audit_entries")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_entries_refuse_change()")
    # Who kept an old secret for a grace must not keep it for good: the current one is the only one again.
    op.drop_table("earlier_secrets")
    # The schema before has no blocks: a key that must not be used stays so by being revoked.
    op.execute("UPDATE api_keys SET revoke_time = block_time WHERE revoke_time IS NULL AND block_time IS NOT NULL")
    op.drop_column("api_keys", "metadata")
    for name in _TIMES:
        op.drop_column("api_keys", name)


def _refuse_changes(dialect: str) -> None:
    # A grant would not do: authsvc's role owns its tables, since it migrates them, and grants do not bind an owner.
    if dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_entries_refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries"
            " FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_refuse_change()"
        )
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_entries_no_{verb.lower()} BEFORE {verb} ON audit_entries"
            f" BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )
