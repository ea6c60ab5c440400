from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from jobs.cli import output, top
from jobs.outlook import shown
from jobs.queue import Queue
from jobs.scheduling import Cluster, History, Used
from jobs.service import Service
from jobs.store import Job, Store

from .conftest import Run


@pytest.fixture
def busy(store: Store, service: Service, queue: Queue, add_job: Callable[..., Job]) -> None:
    """Two jobs run on four CPUs, one of them halfway; two wait, one of them for somebody's word."""
    for id in ("halfway", "leaving"):
        add_job(id, cpus=2)
        store.open_attempt(id, 1, "dispatcher")
        store.join_attempt(id, 1, host="here")
        store.start_attempt(id, 1)
    store.request_cancel("leaving", "ada")
    progress: dict[str, Any] = {"epoch": 2, "epochs": 4, "step": 20, "steps": 40, "loss": 1.25}
    queue.publish_progress(
        "halfway", progress | {"reviews_per_second": 9.0, "attempt": 1, "at": store.clock().isoformat()}
    )
    add_job("first", cpus=4, owner="bob")
    add_job("held")
    service.hold("held")
    queue.publish_cluster({"total_cpus": 4.0, "total_gpus": 0.0, "free_cpus": 0.0, "free_gpus": 0.0})
    used = History(used={"ada": Used(cpu_seconds=7200.0)})
    queue.publish_outlook(shown(Cluster(4, 0, 0, 0), {}, None, used, {}))


def test_top_shows_what_runs_what_waits_and_what_there_is(run: Run, busy: None):
    lines = run("top", "--once").output.splitlines()
    assert lines[0] == "4 of 4 CPUs in use; 2 running, 2 waiting"
    (halfway,) = [line.split() for line in lines if line.startswith("halfway")]
    assert halfway[:6] == ["halfway", "reviews", "ada", "0", "1", "running"]
    assert {"2/4,", "100.0%", "50.0%", "1.25"} <= set(halfway)
    (leaving,) = [line for line in lines if line.startswith("leaving")]
    assert "cancelling" in leaving
    (first,) = [line for line in lines if line.startswith("first")]
    assert "resources: it needs 4 CPUs, 0 CPUs are free" in first
    (held,) = [line for line in lines if line.startswith("held")]
    assert "held: someone holds it" in held
    (ada,) = [line for line in lines if line.startswith("ada")]
    assert "2.0 CPU-h" in ada


def test_top_as_json(run: Run, busy: None):
    seen = json.loads(run("top", "--json", "--limit", "1").output)
    assert [job["job"] for job in seen["running"]] == ["halfway", "leaving"]
    assert seen["running"][0]["progress"]["step"] == 20
    assert seen["running"][0]["left"] is not None
    assert [job["job"] for job in seen["waiting"]] == ["first"]  # in the order in which they go
    assert seen["waiting"][0]["why"]["position"] == 1
    assert seen["waiting_in_all"] == 2
    assert seen["cluster"]["total_cpus"] == 4
    assert {owner["owner"]: owner["cpus"] for owner in seen["owners"]} == {"ada": 4, "bob": 0}


def test_without_redis_top_shows_what_the_database_knows(offline: Run, busy: None):
    told = offline("top").output
    assert "no dispatcher has said anything of the cluster" in told.splitlines()[0]
    assert "halfway" in told and "first" in told


def test_on_a_terminal_it_looks_again_until_ctrl_c(run: Run, busy: None, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(output, "terminal", lambda: True)
    monkeypatch.setattr(top.time, "sleep", pause)
    result = run("top", "--every", "1.5")
    assert result.exit_code == 0
    assert result.output.count("2 running, 2 waiting") == 3
    assert min(pauses) >= 1.5
