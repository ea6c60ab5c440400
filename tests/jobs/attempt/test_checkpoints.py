"""Which checkpoint an attempt goes on from, and what it deletes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from jobs.attempt import Tools
from jobs.settings import Settings
from jobs.store import JobState, Store
from textvae import checkpoint
from textvae.artifacts import Artifacts
from textvae.checkpoint import Position

from .conftest import SMALL, Train, Training, log_of, reach, write


def test_a_checkpoint_that_was_put_and_never_recorded_is_deleted_by_the_next_attempt(
    train: Train, training: Training, settings: Settings
):
    job = "first"
    artifacts = Artifacts(settings.storage)

    def dies_before_recording(training: Training) -> str:
        training.checkpoint(1, 0.6)
        name = f"{training.given['prefix']}/epoch-02"
        write(training.scratch / name, Position(2, 20, 0), {})
        artifacts.put(training.scratch / name, name)
        raise RuntimeError("killed")

    train(job, dies_before_recording)
    assert artifacts.list("jobs/first") == ["jobs/first/attempt-1/epoch-01", "jobs/first/attempt-1/epoch-02"]

    train(job, reach(2, 0.8), 2)
    assert training.given["resume"][0] == "jobs/first/attempt-1/epoch-01"
    assert artifacts.list("jobs/first") == ["jobs/first/attempt-1/epoch-01", "jobs/first/attempt-2/epoch-02"]
    assert "attempt-1/epoch-02, which was never recorded" in log_of(settings, job, 2)


def test_a_checkpoint_that_is_not_good_is_passed_over(train: Train, training: Training, settings: Settings):
    many = SMALL.model_copy(update={"training": SMALL.training.model_copy(update={"keep_last": 4})})

    def fails(training: Training) -> str:
        for epoch in (1, 2, 3, 4):
            training.checkpoint(epoch, 0.5)
        raise RuntimeError("gone")

    train("first", fails, config=many)
    prefix = Path(settings.storage) / "jobs/first/attempt-1"
    shutil.rmtree(prefix / "epoch-04")
    torn = prefix / "epoch-03" / checkpoint.MODEL
    torn.write_bytes(torn.read_bytes()[:-1])
    # A whole checkpoint in the wrong place is none either: its digest is not the recorded one.
    shutil.rmtree(prefix / "epoch-02")
    shutil.copytree(prefix / "epoch-01", prefix / "epoch-02")

    train("first", lambda training: "finished", 2)
    assert training.given["resume"][0] == "jobs/first/attempt-1/epoch-01"
    log = log_of(settings, "first", 2)
    assert "epoch-04 is gone" in log
    assert "epoch-03 is not good" in log
    assert "epoch-02 is not good" in log


def test_files_that_cannot_be_deleted_do_not_stop_training(
    train: Train, store: Store, tools: Tools, settings: Settings
):
    class Stubborn(Artifacts):
        refuses = True

        def delete(self, name: str) -> None:
            if self.refuses:
                raise OSError("device busy")
            super().delete(name)

    artifacts = Stubborn(settings.storage)

    def script(training: Training) -> str:
        for epoch in (1, 2, 3):
            training.checkpoint(epoch, epoch / 10)
        assert artifacts.list("jobs")[0].endswith("epoch-01")
        artifacts.refuses = False
        training.checkpoint(4, 0.4)
        return "finished"

    train("first", script, tools=replace(tools, artifacts=artifacts))
    assert store.job("first").state is JobState.SUCCEEDED
    assert [name.rpartition("/")[2] for name in artifacts.list("jobs")] == ["epoch-03", "epoch-04"]
    assert "could not be deleted: device busy" in log_of(settings, "first")
