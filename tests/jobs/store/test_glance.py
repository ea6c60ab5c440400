"""What a glance sees is what the store tells; where it cannot tell, it leaves it to the store."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.store import AttemptState, Cause, Job, JobState, Retry, Store, glance

from .conftest import AddJob, child


@pytest.fixture
def many(store: Store, add_job: AddJob) -> Store:
    """Jobs in every state, each column of theirs set in one of them at least."""
    add_job("waits", owner="ada", not_before=datetime(2030, 1, 1, 12, 30, 15, 250, tzinfo=UTC))
    add_job("held", owner="bob", held=True, priority=5, time_limit=90.5, gpus=0.5, max_ranks=4)
    for id in ("yields", "stops", "fails", "done"):
        add_job(id, owner="bob", retry=Retry(2, ("timeout",), 1.5, 3))
        store.open_attempt(id, 1, "dispatcher")
        store.start_attempt(id, 1)
    store.request_yield("yields", "ada", "room", cause=Cause.RESIZED)
    store.request_cancel("stops", "ada")
    store.finish_attempt(
        "fails", 1, AttemptState.FAILED, by="attempt", cause=Cause.BAD_CONFIG, error="böse\nline"
    )
    store.finish_attempt("done", 1, AttemptState.SUCCEEDED, by="attempt")
    add_job("gone", owner="ada")
    store.request_cancel("gone", "ada")
    add_job("sweep", owner="bob", cpus=0, trials=2)
    assert len(store.add_trials("sweep", [child(1), child(2)], by="dispatcher")) == 2
    assert store.stop_early("sweep.1", "behind its siblings", by="dispatcher") is not None
    return store


@pytest.mark.parametrize("owner", [None, "bob", "nobody"])
@pytest.mark.parametrize(
    "states", [None, [JobState.QUEUED], [JobState.RUNNING, JobState.FAILED, JobState.CANCELLED]]
)
def test_a_glance_sees_what_the_store_tells(
    many: Store, database_url: str, states: list[JobState] | None, owner: str | None
) -> None:
    for limit in (1, 3, 50):
        for children in (True, False):
            assert glance.newest(
                database_url, states, owner=owner, limit=limit, children=children
            ) == many.jobs(states, owner=owner, limit=limit, children=children)


def test_every_column_is_compared(many: Store, database_url: str) -> None:
    seen = glance.newest(database_url, limit=50)
    assert seen is not None and len(seen) == 10
    for field in fields(Job):
        assert any(getattr(job, field.name) not in (None, 0, "") for job in seen) or field.name in (
            "errors_used",
            "infrastructure_used",
        )


def test_what_is_recorded_meanwhile_is_seen_without_closing_the_store(
    store: Store, add_job: AddJob, database_url: str
) -> None:
    assert glance.newest(database_url, limit=50) == []
    add_job("first")
    assert glance.newest(database_url, limit=50) == [store.job("first")]


def test_a_file_that_is_not_there_is_left_to_the_store_and_not_made(tmp_path: Path) -> None:
    assert glance.newest(f"sqlite:///{tmp_path}/none.db", limit=1) is None
    assert list(tmp_path.iterdir()) == []


def test_another_schema_is_left_to_the_store(store: Store, database_url: str) -> None:
    store.close()
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    assert glance.newest(database_url, limit=1) is None


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://ada@127.0.0.1:9/x", "sqlite:///", "sqlite:///x.db?mode=ro", "sqlite:////tmp"],
)
def test_other_databases_are_left_to_the_store(url: str) -> None:
    assert glance.newest(url, limit=1) is None


def test_a_path_with_odd_letters_is_found(tmp_path: Path) -> None:
    odd = Store(f"sqlite:///{tmp_path}/a b#ü.db")
    odd.close()
    assert glance.newest(f"sqlite:///{tmp_path}/a b#ü.db", limit=1) == []
