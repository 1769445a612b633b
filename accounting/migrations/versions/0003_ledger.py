"""The ledger, with an entry for all usage that counts already."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_IMMUTABLE = ("ledger_entries", "ledger_postings")
# Settled, with a cost, and no later attempt.
_COUNTS = """
    e.settled_time IS NOT NULL AND e.workspace_id <> ''
    AND NOT EXISTS (SELECT 1 FROM usage_events h WHERE h.event_id = e.event_id AND h.attempt > e.attempt)
"""
_ENTRY = """
    INSERT INTO ledger_entries (entry_id, kind, workspace_id, event_id, attempt, evidence, amount, description, request_id,
        caller, booked_time, create_time)
"""


def upgrade() -> None:
    op.create_table(
        "ledger_entries",
        sa.Column("entry_id", sa.String(64)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("workspace_id", sa.String(64), nullable=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("evidence", sa.SmallInteger, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(36), nullable=False),
        sa.Column("caller", sa.String(128), nullable=False),
        sa.Column("booked_time", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name="pk_ledger_entries"),
    )
    op.create_index("ix_ledger_entries_event_id", "ledger_entries", ["event_id"])
    op.create_index(
        "ix_ledger_entries_workspace_id_booked_time_entry_id",
        "ledger_entries",
        ["workspace_id", "booked_time", "entry_id"],
    )
    op.create_table(
        "ledger_postings",
        sa.Column("entry_id", sa.String(64)),
        sa.Column("account", sa.String(80)),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("entry_id", "account", name="pk_ledger_postings"),
    )
    op.create_table(
        "ledger_accounts",
        sa.Column("workspace_id", sa.String(64)),
        sa.Column("credited", sa.BigInteger, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("overdraft", sa.BigInteger),
        sa.PrimaryKeyConstraint("workspace_id", name="pk_ledger_accounts"),
    )
    _post_what_counts()
    _forbid_changes()


def _post_what_counts() -> None:
    op.execute(f"""
        {_ENTRY}
        SELECT c.event_id || '.' || c.attempt || '.' || c.evidence, 'correction', e.workspace_id, c.event_id, c.attempt,
            c.evidence, -c.cost, '', '', '', c.reserve_time, c.create_time
        FROM usage_corrections c JOIN usage_events e ON e.event_id = c.event_id AND e.attempt = c.attempt
        WHERE c.cost <> 0 AND {_COUNTS}
    """)  # noqa: S608 -- made of constants
    op.execute(f"""
        {_ENTRY}
        SELECT f.event_id || '.' || f.attempt || '.' || f.rank, 'usage', f.workspace_id, f.event_id, f.attempt, f.rank,
            -f.cost, '', '', '', f.reserve_time, f.settled_time
        FROM (
            SELECT e.event_id, e.attempt, e.workspace_id, e.reserve_time, e.settled_time,
                e.cost - COALESCE((SELECT CAST(SUM(c.cost) AS BIGINT) FROM usage_corrections c
                    WHERE c.event_id = e.event_id AND c.attempt = e.attempt), 0) AS cost,
                COALESCE((SELECT MIN(c.previous_evidence) FROM usage_corrections c
                    WHERE c.event_id = e.event_id AND c.attempt = e.attempt), e.evidence) AS rank
            FROM usage_events e WHERE {_COUNTS}
        ) f WHERE f.cost <> 0
    """)  # noqa: S608 -- made of constants
    op.execute("INSERT INTO ledger_postings SELECT entry_id, 'workspace:' || workspace_id, amount FROM ledger_entries")
    op.execute("INSERT INTO ledger_postings SELECT entry_id, 'revenue', -amount FROM ledger_entries")
    op.execute("""
        INSERT INTO ledger_accounts
        SELECT workspace_id, 0, CAST(-SUM(amount) AS BIGINT), NULL FROM ledger_entries GROUP BY workspace_id
    """)


def _forbid_changes() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("""
            CREATE FUNCTION ledger_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'the ledger is immutable: % of % is forbidden', TG_OP, TG_TABLE_NAME; END $$
        """)
        for table in _IMMUTABLE:
            op.execute(
                f"CREATE TRIGGER {table}_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_immutable()"
            )
        return
    for table in _IMMUTABLE:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, 'the ledger is immutable: {change} of {table} is forbidden'); END"
            )


def downgrade() -> None:
    for table in ("ledger_accounts", "ledger_postings", "ledger_entries"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_is_immutable()")
