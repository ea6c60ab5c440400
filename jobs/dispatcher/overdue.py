"""Attempts that were to stop or to start and do not: what a dispatcher ends by force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.dispatcher.parts import Timings
from jobs.store import AttemptState, Cause, Running


@dataclass(frozen=True)
class Verdict:
    """What is recorded of an attempt that is killed."""

    state: AttemptState
    cause: Cause
    error: str


class Overdue:
    """For how long active attempts have been asked to stop, been starting or been training.

    It counts what this dispatcher has seen by its own monotonic clock. The moments in the database are no
    help: a clock that jumps by an hour would end at once what has begun a minute ago, and a job that is out
    of time may not be tried again. A new dispatcher begins to count anew, which makes it patient, not wrong:
    attempts keep their time limits by themselves, those that cannot are what this is for.
    """

    def __init__(self, timings: Timings):
        self._timings = timings
        self._since: dict[tuple[str, str], float] = {}

    def broken(self, active: Sequence[Running], now: float) -> list[tuple[Running, Verdict]]:
        """Those that have had their time, `now` in monotonic seconds."""
        doing = {(job.actor, _doing(job)): job for job in active}
        self._since = {key: self._since.get(key, now) for key in doing}
        found = []
        for (actor, what), job in doing.items():
            verdict = self._verdict(job, what, now - self._since[actor, what])
            if verdict is not None:
                found.append((job, verdict))
        return found

    def _verdict(self, job: Running, what: str, seconds: float) -> Verdict | None:
        grace, start = self._timings.cancel_grace, self._timings.start_timeout
        if what == "stop" and job.host is None:
            # Its process hears of nothing before it has imported all it needs, and there is nothing to keep.
            return Verdict(AttemptState.CANCELLED, Cause.KILLED, "was cancelled, and killed, as it came up")
        if what == "stop" and seconds >= grace:
            error = f"did not stop within {grace:.0f} s of its cancel and was killed"
            return Verdict(AttemptState.CANCELLED, Cause.KILLED, error)
        if what == "yield" and seconds >= grace:
            error = f"did not make way within {grace:.0f} s and was killed"
            return Verdict(AttemptState.PREEMPTED, job.yield_cause or Cause.PREEMPTED, error)
        if what == "start" and seconds >= start:
            error = (
                f"its ranks did not start within {start:.0f} s: "
                "the cluster had no room for them, or they hung"
            )
            return Verdict(AttemptState.LOST, Cause.START_TIMEOUT, error)
        if what == "train" and job.time_limit is not None and seconds >= job.time_limit + grace:
            error = f"trained for {seconds:.0f} s, longer than its time_limit, and was killed"
            return Verdict(AttemptState.FAILED, Cause.TIMEOUT, error)
        return None


def _doing(job: Running) -> str:
    if job.cancel_requested is not None:
        return "stop"
    if job.yield_requested is not None:
        return "yield"
    return "start" if job.started is None else "train"
