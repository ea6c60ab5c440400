"""Which checkpoint becomes a model version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jobs.attempt import Tools, Work
from jobs.settings import Settings
from jobs.store import JobState, Store
from textvae import checkpoint
from textvae.artifacts import Artifacts

from .conftest import Train, Training, log_of, reach


def test_only_a_better_job_is_promoted(train: Train, store: Store, settings: Settings):
    values = {"first": 0.6, "worse": 0.5, "better": 0.9, "blind": None}
    for job, value in values.items():
        train(job, reach(1, value))
        assert store.job(job).state is JobState.SUCCEEDED
    assert [v.job for v in store.versions("reviews")] == ["better", "first"]
    assert "does not beat 0.6000 of version 1" in log_of(settings, "worse")
    assert "no good checkpoint has a sentiment_accuracy" in log_of(settings, "blind")
    assert Artifacts(settings.storage).list("models") == ["models/reviews/v1", "models/reviews/v2"]


def test_a_number_that_the_store_holds_already_is_passed_over(train: Train, store: Store, settings: Settings):
    """The database was restored from a backup; the artifact store went on."""
    train("first", reach(1, 0.6))
    artifacts = Artifacts(settings.storage)
    later = artifacts.fetch("models/reviews/v1", settings.cache)
    artifacts.put(later, "models/reviews/v2")
    artifacts.put(later, "models/reviews/v3")
    train("second", reach(1, 0.9))
    assert store.job("second").state is JobState.SUCCEEDED
    assert [v.version for v in store.versions("reviews")] == [4, 1]
    assert "models/reviews/v2 holds a version that is not recorded" in log_of(settings, "second")
    assert artifacts.list("models") == [f"models/reviews/v{number}" for number in (1, 2, 3, 4)]


def test_the_version_of_the_faster_of_two_jobs_counts(
    train: Train,
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    tools: Tools,
    settings: Settings,
):
    """While one copies its files into place, the other promotes a better checkpoint."""
    other = attempt(submit("faster"))
    faster = Training(settings.storage, training.scratch)
    faster.script = reach(1, 0.9)
    other._tools = replace(tools, fit=faster)

    class Slow(Artifacts):
        def put(self, folder: Path, name: str) -> None:
            super().put(folder, name)
            if name.startswith("models/"):
                other.run()

    train("slower", reach(1, 0.8), tools=replace(tools, artifacts=Slow(settings.storage)))
    assert store.job("slower").state is JobState.SUCCEEDED
    assert [(v.version, v.job) for v in store.versions("reviews")] == [(2, "faster")]
    assert Artifacts(settings.storage).list("models") == ["models/reviews/v2"]
    assert "another job made a better version" in log_of(settings, "slower")


def test_the_next_best_is_promoted_if_the_best_is_torn(train: Train, store: Store, settings: Settings):
    def script(training: Training) -> str:
        training.checkpoint(1, 0.9)
        training.checkpoint(2, 0.7)
        (Path(settings.storage) / "jobs/first/attempt-1/epoch-01" / checkpoint.STATE).write_text("{}")
        return "finished"

    train("first", script)
    assert store.version("reviews").value == 0.7
