from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from jobs.migrations import HEAD, configuration, upgrade
from jobs.store import EventKind, Job, Store, StoreError, StoreUnavailable
from jobs.store.tables import Base

from .conftest import DATABASES as DATABASES


def test_the_newest_migration_is_the_one_that_opening_expects():
    assert ScriptDirectory.from_config(configuration()).get_heads() == [HEAD]


def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path):
    path = tmp_path / "x.db"
    Store(f"sqlite:///{path}").close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []

        # What Alembic does not compare: the constraints' own text.
        migrated = dict(
            connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'index'")).all()
        )
        assert "WHERE state IN ('starting', 'running')" in str(migrated["attempts_one_active"])
    declared = create_engine(f"sqlite:///{tmp_path / 'declared.db'}")
    Base.metadata.create_all(declared)
    ours, theirs = inspect(engine), inspect(declared)
    for table in Base.metadata.tables:
        assert _sorted(ours.get_foreign_keys(table)) == _sorted(theirs.get_foreign_keys(table)), table
        assert _sorted(ours.get_unique_constraints(table)) == _sorted(theirs.get_unique_constraints(table)), (
            table
        )
        assert ours.get_check_constraints(table) == theirs.get_check_constraints(table), table
        assert ours.get_pk_constraint(table) == theirs.get_pk_constraint(table), table


def _sorted(constraints: object) -> list[str]:
    return sorted(str(constraint) for constraint in constraints)  # type: ignore[attr-defined]


def test_an_open_database_is_not_migrated_again(tmp_path: Path):
    """Alembic takes a quarter of a second to import: only a database that is behind pays for it."""
    Store(f"sqlite:///{tmp_path / 'x.db'}").close()
    code = (
        "import sys; from jobs.store import Store; "
        f"print(Store('sqlite:///{tmp_path / 'x.db'}').jobs(), 'alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]


def test_two_that_open_a_new_database_at_once_make_it_once(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'folder' / 'x.db'}"
    barrier = threading.Barrier(8)

    def open_it(_: int) -> list[Job]:
        barrier.wait()
        store = Store(url)
        found = store.jobs()
        store.close()
        return found

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_it, range(8))) == [[]] * 8


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    Store(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="upgrade textvae-jobs"):
        Store(url)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "cannot be used"),
        ("oracle9://x", "cannot be used"),
        ("sqlite://", "must be a file"),
    ],
)
def test_a_url_that_cannot_be_used_is_named(url: str, words: str):
    with pytest.raises(StoreError, match=words):
        Store(url)


def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(StoreError, match="not a database"):
        Store(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        Store(f"sqlite:///{tmp_path / 'file' / 'x.db'}")


def old_database(url: str) -> None:
    """A database of the first schema, with jobs in every state."""
    engine = create_engine(url)
    at = datetime(2030, 1, 1, tzinfo=UTC)
    moment = at.replace(tzinfo=None) if url.startswith("sqlite") else at
    jobs = [  # id, state, attempt, attempt_limit
        ("queued", "queued", 1, 3),
        ("running", "running", 2, 3),
        ("failed", "failed", 3, 3),
        ("again", "queued", 3, 6),
    ]
    with engine.begin() as connection:
        upgrade(connection, "0001")
        for id, state, attempt, limit in jobs:
            connection.execute(
                text(
                    "INSERT INTO jobs (id, name, owner, priority, config, ranks, cpus, gpus, state, attempt, "
                    "attempt_limit, created) VALUES (:id, 'm', 'ada', 0, :config, 1, 2, 1, :state, :attempt, "
                    ":limit, :at)"
                ),
                {
                    "id": id,
                    "config": '{"max_attempts": 3}',
                    "state": state,
                    "attempt": attempt,
                    "limit": limit,
                    "at": moment,
                },
            )
            connection.execute(
                text(
                    "INSERT INTO attempts (job, number, state, opened, started, finished, seen) VALUES "
                    "(:id, 1, 'failed', :at, :at, :end, :at)"
                ),
                {"id": id, "at": moment, "end": moment + timedelta(seconds=90)},
            )
            for kind in ("submitted", "opened", "checkpoint"):
                connection.execute(
                    text(
                        'INSERT INTO events (at, job, kind, "by", detail) '
                        "VALUES (:at, :id, :kind, :by, :detail)"
                    ),
                    {"at": moment, "id": id, "kind": kind, "by": "ada", "detail": "{}"},
                )
    engine.dispose()


def test_what_the_first_schema_held_is_carried_over(database: str, tmp_path: Path, request: Any):
    if database == "sqlite":
        url = f"sqlite:///{tmp_path / 'old.db'}"
    else:
        url = request.getfixturevalue("_postgresql").empty()
    old_database(url)
    store = Store(url)
    left = {job.id: (job.retry.max_attempts, job.errors_used) for job in store.jobs()}
    # Each has as many attempts left as it had: 2, 2 (its own among them), none, 3.
    assert left == {"queued": (3, 1), "running": (3, 1), "failed": (3, 3), "again": (3, 0)}
    (attempt,) = store.attempts("queued")
    assert (attempt.cpus, attempt.gpus, attempt.seconds) == (2, 1, 90)
    assert store.usage()["ada"].cpu_seconds == 4 * 180
    told = [(event.kind, event.actor) for event in store.events("queued")]
    assert told == [
        (EventKind.SUBMITTED, "ada"),
        (EventKind.CLAIMED, "ada"),
        (EventKind.CHECKPOINTED, "ada"),
    ]
    assert store.draining() is None
    assert store.open_attempt("queued", 2, by="test") is not None
    store.close()


def test_a_migration_can_be_taken_back(database: str, tmp_path: Path, request: Any):
    if database == "sqlite":
        url = f"sqlite:///{tmp_path / 'old.db'}"
    else:
        url = request.getfixturevalue("_postgresql").empty()
    old_database(url)
    Store(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        command.downgrade(configuration(connection), "0001")
    with engine.begin() as connection:
        assert "dependencies" not in inspect(connection).get_table_names()
        assert connection.execute(text('SELECT "by" FROM events')).scalars().all() == ["ada"] * 12
        connection.execute(text("DELETE FROM events"))
    engine.dispose()
    store = Store(url)
    assert store.count() == 4
    store.close()
