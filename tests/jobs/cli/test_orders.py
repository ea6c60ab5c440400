"""hold, release, requeue, drain; usage; why."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from click.testing import Result

from jobs.queue import Queue
from jobs.service import Service
from jobs.store import AttemptState, Cause, Job, JobState, Retry, Store

from ..conftest import Clock

Run = Callable[..., Result]
AddJob = Callable[..., Job]


def test_a_held_job_is_out_of_the_queue_until_it_is_released(
    run: Run, store: Store, queue: Queue, service: Service, add_job: AddJob
) -> None:
    add_job("job-a")
    add_job("job-b")
    service.reconcile_queue()
    assert run("hold", "job-a", "job-b").stdout == "job-a  held\njob-b  held\n"
    assert queue.entries() == {}
    service.reconcile_queue()
    assert queue.entries() == {}
    assert run("list").stdout.count("held") == 2
    assert run("hold", "job-a", "job-x").exit_code == 3
    assert run("release", "job-a").stdout == "job-a  released; it is queued\n"
    assert queue.entries() == {"job-a": 1}
    store.request_cancel("job-b", "ada")
    refused = run("release", "job-b")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "error: job job-b is cancelled; only one that has not ended can be released\n",
    )


def test_requeue_puts_a_job_back_wherever_it_is(
    run: Run, store: Store, queue: Queue, service: Service, add_job: AddJob
) -> None:
    add_job("job-a", retry=Retry(max_attempts=3, backoff=600))
    assert run("requeue", "job-a").exit_code == 2  # it waits already
    for number in (1, 2):
        store.open_attempt("job-a", number, "dispatcher")
        service.finish("job-a", number, AttemptState.FAILED, by="attempt", cause=Cause.ERROR, error="oh")
    service.reconcile_queue()
    assert queue.entries() == {}  # its retry waits
    assert run("requeue", "job-a").stdout == "job-a  queued again\n"
    assert queue.entries() == {"job-a": 3}
    store.open_attempt("job-a", 3, "dispatcher")
    queue.remove(["job-a"])
    assert run("requeue", "job-a").stdout == "job-a  makes way, with a checkpoint\n"
    assert "yielding" in run("list").stdout
    service.finish("job-a", 3, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
    assert (store.job("job-a").errors_used, queue.entries()) == (2, {"job-a": 4})
    service.cancel("job-a")
    assert json.loads(run("requeue", "job-a", "--json").stdout)[0]["state"] == "queued"


def test_requeue_of_a_job_that_is_being_cancelled_changes_nothing(
    run: Run, store: Store, add_job: AddJob
) -> None:
    add_job("job-a")
    store.open_attempt("job-a", 1, "dispatcher")
    store.request_cancel("job-a", "ada")
    assert run("requeue", "job-a").stdout == "job-a  is being cancelled, and stays so\n"
    assert store.job("job-a").yield_requested is None


def test_drain_starts_nothing_new_until_it_is_over(run: Run, store: Store, add_job: AddJob) -> None:
    add_job("job-a")
    store.open_attempt("job-a", 1, "dispatcher")
    add_job("job-b")
    assert run("drain").stdout == "nothing new starts; 1 job under way\n"
    assert "drained since" in run("drain").stdout
    assert store.open_attempt("job-b", 1, "dispatcher") is None
    assert json.loads(run("why", "job-b", "--json").stdout)["why"]["blocked"] == "drain"
    told = json.loads(run("drain", "--json").stdout)
    assert told["running"] == ["job-a"]
    assert run("drain", "--off").stdout == "jobs start again\n"
    assert run("drain", "--off").stdout == "it was not drained\n"
    assert store.open_attempt("job-b", 1, "dispatcher") is not None


def test_submit_says_when_and_after_what_a_job_may_start(run: Run, store: Store, queue: Queue) -> None:
    def submit(*words: str) -> Job:
        result = run("submit", "quickstart", *words)
        assert result.exit_code == 0, result.stderr
        return store.job(result.stdout.strip())

    first, second = submit("--id", "first"), submit("--id", "second", "--hold")
    assert list(queue.entries()) == ["first"]
    both = submit("--after", "first,second", "--after-any", "first")
    assert [(d.on_job, d.any) for d in store.dependencies(both.id)] == [("first", False), ("second", False)]
    later = submit("--not-before", "+2h", "--time-limit", "90m")
    assert later.not_before is not None
    assert timedelta(hours=1.9) < later.not_before - later.created < timedelta(hours=2.1)
    assert (later.time_limit, store.config(later.id)["time_limit"]) == (5400, 5400)
    assert list(queue.entries()) == ["first"]
    assert (first.held, second.held is not None) == (None, True)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--after", "nobody"], 3, "no job's id begins with 'nobody'"),
        (["--not-before", "soon"], 2, "--not-before: 'soon' is no moment"),
        (["--not-before", "+99999999999d"], 2, "--not-before: '+99999999999d' is too far away"),
        (["--time-limit", "long"], 2, "time_limit: 'long' is no length of time"),
        (["--after", "ended"], 2, "after job ended, which is cancelled: retry that one first"),
    ],
)
def test_what_can_never_start_is_not_submitted(
    run: Run, store: Store, add_job: AddJob, words: list[str], code: int, told: str
) -> None:
    add_job("ended")
    store.request_cancel("ended", "ada")
    result = run("submit", "quickstart", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr
    assert len(store.jobs()) == 1


def test_the_end_of_a_job_queues_those_that_come_after_it(
    run: Run, store: Store, queue: Queue, service: Service, add_job: AddJob
) -> None:
    add_job("job-a")
    add_job("job-b", after=["job-a"])
    add_job("job-c", after_any=["job-a"])
    store.open_attempt("job-a", 1, "dispatcher")
    service.reconcile_queue()
    assert queue.entries() == {}
    service.finish("job-a", 1, AttemptState.SUCCEEDED, by="attempt")
    assert queue.entries() == {"job-b": 1, "job-c": 1}
    add_job("job-d")
    add_job("job-e", after_any=["job-d"])
    service.cancel("job-d")
    assert queue.entries() == {"job-b": 1, "job-c": 1, "job-e": 1}


def test_usage_by_user_and_by_job(run: Run, store: Store, add_job: AddJob, clock: Clock) -> None:
    assert run("usage").stderr == "nothing was used\n"
    for id, owner, gpus, hours in (("job-a", "ada", 0, 1), ("job-b", "bob", 2, 3), ("job-c", "ada", 0, 5)):
        add_job(id, owner=owner, cpus=4, gpus=gpus)
        store.open_attempt(id, 1, "dispatcher")
        store.start_attempt(id, 1)
        clock.forward(hours * 3600)
        store.finish_attempt(id, 1, AttemptState.SUCCEEDED, by="attempt")
    assert [line.split() for line in run("usage").stdout.splitlines()] == [
        ["USER", "CPU-HOURS", "GPU-HOURS", "TRAINED", "ATTEMPTS"],
        ["bob", "12.00", "6.00", "3h00m", "1"],
        ["ada", "24.00", "0.00", "6h00m", "2"],
    ]
    by_job = json.loads(run("usage", "--jobs", "--json").stdout)
    assert [(row["job"], row["cpu_hours"], row["gpu_hours"]) for row in by_job] == [
        ("job-b", 12, 6),
        ("job-c", 20, 0),
        ("job-a", 4, 0),
    ]
    assert [row["job"] for row in json.loads(run("usage", "--jobs", "--user", "ada", "--json").stdout)] == [
        "job-c",
        "job-a",
    ]
    assert "--limit shows more" in run("usage", "--limit", "1").stderr
    since = clock.now - timedelta(hours=6)
    recent = json.loads(run("usage", "--since", since.isoformat(), "--json").stdout)
    assert {row["user"]: row["cpu_hours"] for row in recent} == {"ada": 20, "bob": 4}
    for wrong, words in (("yore", "'yore' is no moment"), ("99999999d", "'99999999d' is too far away")):
        refused = run("usage", "--since", wrong)
        assert (refused.exit_code, words in refused.stderr) == (2, True), refused.stderr


def told(run: Run, job: str) -> dict[str, Any]:
    return dict(json.loads(run("why", job, "--json").stdout))


def test_why_names_what_keeps_a_job_from_starting(run: Run, store: Store, add_job: AddJob) -> None:
    add_job("first")
    assert told(run, "first")["why"] | {"position": 1} == {
        "blocked": "starting",
        "text": "the dispatcher to start it",
        "position": 1,
        "waits_for": [],
        "starts": None,
        "guaranteed": False,
    }
    add_job("after", after=["first"])
    why = told(run, "after")["why"]
    assert (why["blocked"], why["waits_for"]) == ("dependency", ["first"])
    assert why["text"] == "the success of job first, which is queued"
    store.hold("after", "bob")
    assert told(run, "after")["why"]["text"] == "its release: bob holds it"
    later = store.clock() + timedelta(hours=1)
    add_job("later", not_before=later)
    why = told(run, "later")["why"]
    assert why["blocked"] == "not-before"
    assert why["starts"] is not None
    assert "in 1h00m" in run("why", "later").stdout or "in 59m" in run("why", "later").stdout


def test_why_tells_whose_fault_it_was(run: Run, store: Store, add_job: AddJob) -> None:
    add_job("job-a", retry=Retry(max_attempts=2, backoff=3600))
    for number, state, cause in (
        (1, AttemptState.LOST, Cause.OUT_OF_MEMORY),
        (2, AttemptState.FAILED, Cause.ERROR),
    ):
        store.open_attempt("job-a", number, "dispatcher")
        store.finish_attempt("job-a", number, state, by="attempt", cause=cause, error=f"oh {number}")
    lines = run("why", "job-a").stdout
    assert "1 of 2 attempts used up by errors; 1 failures of infrastructure in a row" in lines
    assert "attempt 2 failed (error, error): oh 2" in lines
    store.open_attempt("job-a", 3, "dispatcher")
    store.request_yield("job-a", "scheduler", "job urgent needs its room")
    assert "asked to make way by scheduler: job urgent needs its room" in run("why", "job-a").stdout
    store.finish_attempt("job-a", 3, AttemptState.FAILED, by="attempt", cause=Cause.ERROR, error="oh 3")
    assert store.job("job-a").state is JobState.FAILED
    found = told(run, "job-a")
    assert found["why"] is None
    assert [(a["cause"], a["kind"]) for a in found["attempts"]] == [
        ("out-of-memory", "infrastructure"),
        ("error", "error"),
        ("error", "error"),
    ]
    shown = run("show", "job-a").stdout
    assert "out-of-memory" in shown and "infrastructure" in shown
