"""`why`: what a job waits for, or how it came to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobs.cli import arguments, output, service, sweeps
from jobs.cli.jobs import in_words, limits, state_of, why_of

if TYPE_CHECKING:
    from jobs.store import Attempt, Job
    from jobs.why import Why


@click.command()
@arguments.job_argument()
@output.json_option
def why(job: str, as_json: bool) -> None:
    """Say why a job does not start, or how it ended.

    For one that waits: what blocks it (held, dependency, not-before, drain, quota, resources, priority), its
    position, the jobs that have to end first, and when it may start.
    """
    store = service.store()
    found = store.job(job)
    reason = why_of(found)
    attempts = store.attempts(found.id)
    if as_json:
        output.emit_json(_plain(found, reason, attempts))
        return
    pairs: list[tuple[str, object]] = [("job", found.id), ("state", state_of(found))]
    if reason is not None:
        pairs += [("waits for", in_words(reason)), ("blocked by", reason.blocked)]
        if reason.position is not None:
            pairs.append(("position", reason.position))
        if reason.waits_for:
            pairs.append(("behind", _names(reason.waits_for)))
    elif found.state == "running":
        pairs += _running(found)
    elif found.error:
        pairs.append(("because", found.error))
    pairs += limits(found)
    ended = [attempt for attempt in attempts if attempt.finished is not None]
    if ended:
        pairs.append(("last attempt", _told(ended[-1])))
    output.fields(pairs)


def _running(job: Job) -> list[tuple[str, object]]:
    """Nothing keeps it; perhaps somebody wants it to stop."""
    if job.trials is not None:
        return [("now", sweeps.progress(job, service.store().tally([job.id])[job.id]))]
    events = service.store().events(job.id)
    if job.stopped is not None:
        return [("stops", f"early, as {job.stopped}; it writes a checkpoint first")]
    for kind, words in (("cancel-requested", "cancelled"), ("yield-requested", "asked to make way")):
        asked = [event for event in events if event.kind == kind and event.attempt in (None, job.attempt)]
        if asked and (job.cancel_requested if kind == "cancel-requested" else job.yield_requested):
            why = asked[-1].detail.get("reason")
            told = f"{words} by {asked[-1].actor}" + (f": {why}" if why else "")
            return [("stops", f"{told}; it writes a checkpoint first")]
    return [("now", f"attempt {job.attempt} is under way")]


def _told(attempt: Attempt) -> str:
    """`attempt 2 lost (died, infrastructure): the node went away`."""
    cause = f" ({attempt.cause}, {attempt.cause.kind})" if attempt.cause else ""
    error = f": {output.shorten(attempt.error, 300)}" if attempt.error else ""
    return f"attempt {attempt.number} {attempt.state}{cause}{error}"


def _names(jobs: tuple[str, ...]) -> str:
    more = f" and {len(jobs) - 10} more" if len(jobs) > 10 else ""
    return ", ".join(jobs[:10]) + more


def _plain(job: Job, reason: Why | None, attempts: list[Attempt]) -> dict[str, Any]:
    return {
        "job": job.id,
        "state": job.state,
        "why": reason,
        "error": job.error,
        "retry": job.retry,
        "errors_used": job.errors_used,
        "infrastructure_used": job.infrastructure_used,
        "after": service.store().dependencies(job.id),
        "attempts": [
            {
                "attempt": attempt.number,
                "state": attempt.state,
                "cause": attempt.cause,
                "kind": attempt.cause.kind if attempt.cause else None,
                "error": attempt.error,
            }
            for attempt in attempts
        ],
    }
