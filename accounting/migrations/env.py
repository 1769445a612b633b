"""What Alembic runs: the migrations, over the connection and inside the transaction it was given."""

from __future__ import annotations

from alembic import context

from accounting.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=context.config.attributes["version_table"],
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
