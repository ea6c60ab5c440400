"""`why`: what keeps a job from starting, as a dispatcher has shown what it decides on."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from jobs.outlook import shown
from jobs.queue import Queue
from jobs.scheduling import Cluster, History, Policy
from jobs.settings import Settings
from jobs.store import Job, Store

from .conftest import Run

AddJob = Callable[..., Job]

LIMIT = 3600.0  # seconds
SHOWN = timedelta(milliseconds=1)  # moments are shown so exactly
RULES = "owners: {bob: {cpus: 2}, eve: {jobs: 0}}\n"


@pytest.fixture
def start(store: Store, add_job: AddJob) -> Callable[..., datetime]:
    """Has a job under way; the moment at which its attempt was opened."""

    def start(id: str, **more: Any) -> datetime:
        add_job(id, **more)
        attempt = store.open_attempt(id, 1, "dispatcher")
        assert attempt is not None
        store.join_attempt(id, 1, host="here")
        store.start_attempt(id, 1)
        return attempt.opened

    return start


@pytest.fixture
def outlook(queue: Queue) -> Callable[[float], None]:
    """Shows what a dispatcher decides on: a cluster of 4 CPUs, so many of them free."""

    def show(free: float) -> None:
        queue.publish_cluster({"total_cpus": 4.0, "total_gpus": 0.0, "free_cpus": free, "free_gpus": 0.0})
        queue.publish_outlook(shown(Cluster(4, 0, free, 0), {}, None, History(), {}))

    return show


def lines(run: Run, job: str) -> dict[str, str]:
    """What it tells a person, by the name of the line."""
    result = run("why", job)
    assert result.exit_code == 0, result.stderr
    pairs = (line.split(":", 1) for line in result.stdout.splitlines())
    return {name: value.strip() for name, value in pairs}


def fields(run: Run, job: str) -> dict[str, Any]:
    """What it tells a program."""
    return dict(json.loads(run("why", job, "--json").stdout)["why"])


def test_quota(
    run: Run,
    settings: Settings,
    add_job: AddJob,
    start: Callable[..., datetime],
    outlook: Callable[[float], None],
):
    settings.scheduling_file.write_text(RULES)
    start("bobs", owner="bob", cpus=2)
    start("adas", owner="ada")
    add_job("more", owner="bob")
    add_job("large", owner="bob", cpus=3)
    add_job("never", owner="eve")
    outlook(1)
    assert lines(run, "more") == {
        "job": "more",
        "state": "queued",
        "waits for": "its owner's quota: job more needs 1 CPUs; its owner holds 2 of 2",
        "blocked by": "quota",
        "behind": "bobs",
    }
    assert fields(run, "more") == {
        "blocked": "quota",
        "text": "its owner's quota: job more needs 1 CPUs; its owner holds 2 of 2",
        "position": None,  # nobody's end but the owner's own lets it start
        "waits_for": ["bobs"],
        "starts": None,
        "guaranteed": False,
    }
    told = "its owner's quota: it needs 3 CPUs, its owner may have 2 at once"
    assert lines(run, "large")["waits for"] == told
    assert fields(run, "never")["text"] == "its owner's quota: its owner may run no jobs"


def test_rules_that_cannot_be_read_keep_nobody_from_looking(
    run: Run, settings: Settings, add_job: AddJob, outlook: Callable[[float], None]
):
    """The dispatcher goes on by those that it had."""
    add_job("waits")
    outlook(1)
    settings.scheduling_file.write_text("quota: [")
    for command in ("show", "why"):
        told = run(command, "waits")
        assert told.exit_code == 0
        assert f"warning: {settings.scheduling_file}" in told.stderr
        assert "the dispatcher goes on by the rules that it had" in told.stderr


def test_resources_at_the_latest(
    run: Run, add_job: AddJob, start: Callable[..., datetime], outlook: Callable[[float], None]
):
    """What runs has a time limit: it has ended by then."""
    opened = start("busy", cpus=3, time_limit=LIMIT)
    add_job("first", cpus=4)
    outlook(1)
    found = fields(run, "first")
    starts = datetime.fromisoformat(found["starts"])
    assert starts == pytest.approx(opened + timedelta(seconds=LIMIT + Policy().margin), abs=SHOWN)
    assert {name: value for name, value in found.items() if name != "starts"} == {
        "blocked": "resources",
        "text": "room: it needs 4 CPUs, 1 CPUs are free",
        "position": 1,
        "waits_for": ["busy"],
        "guaranteed": True,
    }
    told = lines(run, "first")
    at = starts.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert told["waits for"].startswith(
        f"room: it needs 4 CPUs, 1 CPUs are free; it may start at {at}, in 1h0"
    )
    assert told["waits for"].endswith(" (at the latest)")
    assert (told["blocked by"], told["position"], told["behind"]) == ("resources", "1", "busy")


def test_resources_by_an_estimate(
    run: Run,
    store: Store,
    queue: Queue,
    add_job: AddJob,
    start: Callable[..., datetime],
    outlook: Callable[[float], None],
):
    """What runs has no time limit; how far it has come says when it may end."""
    start("busy", cpus=3)
    add_job("first", cpus=4)
    outlook(1)
    assert lines(run, "first")["waits for"] == "room: it needs 4 CPUs, 1 CPUs are free"  # nobody knows when
    started = store.attempts("busy")[0].started
    assert started is not None
    at = started + timedelta(seconds=600)  # for a quarter of its steps
    queue.publish_progress("busy", {"attempt": 1, "step": 10, "steps": 40, "at": at.isoformat()})
    found = fields(run, "first")
    assert (found["blocked"], found["position"], found["guaranteed"]) == ("resources", 1, False)
    ends = started + timedelta(seconds=2400)
    assert datetime.fromisoformat(found["starts"]) == pytest.approx(ends, abs=SHOWN)
    told = lines(run, "first")["waits for"]
    assert "; it may start at " in told and told.endswith(" (an estimate)")


def test_resources_that_the_cluster_has_not(run: Run, add_job: AddJob, outlook: Callable[[float], None]):
    add_job("huge", cpus=64)
    outlook(4)
    told = lines(run, "huge")
    assert told["waits for"] == "room: it needs 64 CPUs, the cluster has 4"
    assert told["blocked by"] == "resources" and "position" not in told


def test_priority(
    run: Run, add_job: AddJob, start: Callable[..., datetime], outlook: Callable[[float], None]
):
    opened = start("busy", cpus=3, time_limit=LIMIT)
    add_job("third", cpus=2, priority=-2)
    add_job("second", cpus=2, priority=-1)
    add_job("first", cpus=4, time_limit=600.0)
    add_job("small", priority=-3)
    outlook(1)
    found = fields(run, "second")
    assert (found["blocked"], found["position"], found["waits_for"]) == ("priority", 2, ["first"])
    assert found["text"] == "its turn: 1 job goes before it; it needs 2 CPUs, 1 CPUs are free"
    # Once the one that runs has had its time, and the first one after it. That is none of the promises.
    assert not found["guaranteed"]
    estimate = datetime.fromisoformat(found["starts"]) - opened
    assert estimate == pytest.approx(timedelta(seconds=LIMIT + 600), abs=timedelta(seconds=60))
    told = lines(run, "third")
    assert told["waits for"].startswith("its turn: 2 jobs go before it; it needs 2 CPUs, 1 CPUs are free;")
    assert told["waits for"].endswith(" (an estimate)")
    assert (told["blocked by"], told["position"], told["behind"]) == ("priority", "3", "first")
    told = lines(run, "small")
    assert told["waits for"].startswith(
        "its turn: there is room, but job first, which goes first, would wait longer for its own"
    )
    assert told["position"] == "4"


def test_a_hold_comes_before_all_else_until_it_is_over(
    run: Run, add_job: AddJob, start: Callable[..., datetime], outlook: Callable[[float], None]
):
    start("busy", cpus=3)
    add_job("first", cpus=4)
    add_job("second", cpus=4)
    outlook(1)
    assert fields(run, "second")["position"] == 2
    assert run("hold", "first").exit_code == 0
    told = lines(run, "first")
    holder = told["waits for"].removeprefix("its release: ").removesuffix(" holds it")
    assert holder and told == {
        "job": "first",
        "state": "held",
        "waits for": f"its release: {holder} holds it",
        "blocked by": "held",
        "held": told["held"],
    }
    assert fields(run, "first")["position"] is None
    assert fields(run, "second")["position"] == 1  # it goes first now
    assert run("release", "first").exit_code == 0
    assert (lines(run, "first")["blocked by"], fields(run, "first")["position"]) == ("resources", 1)
