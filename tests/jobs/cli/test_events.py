"""events."""

from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import Result

from jobs.service import Service
from jobs.store import AttemptState, Job, Store

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
