"""What Alembic runs: our tables, over the connection that `jobs.migrations.upgrade` was handed."""

from __future__ import annotations

from alembic import context

from jobs.store.tables import Base

connection = context.config.attributes["connection"]
if connection is None:
    raise RuntimeError("migrations run through jobs.migrations.upgrade, which opens the connection")
# Batch mode rewrites a table where SQLite cannot alter it in place.
context.configure(
    connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True
)
context.run_migrations()
