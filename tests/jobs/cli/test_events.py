"""events."""

from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import Result

from jobs.service import Service
from jobs.store import AttemptState, Cause, Job, Store

from .conftest import epoch
from .test_follow import meanwhile

Run = Callable[..., Result]


def test_events_show_what_happened_to_a_job_and_who_did_it(run: Run, trained: Job) -> None:
    lines = run("events", "abc").stdout.splitlines()
    assert lines[0].split() == ["EVENT", "AT", "JOB", "ATTEMPT", "WHAT", "BY", "DETAIL"]
    cells = [line.split() for line in lines[1:]]
    assert [(row[5], row[6]) for row in cells][:4] == [
        ("submitted", "ada"),
        ("claimed", "dispatcher"),
        ("started", "attempt"),
        ("checkpointed", "attempt"),
    ]
    (lost,) = [line for line in lines if " finished " in line and "lost" in line]
    assert "state lost, cause died, kind infrastructure, error the node went away" in lost
    assert cells[-1][5] == "succeeded"


def test_events_as_json_have_everything(run: Run, trained: Job, store: Store) -> None:
    told = json.loads(run("events", "abc", "--json").stdout)
    assert [event["id"] for event in told] == [event.id for event in store.events(trained.id)]
    assert set(told[0]) == {"id", "at", "job", "attempt", "kind", "actor", "detail"}
    assert told[0]["at"].endswith("Z")
    third = told[2]["id"]
    after = json.loads(run("events", "abc", "--json", "--after", str(third)).stdout)
    assert after == told[3:]
    assert json.loads(run("events", "--json", "--limit", "2").stdout) == told[-2:]


def test_events_of_everything_are_the_newest(run: Run, add_job: Callable[..., Job], store: Store) -> None:
    assert run("events").stderr == "no events\n"
    for n in range(60):
        add_job(f"job-{n:02}")
    store.drain("ada")
    told = json.loads(run("events", "--json").stdout)
    assert len(told) == 50
    assert (told[-1]["kind"], told[-1]["job"]) == ("drain-begun", None)
    assert run("events", "nothing").exit_code == 3


def test_every_turn_of_a_job_is_told_with_who_made_it(
    run: Run, trained: Job, store: Store, service: Service, add_job: Callable[..., Job]
) -> None:
    # A better one comes of another job; then bob wants the first one back, and thinks better of it.
    add_job("job-b")
    store.open_attempt("job-b", 1, "dispatcher")
    better = epoch(store, store.job("job-b"), 1, 4, 0.95)
    assert store.record_version(
        "job-b",
        1,
        model="reviews",
        version=store.reserve_version("job-b", 1, "reviews"),
        checkpoint=better.id,
        location="models/reviews/2",
        metric="sentiment_accuracy",
        mode="max",
        reason="better",
    )
    service.promote("reviews", 1, by="bob")
    service.rollback("reviews", by="bob")
    store.request_yield("job-b", "dispatcher", "job urgent is of a higher class")
    service.finish("job-b", 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
    store.open_attempt("job-b", 2, "dispatcher")
    service.cancel("job-b", by="eve")
    service.finish("job-b", 2, AttemptState.CANCELLED, by="attempt", cause=Cause.CANCELLED)
    service.retry("job-b", by="ada")

    told = [(e["kind"], e["actor"], e["attempt"]) for e in json.loads(run("events", "abc", "--json").stdout)]
    assert told == [
        ("submitted", "ada", None),
        ("claimed", "dispatcher", 1),
        ("started", "attempt", 1),
        ("checkpointed", "attempt", 1),
        ("finished", "dispatcher", 1),
        ("requeued", "dispatcher", 1),
        ("claimed", "dispatcher", 2),
        ("started", "attempt", 2),
        ("checkpointed", "attempt", 2),
        ("version", "attempt", 2),
        ("promoted", "attempt", 2),
        ("checkpointed", "attempt", 2),
        ("finished", "attempt", 2),
        ("succeeded", "attempt", 2),
        ("promoted", "bob", None),
    ]
    lines = run("events", "job-b").stdout.splitlines()[1:]
    assert [tuple(line.split()[4:7]) for line in lines[1:]] == [
        ("1", "claimed", "dispatcher"),
        ("1", "checkpointed", "attempt"),
        ("1", "version", "attempt"),
        ("1", "promoted", "attempt"),
        ("-", "rolled-back", "bob"),
        ("1", "yield-requested", "dispatcher"),
        ("1", "finished", "attempt"),
        ("1", "preempted", "attempt"),
        ("2", "claimed", "dispatcher"),
        ("-", "cancel-requested", "eve"),
        ("2", "finished", "attempt"),
        ("2", "cancelled", "attempt"),
        ("-", "retried", "ada"),
    ]


def test_events_are_followed_to_the_end_of_the_job(
    run: Run, store: Store, service: Service, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")

    def happen() -> None:
        store.open_attempt("job-a", 1, "dispatcher")
        store.hold("job-a", "bob")
        service.finish("job-a", 1, AttemptState.SUCCEEDED, by="attempt")

    with meanwhile(happen):
        result = run("events", "job-a", "-f", "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["kind"] for line in result.stdout.splitlines()] == [
        "submitted",
        "claimed",
        "held",
        "finished",
        "succeeded",
    ]
    lines = run("events", "job-a", "-f").stdout.splitlines()
    assert lines[0].split()[0] == "EVENT"
    assert [line.split()[5] for line in lines[1:]] == [
        "submitted",
        "claimed",
        "held",
        "finished",
        "succeeded",
    ]
