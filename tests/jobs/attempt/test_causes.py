"""Whose matter the end of an attempt is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from jobs.attempt import Tools, Work
from jobs.store import Cause, CauseKind, EventKind, JobState, Store, StoreUnavailable

from .conftest import Training


class LostRank(Exception):
    """Stands for what training raises when the cluster takes a rank away."""


@pytest.mark.parametrize(
    ("error", "cause", "used"),
    [
        (RuntimeError("a bug"), Cause.ERROR, (1, 0)),
        (LostRank("node-3 is gone"), Cause.RANK_LOST, (0, 1)),
        (StoreUnavailable("the database does not answer"), Cause.UNREACHABLE, (0, 1)),
    ],
    ids=["error", "rank", "database"],
)
def test_only_errors_of_training_use_up_its_attempts(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    tools: Tools,
    store: Store,
    error: Exception,
    cause: Cause,
    used: tuple[int, int],
):
    def fails(training: Training) -> str:
        training.progress(1)
        raise error

    training.script = fails
    blaming = dataclasses.replace(
        tools, infrastructure=lambda error: Cause.RANK_LOST if isinstance(error, LostRank) else None
    )
    attempt(submit("first"), tools=blaming).run()
    job = store.job("first")
    assert (job.state, job.errors_used, job.infrastructure_used) == (JobState.QUEUED, *used)
    assert store.attempts("first")[0].cause is cause
    told = next(event for event in store.events("first") if event.kind is EventKind.FINISHED)
    assert told.actor == "attempt"
    assert (told.detail["cause"], told.detail["kind"]) == (str(cause), str(cause.kind))


def test_every_cause_has_a_kind():
    assert {cause.kind for cause in Cause} == set(CauseKind)
