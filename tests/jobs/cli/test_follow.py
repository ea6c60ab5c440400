"""watch, wait."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import Result

from jobs.cli import jobs, live
from jobs.cli import service as opened
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, Job, NewReport, Store

Run = Callable[..., Result]


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Do something on another thread while the block runs; what it raised is raised at the end."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread of the test
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_watch_of_an_ended_job_tells_its_story_and_exits_with_its_code(run: Run, trained: Job) -> None:
    result = run("watch", "abc")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "attempt 1 starts its ranks"
    assert "attempt 1 lost: the node went away" in lines
    assert "queued for another attempt, from its newest checkpoint" in lines
    assert "made version 1 of model reviews" in lines
    epochs = [line.split() for line in lines if line.split()[0].isdigit()]
    assert [epoch[0] for epoch in epochs] == ["1", "2", "3"]
    assert epochs[1][4] == "90.0%"
    assert lines[-1] == "job abc12345 succeeded"


@pytest.mark.parametrize(
    ("state", "cause", "code"),
    [(AttemptState.FAILED, Cause.BAD_CONFIG, 1), (AttemptState.CANCELLED, Cause.CANCELLED, 5)],
)
def test_the_exit_code_of_watch_and_wait_is_the_jobs(
    run: Run,
    store: Store,
    service: Service,
    add_job: Callable[..., Job],
    state: AttemptState,
    cause: Cause,
    code: int,
) -> None:
    add_job("job-a")
    store.open_attempt("job-a", 1, "dispatcher")
    service.finish("job-a", 1, state, by="attempt", cause=cause, error="why")
    assert run("watch", "job-a").exit_code == code
    assert run("wait", "job-a").exit_code == code


def test_watch_shows_what_happens_while_it_looks(
    run: Run, store: Store, service: Service, settings: Settings, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    queue = Queue(settings.redis_url)

    def happen() -> None:
        store.open_attempt("job-a", 1, "dispatcher")
        store.start_attempt("job-a", 1)
        queue.publish_progress("job-a", {"epoch": 1, "epochs": 1, "step": 1, "steps": 2, "loss": 3.0})
        store.record_report("job-a", 1, NewReport(1, 2, 1.0, 100.0, {"loss": 2.0}, {"loss": 2.5}))
        service.finish("job-a", 1, AttemptState.SUCCEEDED, by="attempt")

    with meanwhile(happen):
        result = run("watch", "job-a")
    queue.close()
    assert result.exit_code == 0
    assert "attempt 1 trains" in result.stdout
    assert result.stdout.splitlines()[-1] == "job job-a succeeded"


def test_watch_goes_on_without_redis(offline: Run, store: Store, add_job: Callable[..., Job]) -> None:
    add_job("job-a")

    def happen() -> None:
        store.open_attempt("job-a", 1, "dispatcher")
        store.finish_attempt("job-a", 1, AttemptState.SUCCEEDED, by="attempt")

    with meanwhile(happen):
        result = offline("watch", "job-a")
    assert result.exit_code == 0
    assert "job job-a succeeded" in result.stdout


def test_watch_finds_a_service_that_comes_up_while_it_looks(
    offline: Run,
    store: Store,
    service: Service,
    settings: Settings,
    add_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opened, "_RETRY", 0.05)
    monkeypatch.setattr(opened, "_PAUSE", 0.02)
    monkeypatch.setattr(live, "_POLL", 0.02)
    add_job("job-a")
    told: list[str] = []

    def waits_for(job: Job) -> str | None:
        told.append(str(reason := jobs.waits_for(job)))
        if len(told) == 1:
            settings.run_folder.mkdir()
            settings.stack_file.write_text(json.dumps({"redis_url": settings.redis_url}))
        elif "not up" not in told[-1] or len(told) > 100:
            store.request_cancel("job-a", "ada")
        return reason

    monkeypatch.setattr(live, "waits_for", waits_for)
    assert offline("watch", "job-a").exit_code == 5
    assert told[0] == "the service, which is not up: textvae-jobs up"
    assert "the dispatcher to start it" in told


def test_the_newest_progress_reaches_whoever_checks(
    run: Run, store: Store, queue: Queue, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    store.open_attempt("job-a", 1, "dispatcher")
    progress = {"epoch": 1, "epochs": 2, "step": 3, "steps": 9, "loss": 1.5}
    queue.publish_progress("job-a", progress)
    run("list")  # opens the home
    seen = []

    class Enough(Exception):
        pass

    def check(job: Job, newest: object) -> None:
        seen.append((job.state, newest))
        raise Enough

    with pytest.raises(Enough):
        live.show("job-a", check=check)
    assert seen == [("running", progress)]


def test_ctrl_c_stops_watching_and_leaves_the_job_alone(
    run: Run, store: Store, add_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job("job-a")

    def interrupted(job: str) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(opened, "live_progress", interrupted)
    result = run("watch", "job-a")
    assert result.exit_code == 130
    assert "job job-a goes on" in result.stderr
    assert "textvae-jobs cancel job-a" in result.stderr
    assert store.job("job-a").cancel_requested is None


def test_submit_and_wait_exits_with_the_jobs_code(run: Run, store: Store, service: Service) -> None:
    def fail() -> None:
        bell = service.queue.bell()
        while not store.jobs():
            bell.wait(1)
        store.open_attempt("night", 1, "dispatcher")
        service.finish(
            "night", 1, AttemptState.FAILED, by="attempt", cause=Cause.BAD_CONFIG, error="no column"
        )

    with meanwhile(fail):
        result = run("submit", "quickstart", "--id", "night", "--wait", "--json")
    assert result.exit_code == 1
    assert [job["error"] for job in json.loads(result.stdout)] == ["no column"]


def test_wait_gives_up_with_124(run: Run, trained: Job, add_job: Callable[..., Job]) -> None:
    add_job("job-a")
    result = run("wait", "abc", "job-a", "--timeout", "0.05")
    assert result.exit_code == 124
    assert result.stdout.splitlines() == ["abc12345  succeeded", "job-a  queued"]
    assert "1 of 2 jobs had not ended after 0.05 s" in result.stderr


def test_the_worst_of_several_jobs_decides(
    run: Run, store: Store, trained: Job, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    store.request_cancel("job-a", "ada")
    assert run("wait", "abc", "job-a").exit_code == 5
