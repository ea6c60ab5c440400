"""What a scheduler needs, retries by cause, dependencies, a drain; events that the database itself keeps."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from jobs.store.tables import Utc

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KINDS = {"opened": "claimed", "checkpoint": "checkpointed"}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("not_before", Utc(), nullable=True))
    op.add_column("jobs", sa.Column("held", Utc(), nullable=True))
    op.add_column("jobs", sa.Column("yield_requested", Utc(), nullable=True))
    op.add_column("jobs", sa.Column("time_limit", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("retry", sa.JSON(), nullable=False, server_default=sa.text("'{}'")))
    for name in ("errors_used", "infrastructure_used"):
        op.add_column("jobs", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    for name in ("cpus", "gpus"):
        op.add_column("attempts", sa.Column(name, sa.Float(), nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("seconds", sa.Float(), nullable=True))
    op.create_index("attempts_by_end", "attempts", ["finished"])
    op.create_table(
        "dependencies",
        sa.Column("job", sa.String(40), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("on_job", sa.String(40), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("any", sa.Boolean(), nullable=False),
    )
    op.create_index("dependencies_by_on_job", "dependencies", ["on_job"])
    op.create_table(
        "switches",
        sa.Column("name", sa.String(20), primary_key=True),
        sa.Column("since", Utc(), nullable=True),
        sa.Column("by", sa.String(200), nullable=True),
    )
    # The row is always there: it is the lock between a drain and whoever opens an attempt.
    op.execute("INSERT INTO switches (name) VALUES ('drain')")
    op.create_table(
        "log_chunks",
        sa.Column("job", sa.String(40), primary_key=True),
        sa.Column("attempt", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("start", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("text", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"]),
    )
    _move_limits()
    _measure_attempts()
    # Not in batch mode: that drops the table, which other tables refer to.
    op.execute("ALTER TABLE jobs DROP COLUMN attempt_limit")
    op.execute('ALTER TABLE events RENAME COLUMN "by" TO actor')
    for old, new in _KINDS.items():
        op.execute(f"UPDATE events SET kind = '{new}' WHERE kind = '{old}'")
    _protect_events()


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER events_keep_update")
        op.execute("DROP TRIGGER events_keep_delete")
    else:
        op.execute("DROP TRIGGER events_keep ON events")
        op.execute("DROP FUNCTION events_keep()")
    for old, new in _KINDS.items():
        op.execute(f"UPDATE events SET kind = '{old}' WHERE kind = '{new}'")
    op.execute('ALTER TABLE events RENAME COLUMN actor TO "by"')
    op.add_column("jobs", sa.Column("attempt_limit", sa.Integer(), nullable=False, server_default="3"))
    for table in ("log_chunks", "switches", "dependencies"):
        op.drop_table(table)
    op.drop_index("attempts_by_end", "attempts")
    for table, names in {
        "attempts": ("seconds", "gpus", "cpus"),
        "jobs": (
            "infrastructure_used",
            "errors_used",
            "retry",
            "time_limit",
            "yield_requested",
            "held",
            "not_before",
        ),
    }.items():
        for name in names:
            op.execute(f"ALTER TABLE {table} DROP COLUMN {name}")


def _move_limits() -> None:
    """`attempt_limit` named the last attempt; now the errors that are used up are counted instead."""
    bind = op.get_bind()
    jobs = sa.table(
        "jobs",
        sa.column("sequence", sa.Integer()),
        sa.column("state", sa.String()),
        sa.column("attempt", sa.Integer()),
        sa.column("attempt_limit", sa.Integer()),
        sa.column("config", sa.JSON()),
        sa.column("retry", sa.JSON()),
        sa.column("errors_used", sa.Integer()),
    )
    changes: list[dict[str, Any]] = []
    for row in bind.execute(
        sa.select(jobs.c.sequence, jobs.c.state, jobs.c.attempt, jobs.c.attempt_limit, jobs.c.config)
    ):
        config = json.loads(row.config) if isinstance(row.config, str) else row.config
        most = int(config.get("max_attempts", 3))
        left = row.attempt_limit - row.attempt + (row.state == "running")
        changes.append(
            {"at": row.sequence, "policy": {"max_attempts": most}, "used": min(most, max(0, most - left))}
        )
    if changes:
        bind.execute(
            sa.update(jobs)
            .where(jobs.c.sequence == sa.bindparam("at"))
            .values(
                retry=sa.bindparam("policy", type_=sa.JSON()),
                errors_used=sa.bindparam("used", type_=sa.Integer()),
            ),
            changes,
        )


def _measure_attempts() -> None:
    """Give earlier attempts what they held, and for how long."""
    bind = op.get_bind()
    attempts = sa.table(
        "attempts",
        sa.column("job", sa.String()),
        sa.column("number", sa.Integer()),
        sa.column("started", Utc()),
        sa.column("finished", Utc()),
        sa.column("seconds", sa.Float()),
    )
    for name in ("cpus", "gpus"):
        op.execute(
            f"UPDATE attempts SET {name} = (SELECT jobs.{name} FROM jobs WHERE jobs.id = attempts.job)"
        )
    changes: list[dict[str, Any]] = [
        {
            "of": row.job,
            "nth": row.number,
            "took": (row.finished - row.started).total_seconds() if row.started else 0.0,
        }
        for row in bind.execute(
            sa.select(attempts.c.job, attempts.c.number, attempts.c.started, attempts.c.finished).where(
                attempts.c.finished.is_not(None)
            )
        )
    ]
    if changes:
        bind.execute(
            sa.update(attempts)
            .where(attempts.c.job == sa.bindparam("of"), attempts.c.number == sa.bindparam("nth"))
            .values(seconds=sa.bindparam("took", type_=sa.Float())),
            changes,
        )


def _protect_events() -> None:
    """From here on no one, whatever code runs, changes or removes a line of the history."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER events_keep_{verb} BEFORE {verb.upper()} ON events "
                "BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION events_keep() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'events are only ever added'; END $$"
    )
    op.execute(
        "CREATE TRIGGER events_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION events_keep()"
    )
