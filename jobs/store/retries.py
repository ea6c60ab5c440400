"""Where a job goes when an attempt of it ends: pure, so that every case of it can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.store.states import AttemptState, Cause, CauseKind, JobState
from jobs.store.values import Job

LONGEST_WAIT = 3600.0  # seconds before a retry, however often it failed before


@dataclass(frozen=True)
class After:
    """What becomes of the job."""

    state: JobState
    not_before: datetime | None  # of the next attempt
    errors_used: int
    infrastructure_used: int
    why: str | None = None  # it is not tried again, if the cause alone does not say so


def after(job: Job, state: AttemptState, cause: Cause | None, now: datetime) -> After:
    """What becomes of `job`, whose attempt ends in `state` because of `cause`."""
    errors, infrastructure = job.errors_used, job.infrastructure_used
    if state is AttemptState.SUCCEEDED:
        return After(JobState.SUCCEEDED, None, errors, infrastructure)
    kind = kind_of(state, cause)
    if kind is CauseKind.CANCELLED or job.cancel_requested is not None:
        return After(JobState.CANCELLED, None, errors, infrastructure)
    if kind is CauseKind.PREEMPTION:
        return After(JobState.QUEUED, None, errors, infrastructure)
    if kind is CauseKind.INFRASTRUCTURE:
        infrastructure += 1
        used, most = infrastructure, job.retry.max_infrastructure + 1
        why = f"infrastructure failed {used} times in a row, without a new checkpoint in between"
    else:
        errors += 1
        used, most = errors, job.retry.max_attempts
        why = None
    if cause is Cause.BAD_CONFIG:
        return After(JobState.FAILED, None, errors, infrastructure)
    if kind not in job.retry.on:
        why = f"retry.on does not name {kind}"
        return After(JobState.FAILED, None, errors, infrastructure, why)
    if used >= most:
        return After(JobState.FAILED, None, errors, infrastructure, why)
    return After(JobState.QUEUED, _next(now, job.retry.backoff, used), errors, infrastructure)


def kind_of(state: AttemptState, cause: Cause | None) -> CauseKind:
    """The kind of the cause; without one, the state says whose matter it was."""
    if cause is not None:
        return cause.kind
    return {
        AttemptState.CANCELLED: CauseKind.CANCELLED,
        AttemptState.LOST: CauseKind.INFRASTRUCTURE,
        AttemptState.PREEMPTED: CauseKind.PREEMPTION,
    }.get(state, CauseKind.ERROR)


def _next(now: datetime, backoff: float, failures: int) -> datetime | None:
    """When the retry after so many failures may start: the first at once, then `backoff`, twice that, ..."""
    if failures < 2 or backoff == 0:
        return None
    # The exponent is bounded too: 2.0 ** 1100 is no float.
    return now + timedelta(seconds=min(LONGEST_WAIT, backoff * 2.0 ** min(failures - 2, 40)))
