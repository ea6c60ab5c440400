"""What is tried again, when, and at whose expense."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import get_args

import pytest

from jobs.config import Retry as RetryConfig
from jobs.store import AttemptState, Cause, CauseKind, EventKind, Job, JobState, Retry, RetryOn, Store
from jobs.store.retries import LONGEST_WAIT, after

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock
from .conftest import AddJob, checkpoint, kinds

STATES = {
    CauseKind.ERROR: AttemptState.FAILED,
    CauseKind.INFRASTRUCTURE: AttemptState.LOST,
    CauseKind.TIMEOUT: AttemptState.FAILED,
    CauseKind.PREEMPTION: AttemptState.PREEMPTED,
    CauseKind.CANCELLED: AttemptState.CANCELLED,
}


def end(store: Store, number: int, cause: Cause, job: str = "first") -> Job:
    """Attempt `number`, from its opening to an end of that cause."""
    assert store.open_attempt(job, number, by="test") is not None
    return store.finish_attempt(job, number, STATES[cause.kind], by="test", cause=cause, error="oh")


def test_the_config_and_the_store_mean_the_same():
    assert Retry(**RetryConfig().model_dump()) == Retry()
    assert get_args(get_args(RetryConfig.model_fields["on"].annotation)[0]) == get_args(RetryOn)


def test_infrastructure_uses_up_no_attempt_of_training(store: Store, add_job: AddJob, clock: Clock):
    add_job("first", retry=Retry(max_attempts=2, backoff=0))
    for number, cause in enumerate(
        [Cause.DIED, Cause.RANK_LOST, Cause.ERROR, Cause.OUT_OF_MEMORY, Cause.PREEMPTED], start=1
    ):
        job = end(store, number, cause)
        assert job.state is JobState.QUEUED
    assert (job.errors_used, job.infrastructure_used) == (1, 3)
    assert end(store, 6, Cause.ERROR).state is JobState.FAILED


def test_infrastructure_that_fails_for_ever_does_not_loop_for_ever(
    store: Store, add_job: AddJob, clock: Clock
):
    add_job("first", retry=Retry(max_attempts=1, max_infrastructure=3, backoff=10))
    waits = []
    for number in (1, 2, 3):
        job = end(store, number, Cause.DIED)
        assert job.state is JobState.QUEUED
        waits.append(0.0 if job.not_before is None else (job.not_before - clock.now).total_seconds())
        clock.forward(waits[-1])
    assert waits == [0, 10, 20]
    job = end(store, 4, Cause.DIED)
    assert (job.state, job.errors_used) == (JobState.FAILED, 0)
    assert job.error == "oh; infrastructure failed 4 times in a row, without a new checkpoint in between"
    told = store.events("first")[-1]
    assert (told.kind, told.detail["infrastructure_used"]) == (EventKind.FAILED, 4)


def test_failures_with_progress_between_them_are_not_in_a_row(store: Store, add_job: AddJob, clock: Clock):
    add_job("first", retry=Retry(max_infrastructure=1))
    for number in range(1, 6):
        store.open_attempt("first", number, by="test")
        store.record_checkpoint("first", number, checkpoint(number, attempt=number))
        job = store.finish_attempt("first", number, AttemptState.LOST, by="test", cause=Cause.DIED)
        assert (job.state, job.infrastructure_used) == (JobState.QUEUED, 1)
    store.open_attempt("first", 6, by="test")
    store.record_checkpoint("first", 6, checkpoint(5, attempt=6))  # no further than before
    job = store.finish_attempt("first", 6, AttemptState.LOST, by="test", cause=Cause.DIED)
    assert job.state is JobState.FAILED


def test_nobody_starts_a_retry_before_its_time(store: Store, add_job: AddJob, clock: Clock):
    add_job("first", retry=Retry(max_attempts=5, backoff=60))
    end(store, 1, Cause.ERROR)
    job = end(store, 2, Cause.ERROR)  # the first retry is at once
    assert job.not_before == clock.now + timedelta(seconds=60)
    assert not store.queued()[0].eligible
    clock.forward(59)
    assert store.open_attempt("first", 3, by="test") is None
    clock.forward(1)
    assert store.queued()[0].eligible
    assert store.open_attempt("first", 3, by="test") is not None
    assert store.job("first").not_before is None


@pytest.mark.parametrize(
    ("on", "cause", "tried"),
    [
        (("infrastructure", "error"), Cause.TIMEOUT, False),
        (("infrastructure", "error", "timeout"), Cause.TIMEOUT, True),
        (("infrastructure",), Cause.ERROR, False),
        (("error",), Cause.DIED, False),
        ((), Cause.START_TIMEOUT, False),
        ((), Cause.PREEMPTED, True),
    ],
)
def test_only_what_retry_names_is_tried_again(
    store: Store, add_job: AddJob, on: tuple[RetryOn, ...], cause: Cause, tried: bool
):
    add_job("first", retry=Retry(max_attempts=9, on=on))
    job = end(store, 1, cause)
    assert job.state is (JobState.QUEUED if tried else JobState.FAILED)
    if not tried:
        assert job.error == f"oh; retry.on does not name {cause.kind}"


def test_a_preempted_job_goes_on_at_once_and_for_nothing(store: Store, add_job: AddJob, clock: Clock):
    add_job("first", retry=Retry(max_attempts=1, max_infrastructure=1))
    for number in range(1, 8):
        job = end(store, number, Cause.PREEMPTED)
        assert (job.state, job.not_before) == (JobState.QUEUED, None)
    assert (job.errors_used, job.infrastructure_used) == (0, 0)
    assert kinds(store, "first")[-1] is EventKind.PREEMPTED
    assert store.queued()[0].preempted == 7


def test_a_retry_by_hand_begins_to_count_anew(store: Store, add_job: AddJob):
    add_job("first", retry=Retry(max_attempts=1, max_infrastructure=1))
    assert end(store, 1, Cause.ERROR).state is JobState.FAILED
    job = store.retry("first", "ada")
    assert (job.errors_used, job.infrastructure_used) == (0, 0)
    assert end(store, 2, Cause.DIED).state is JobState.QUEUED
    assert end(store, 3, Cause.ERROR).state is JobState.FAILED


@pytest.mark.parametrize("failures", [2, 50, 5000])
def test_the_backoff_grows_to_an_hour_and_no_further(
    store: Store, add_job: AddJob, clock: Clock, failures: int
):
    job = dataclasses.replace(
        add_job("first", retry=Retry(max_attempts=9999, backoff=10)), errors_used=failures - 1
    )
    then = after(job, AttemptState.FAILED, Cause.ERROR, clock.now)
    assert then.not_before is not None
    assert (then.not_before - clock.now).total_seconds() == min(LONGEST_WAIT, 10 * 2 ** (failures - 2))
