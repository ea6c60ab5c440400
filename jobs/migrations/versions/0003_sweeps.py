"""Sweeps: jobs that make children, and what each child has otherwise."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("trials", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("parent", sa.String(40), nullable=True))
    op.add_column("jobs", sa.Column("stopped", sa.Text(), nullable=True))
    op.create_index("jobs_by_parent", "jobs", ["parent"])
    few = sa.text("trials IS NOT NULL")
    op.create_index("jobs_sweeps", "jobs", ["state"], sqlite_where=few, postgresql_where=few)
    op.create_table(
        "trials",
        sa.Column("sweep", sa.String(40), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("job", sa.String(40), sa.ForeignKey("jobs.id"), nullable=False, unique=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("spared", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )


def downgrade() -> None:
    op.drop_table("trials")
    op.drop_index("jobs_sweeps", "jobs")
    op.drop_index("jobs_by_parent", "jobs")
    # Not in batch mode: that drops the table, which other tables refer to.
    for name in ("stopped", "parent", "trials"):
        op.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
