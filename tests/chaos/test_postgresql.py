"""PostgreSQL that is held up by a frozen client, is frozen itself, or is not there: how long who waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from jobs.service import Service
from jobs.store import AttemptState, Cause, JobState, Store, StoreUnavailable
from jobs.store.opening import BUSY_SECONDS, IDLE_SECONDS

from ..jobs.postgresql import PostgresqlServer, limited
from .forking import Nursery
from .ground import Ground, Redis, until
from .oracle import one_attempt
from .test_races import begin, opened


@pytest.fixture
def service(postgresql: str, redis: Redis) -> Iterator[Service]:
    with opened(postgresql, redis.url) as service:
        yield service


def shown(store: Store, name: str, *, writing: bool) -> str:
    with store.writing() if writing else store.reading() as connection:
        return str(connection.execute(text(f"SHOW {name}")).scalar_one())


def test_no_wait_is_for_ever_unless_the_user_says_so(postgresql: str):
    """Whoever only reads may take long over what it has read: it holds nothing that others need."""
    waiting, idle = "lock_timeout", "idle_in_transaction_session_timeout"
    store = Store(postgresql)
    assert [shown(store, waiting, writing=writing) for writing in (True, False)] == [f"{BUSY_SECONDS}s"] * 2
    assert [shown(store, idle, writing=writing) for writing in (True, False, True)] == [
        f"{IDLE_SECONDS}s",
        "0",
        f"{IDLE_SECONDS}s",
    ]
    store.close()
    own = Store(limited(postgresql, lock_timeout="3s", idle_in_transaction_session_timeout="0"))
    for writing in (True, False):
        assert (shown(own, waiting, writing=writing), shown(own, idle, writing=writing)) == ("3s", "0")
    own.close()


def test_a_server_that_is_out_of_reach_is_given_up_in_time(postgresql: str):
    store = Store(f"{postgresql}&keepalives_idle=7")
    with store.reading() as connection:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        said = {option.keyword.decode(): option.val for option in raw.pgconn.info}
    store.close()
    names = ("connect_timeout", "keepalives_idle", "keepalives_interval", "tcp_user_timeout")
    assert [said[name] for name in names] == [b"10", b"7", b"2", b"10000"]  # the URL's own counts


def test_who_is_frozen_in_a_transaction_holds_up_others_only_for_a_while(service: Service, postgresql: str):
    """It has recorded a checkpoint, and is about to commit it."""
    begin(service, "job")
    frozen = Store(postgresql)
    took = 0.0
    with pytest.raises(StoreUnavailable, match="does not answer"), frozen.writing() as connection:
        frozen._guard(connection, "job", 1)
        connection.execute(text("UPDATE jobs SET priority = 5"))
        began = time.monotonic()
        service.finish("job", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
        took = time.monotonic() - began
    assert IDLE_SECONDS - 0.5 < took < BUSY_SECONDS
    job = service.store.job("job")
    assert (job.state, job.priority) == (JobState.QUEUED, 0)
    frozen.close()


def test_who_works_in_a_transaction_is_waited_for_and_given_up(service: Service, postgresql: str):
    """A row that somebody with other limits holds: the verb is refused for now, and tried again later."""
    begin(service, "job")
    store = Store(limited(postgresql, lock_timeout="300ms"))
    with psycopg.connect(postgresql.replace("+psycopg", "")) as other:
        other.execute("UPDATE jobs SET priority = 5")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.finish_attempt("job", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
        assert time.monotonic() - began < 5
        assert store.job("job").state is JobState.RUNNING  # readers do not wait
    store.finish_attempt("job", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
    assert store.job("job").state is JobState.QUEUED
    store.close()


def test_who_opens_a_database_that_is_migrated_waits_longer_than_a_writer(
    postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jobs.store.opening.BUSY_SECONDS", 1)
    url = postgresql_server.empty()
    with psycopg.connect(url.replace("+psycopg", "")) as other:
        other.execute("SELECT pg_advisory_xact_lock(7350071)")
        opening = threading.Thread(target=lambda: Store(url).close())
        opening.start()
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: other.execute(waits).fetchone(), "the other one to wait")
        opening.join(2)
        assert opening.is_alive()
    opening.join(30)
    assert not opening.is_alive()
    store = Store(url)
    assert store.jobs() == []
    store.close()


def test_a_server_that_is_frozen_is_waited_for_by_whoever_is_connected(
    service: Service, postgresql: str, postgresql_server: PostgresqlServer
):
    """Who is not yet gives up in time, with what a command shows as exit code 4."""
    begin(service, "job")
    answers: list[object] = []
    with postgresql_server.frozen():
        calls: list[Callable[[], object]] = [
            lambda: service.store.see_attempt("job", 1),
            lambda: service.store.job("job").state,
        ]
        threads = [threading.Thread(target=lambda call=call: answers.append(call())) for call in calls]
        for thread in threads:
            thread.start()
        with pytest.raises(StoreUnavailable, match="timeout"):
            Store(f"{postgresql}&connect_timeout=2")
        assert answers == []
    for thread in threads:
        thread.join(30)
    assert sorted(answers, key=str) == [None, JobState.RUNNING]


def test_a_server_that_is_gone_is_told_at_once_and_loses_nothing(
    service: Service, postgresql: str, postgresql_server: PostgresqlServer
):
    begin(service, "job")
    postgresql_server.stop()
    try:
        for call in (
            partial(service.store.see_attempt, "job", 1),
            service.store.jobs,
            partial(Store, postgresql),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="does not answer"):
                call()
            assert time.monotonic() - began < 5
    finally:
        postgresql_server.start()
    service.store.see_attempt("job", 1)
    assert [(job.id, job.state) for job in service.store.jobs()] == [("job", JobState.RUNNING)]


@pytest.mark.parametrize("event", ["frozen", "stopped"])
def test_a_job_outlasts_its_server(
    tmp_path: Path,
    nursery: Nursery,
    redis: Redis,
    postgresql: str,
    postgresql_server: PostgresqlServer,
    event: str,
):
    """A dispatcher and an attempt wait for a server that is frozen, or gone, for longer than a lease."""
    with one_attempt(Ground(tmp_path / "home", nursery, redis.url, database_url=postgresql)):
        if event == "frozen":
            with postgresql_server.frozen():
                time.sleep(2)
        else:
            postgresql_server.stop()
            time.sleep(2)
            postgresql_server.start()
