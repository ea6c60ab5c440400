"""The database itself: moments, pragmas, transactions, errors."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from jobs.config import JobConfig
from jobs.store import JobState, Store, StoreError
from jobs.store.tables import Base

from ..conftest import DATABASES as DATABASES
from .conftest import VALUES, AddJob


def test_moments_are_utc_whatever_the_clock_says(tmp_path: Path, config: JobConfig):
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5)))
    store = Store(f"sqlite:///{tmp_path / 'x.db'}", clock=lambda: moment)
    job, _ = store.add_job("first", config={}, **VALUES)
    assert job.created == moment
    assert job.created.tzinfo is UTC
    store.close()


def test_the_migrated_tables_are_those_of_the_code(store: Store):
    with store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.sqlite_only
def test_the_promised_pragmas_hold(store: Store):
    with store.reading() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        assert pragma("journal_mode") == "wal"
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") == 10_000
        assert pragma("synchronous") == 2


def test_readers_do_not_wait_for_a_writer(store: Store, add_job: AddJob):
    add_job("first")
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE jobs SET priority = 5")
        began = time.monotonic()
        assert store.job("first").priority == 0
        assert time.monotonic() - began < 1
    assert store.job("first").priority == 5


def test_writers_wait_for_one_another(store: Store, database_url: str, add_job: AddJob):
    other = Store(database_url)
    add_job("first")
    began, finished = threading.Event(), threading.Event()

    def cancel() -> None:
        began.set()
        other.request_cancel("first", "ada")
        finished.set()

    thread = threading.Thread(target=cancel)
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE jobs SET priority = 5")
        thread.start()
        assert began.wait(5)
        assert not finished.wait(0.2)
    thread.join()
    assert store.job("first").state is JobState.CANCELLED
    other.close()


@pytest.mark.sqlite_only
def test_who_has_waited_long_comes_before_who_comes_now(store: Store):
    ended, passed = 0, []

    def write() -> None:
        nonlocal ended
        for _ in range(60):
            before = ended
            with store.writing():
                passed.append(ended - before)  # by how many, since it asked
                time.sleep(0.005)
                ended += 1
            time.sleep(0.005)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # In order, 8 at most; in an order of luck as SQLite has it, hundreds.
    assert max(passed) < 100


def test_a_reader_sees_one_moment(store: Store, add_job: AddJob):
    add_job("first")
    with store.reading() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one()
        add_job("second")
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one() == before == 1


def test_a_block_that_raises_writes_nothing(store: Store, add_job: AddJob):
    add_job("first")
    with pytest.raises(KeyError), store.writing() as connection:
        connection.exec_driver_sql("UPDATE jobs SET priority = 5")
        raise KeyError("oh")
    assert store.job("first").priority == 0


def test_a_driver_error_is_translated(store: Store):
    with pytest.raises(StoreError, match=r"does not answer|refuses"), store.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM nothing")


@pytest.mark.parametrize(
    "modules", ["settings, jobs.store, jobs.queue, jobs.service", "dispatcher, jobs.attempt"]
)
def test_neither_torch_nor_ray_is_imported(modules: str):
    code = f"import sys, jobs.{modules}; print(sorted({{'torch', 'ray', 'alembic'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
