"""A job's states as they should be, small enough to be checked by reading: what each action makes of a job.

It is written from the documentation, not from the store, and knows neither SQL nor Redis. Jobs of it are
tried again at once, after one error and after one failure of infrastructure in a row, not after a time-out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FINAL = ("succeeded", "failed", "cancelled")
ERRORS, INFRASTRUCTURE = 2, 2  # that end a job


@dataclass(frozen=True)
class Model:
    """One job."""

    state: str = "queued"
    attempt: int = 0
    cancelling: bool = False
    yielding: bool = False
    held: bool = False
    errors: int = 0
    infrastructure: int = 0

    @property
    def waits(self) -> bool:
        """Whether it belongs into the queue."""
        return self.state == "queued" and not self.held


class Refused(Exception):
    """The action is refused, and changes nothing; the message names the error."""


ENDS = ("succeed", "error", "bad config", "time-out", "die", "make way", "stop")
ACTIONS = ("open", "start", "checkpoint", *ENDS, "late end", "cancel", "retry", "hold", "release", "yield")


def after(job: Model, action: str) -> Model:
    """The job after an action; the same job if the action changes nothing. Raises Refused."""
    active = job.state == "running"
    if (action in ("start", "checkpoint", *ENDS) and not active) or action == "late end":
        raise Refused("StaleAttempt")
    if action in ENDS:
        return _ended(replace(job, yielding=False), action)
    if action == "open" and job.waits:
        return replace(job, state="running", attempt=job.attempt + 1, yielding=False)
    if action == "checkpoint":
        return replace(job, infrastructure=0)
    if action == "cancel" and job.state not in FINAL:
        return replace(job, cancelling=True, state="running" if active else "cancelled")
    if action == "retry":
        if job.state not in ("failed", "cancelled"):
            raise Refused("Conflict")
        return Model(attempt=job.attempt)
    if action in ("hold", "release"):
        if job.state in FINAL:
            raise Refused("Conflict")
        return replace(job, held=action == "hold")
    if action == "yield" and active and not job.cancelling:
        return replace(job, yielding=True)
    return job


def _ended(job: Model, how: str) -> Model:
    if how == "succeed":
        return replace(job, state="succeeded")
    if how == "stop" or job.cancelling:
        return replace(job, state="cancelled")
    if how == "make way":
        return replace(job, state="queued")
    if how == "die":
        failures = job.infrastructure + 1
        return replace(
            job, infrastructure=failures, state="queued" if failures < INFRASTRUCTURE else "failed"
        )
    errors = job.errors + 1
    again = how == "error" and errors < ERRORS
    return replace(job, errors=errors, state="queued" if again else "failed")
