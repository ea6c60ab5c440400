"""Sweeps as a user sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from jobs.config import load
from jobs.service import Service
from jobs.store import AttemptState, Cause, Job, NewReport, NewTrial, Retry, Store
from jobs.sweeps.search import planned
from jobs.sweeps.space import Space

from ..store.conftest import checkpoint

Run = Callable[..., Result]

SWEEP = """
name: reviews
training: {epochs: 3}
sweep:
  parameters:
    objective.kl_weight: {values: [0.1, 1.0]}
    training.batch_size: {values: [8, 16]}
  early_stopping: {grace: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return str(path)


@pytest.fixture
def made(store: Store, service: Service, file: str) -> Job:
    """A sweep with four children: the second is the best and served, the third was stopped early."""
    config = load(file)
    space = Space(config)
    service.submit(config, owner="ada", id="sweep")
    new = [
        NewTrial(n, each, space.child(each).model_dump(mode="json"), 1, 1.0, 0.0, Retry(max_attempts=1), None)
        for n, each in enumerate(planned(space), start=1)
    ]
    service.add_trials("sweep", new, by="dispatcher")
    for number, value in ((1, 0.6), (2, 0.8), (3, 0.3)):
        job = f"sweep.{number}"
        store.open_attempt(job, 1, "dispatcher")
        store.start_attempt(job, 1)
        report = NewReport(1, 10, 1.0, 100.0, {"loss": 2.0}, {"sentiment_accuracy": value})
        best = store.record_checkpoint(job, 1, checkpoint(1, value), report)
        if number == 3:
            service.stop_early(job, "far behind", by="dispatcher")
            service.finish(
                job,
                1,
                AttemptState.CANCELLED,
                by="attempt",
                cause=Cause.STOPPED_EARLY,
                error="far behind",
            )
            continue
        version = store.reserve_version(job, 1, "reviews")
        store.record_version(
            job,
            1,
            model="reviews",
            version=version,
            checkpoint=best.id,
            location=f"models/reviews/v{version}",
            metric="sentiment_accuracy",
            mode="max",
            reason="best",
        )
        service.finish(job, 1, AttemptState.SUCCEEDED, by="attempt")
    return store.job("sweep")


def end(store: Store, service: Service) -> None:
    store.open_attempt("sweep.4", 1, "dispatcher")
    service.finish("sweep.4", 1, AttemptState.FAILED, by="attempt", cause=Cause.BAD_CONFIG, error="it broke")
    service.end_sweep("sweep", by="dispatcher")


def test_submit_knows_a_sweep_by_its_section(run: Run, store: Store, file: str) -> None:
    result = run("submit", file, "--id", "mine", "--priority", "5")
    assert (result.exit_code, result.stdout) == (0, "mine\n")
    assert "a sweep of 4 children; compare them with: textvae-jobs show mine" in result.stderr
    recorded = store.job("mine")
    assert (recorded.trials, recorded.priority, recorded.cpus) == (4, 5, 0)
    again = run("submit", file, "--id", "mine", "--priority", "5")
    assert (again.exit_code, again.stdout) == (0, "mine\n")
    assert "was submitted before" in again.stderr


def test_submit_of_what_cannot_be_says_which_child_and_records_nothing(
    run: Run, store: Store, file: str
) -> None:
    result = run("submit", file, "--set", "sweep.parameters.training.batch_size.values=[8, 0]")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "training.batch_size" in result.stderr and "child 2" in result.stderr
    result = run("submit", file, "--set", "sweep.parameters.training.batchsize={values: [8]}")
    assert "unknown key; the nearest known one is training.batch_size" in result.stderr
    assert store.jobs() == []


def test_config_check_tells_every_child(offline: Run, file: str) -> None:
    lines = offline("config", "check", file).stdout.splitlines()
    assert "# grid, 4 children; those behind are stopped (median, after 1 epoch)" in lines
    assert "# child 3: objective.kl_weight = 1, training.batch_size = 8" in lines
    told = json.loads(offline("config", "check", file, "--json").stdout)
    assert told["sweep"][-1] == "child 4: objective.kl_weight = 1, training.batch_size = 16"
    optuna = offline(
        "config", "check", file, "--set", "sweep.search=optuna", "--set", "sweep.trials=7"
    ).stdout
    assert "# optuna, 7 children, 4 at once" in optuna and "# child" not in optuna


def test_show_compares_the_children_and_names_the_best(run: Run, made: Job) -> None:
    text = run("show", "swe").stdout
    lines = text.splitlines()
    assert "children:  4 of 4 made: 1 queued, 1 stopped early, 2 succeeded" in lines
    assert (
        "best:      sweep.2: sentiment_accuracy 0.8 with objective.kl_weight = 0.1, training.batch_size = 16"
        in lines
    )
    assert "           served as version 2 of reviews" in lines
    (best,) = [line.split() for line in lines if line.startswith("* ")]
    assert best[1:5] == ["sweep.2", "succeeded", "1", "0.8"]
    (stopped,) = [line for line in lines if line.strip().startswith("sweep.3")]
    assert "stopped early" in stopped and stopped.endswith("far behind")
    told = json.loads(run("show", "sweep", "--json").stdout)
    assert told["best"]["job"] == "sweep.2"
    assert told["best"]["parameters"] == {"objective.kl_weight": 0.1, "training.batch_size": 16}
    assert told["best"]["served"]["version"] == 2
    assert [child["number"] for child in told["children"]] == [1, 2, 3, 4]


def test_list_shows_a_sweep_in_one_line_and_its_children_when_asked(run: Run, made: Job) -> None:
    (row,) = run("list").stdout.splitlines()[1:]
    assert row.split()[:4] == ["sweep", "reviews", "running", "3/4"]
    children = run("list", "--sweep", "swe").stdout.splitlines()[1:]
    assert [line.split()[0] for line in children] == ["sweep.4", "sweep.3", "sweep.2", "sweep.1"]
    assert "stopped early" in children[1]
    assert len(run("list", "--children").stdout.splitlines()) == 6
    refused = run("list", "--sweep", "sweep.1")
    assert (refused.exit_code, refused.stderr) == (2, "error: job sweep.1 is no sweep; sweep is\n")


def test_watch_tells_what_happened_to_the_children_and_how_it_ended(
    run: Run, store: Store, service: Service, made: Job
) -> None:
    end(store, service)
    result = run("watch", "sweep")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert "sweep.1  objective.kl_weight = 0.1, training.batch_size = 8" in lines
    assert "sweep.2  checkpoint epoch-01: sentiment_accuracy 0.8" in lines
    assert "sweep.3  stopped early, as far behind" in lines
    assert "sweep.2  made version 2 of model reviews" in lines
    assert lines[-1] == "sweep sweep succeeded; the best child is sweep.2, served as version 2 of reviews"
    assert run("wait", "sweep").stdout == "sweep  succeeded\n"


def test_a_sweep_without_a_good_child_fails(run: Run, store: Store, service: Service, file: str) -> None:
    run("submit", file, "--id", "sweep")
    store.make_no_more("sweep", "no config", by="dispatcher")
    service.end_sweep("sweep", by="dispatcher")
    assert run("wait", "sweep").exit_code == 1
    assert run("watch", "sweep").stdout.splitlines()[-1] == "sweep sweep failed: no config"


def test_why_says_how_far_a_sweep_is_and_why_a_child_was_stopped(run: Run, made: Job) -> None:
    assert "now:   4 of 4 made: 1 cancelled, 1 queued, 2 succeeded" in run("why", "sweep").stdout
    assert "because:      far behind" in run("why", "sweep.3").stdout
    assert "(stopped-early, cancelled)" in run("why", "sweep.3").stdout


def test_why_says_what_a_sweep_waits_for(run: Run, file: str) -> None:
    run("submit", file, "--id", "first")
    run("submit", file, "--id", "second", "--after", "first")
    assert "the success of job first, which is queued" in run("why", "second").stdout
    run("hold", "first")
    assert "its release" in run("why", "first").stdout
    run("release", "first")
    assert "the dispatcher to make its children" in run("why", "first").stdout


def test_events_of_a_sweep_are_those_of_its_children_too(run: Run, made: Job) -> None:
    told = json.loads(run("events", "sweep", "--json").stdout)
    assert {event["job"] for event in told} == {"sweep", "sweep.1", "sweep.2", "sweep.3", "sweep.4"}
    text = run("events", "sweep").stdout
    assert "child sweep.1, parameters objective.kl_weight = 0.1, training.batch_size = 8" in text


def test_cancel_retry_and_requeue_of_a_sweep(run: Run, store: Store, made: Job) -> None:
    store.open_attempt("sweep.4", 1, "dispatcher")
    assert run("requeue", "sweep").exit_code == 2
    assert run("cancel", "sweep").stdout == (
        "sweep  stops: each of its running children does, with a checkpoint\n"
    )
    assert "cancelling 3/4" in run("list").stdout
    store.finish_attempt("sweep.4", 1, AttemptState.CANCELLED, by="attempt", cause=Cause.CANCELLED)
    store.end_sweep("sweep", by="dispatcher")
    assert run("wait", "sweep").exit_code == 5
    assert run("retry", "sweep").stdout == "sweep\n"
    assert {trial.number: str(trial.state) for trial in store.trials("sweep")}[4] == "queued"
    assert store.job("sweep.3").stopped == "far behind"


def test_a_sweep_has_no_log_and_its_best_child_is_what_is_looked_at(
    run: Run, store: Store, made: Job, file: str
) -> None:
    result = run("logs", "sweep")
    assert (result.exit_code, "textvae-jobs logs sweep.1" in result.stderr) == (3, True)
    run("submit", file, "--id", "empty")
    assert "no child of which has succeeded yet" in run("plot", "empty").stderr
    from jobs.cli.sweeps import best_child

    best = best_child(store.job("sweep"))
    assert best is not None and best.id == "sweep.2"
