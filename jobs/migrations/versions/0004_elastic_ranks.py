"""How many ranks each attempt has, how many a job may have at most, and why one makes way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("max_ranks", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("yield_cause", sa.String(20), nullable=True))
    op.add_column("attempts", sa.Column("ranks", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE attempts SET ranks = (SELECT jobs.ranks FROM jobs WHERE jobs.id = attempts.job)")


def downgrade() -> None:
    for table, names in {"attempts": ("ranks",), "jobs": ("yield_cause", "max_ranks")}.items():
        for name in names:
            op.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
