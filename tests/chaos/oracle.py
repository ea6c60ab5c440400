"""What must be true once a storm is over, read from the database and the artifacts alone."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.config import from_mapping
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import AttemptState, EventKind, Job, JobState, NotFound, Store
from textvae import checkpoint
from textvae.artifacts import Artifacts
from textvae.checkpoint import CheckpointError

from .ground import Ground, end, until
from .launcher import Processes
from .serving import FileServer
from .training import STEPS, chain, fingerprint, uninterrupted, weights_of


@dataclass(frozen=True)
class Expected:
    """A job that was submitted, and what it may end as."""

    id: str
    seed: int
    epochs: int
    real: bool = False  # trained by textvae.train
    # A job of the same training that nobody touches; without it one of a single rank is run.
    like: str | None = None
    may_be: frozenset[JobState] = frozenset({JobState.SUCCEEDED})


@contextmanager
def one_attempt(ground: Ground) -> Iterator[Store]:
    """A job that trains while the block lasts, and must end after it with its first attempt."""
    ground.attempt_order["pace"] = 0.1
    dispatcher = ground.dispatcher()
    assert ground.client("submit", str(ground.config("stub", 3, 3)), "--id", "job").wait() == 0
    store = Store(ground.settings.database_url)
    until(lambda: store.checkpoints("job"), "a checkpoint")
    yield store
    until(lambda: store.job("job").state.final, "the job to end")
    ground.settle(store)
    end(dispatcher)
    assert problems(store, ground.settings, [Expected("job", 3, 3)]) == []
    assert [attempt.number for attempt in store.attempts("job")] == [1]
    store.close()


def problems(
    store: Store,
    settings: Settings,
    jobs: Iterable[Expected],
    processes: Processes | None = None,
    *,
    served: Mapping[str, int] | None = None,
) -> list[str]:
    """Everything that is not as it must be, in words; nothing is expected.

    `served` is the version of each model that is served; by default what a `FileServer` serves.
    """
    if served is None:
        served = {model: version["version"] for model, version in FileServer(settings.home).current().items()}
    artifacts = Artifacts(settings.storage)
    found: list[str] = []
    known = {job.id for job in store.jobs() if job.trials is None}  # a sweep itself trains nothing
    jobs = list(jobs)
    found += [f"job {id} was never submitted" for id in sorted(known - {job.id for job in jobs})]
    for expected in jobs:
        try:
            job = store.job(expected.id, exact=True)
        except NotFound:
            found.append(f"job {expected.id} is lost")
            continue
        found += [
            f"job {job.id}: {problem}" for problem in _of_job(store, artifacts, job, expected, settings)
        ]
    found += _of_models(store, artifacts, {job.id for job in jobs if job.real})
    want = {version.model: version.version for version in store.served()}
    found += [] if served == want else [f"served are {served}, promoted {want}"]
    if settings.redis_url is not None:
        found += _of_redis(store, settings)
    if processes is not None:
        found += [f"{name} still runs" for name in sorted(processes.names() | processes.ranks())]
    return found


def _of_job(
    store: Store, artifacts: Artifacts, job: Job, expected: Expected, settings: Settings
) -> Iterable[str]:
    if not job.state.final:
        yield f"stuck: {job.state}"
    elif job.state not in expected.may_be:
        yield f"ended as {job.state}: {job.error}"
    attempts = store.attempts(job.id)
    if [attempt.number for attempt in attempts] != list(range(1, job.attempt + 1)):
        yield f"has attempts {[attempt.number for attempt in attempts]}, and counts {job.attempt}"
    yield from (f"attempt {a.number} is {a.state} still" for a in attempts if a.state.active)
    succeeded = [attempt.number for attempt in attempts if attempt.state is AttemptState.SUCCEEDED]
    if succeeded != ([job.attempt] if job.state is JobState.SUCCEEDED else []):
        yield f"is {job.state} with attempts {succeeded} succeeded: completed twice, or not at all"
    yield from _of_events(store, job)
    yield from _of_resumes(store, job)
    for recorded in store.checkpoints(job.id):
        try:
            folder = artifacts.fetch(recorded.location, Path("unused"))
            if expected.real:
                right = checkpoint.load(folder, digest=recorded.digest).position.step == recorded.step
            else:
                checkpoint.verify(folder, digest=recorded.digest)
                weights = {"step": recorded.step, "state": chain(expected.seed, recorded.step)}
                right = weights_of(folder) == weights
        except (CheckpointError, RuntimeError) as error:
            yield f"checkpoint {recorded.location} is recorded and does not load: {error}"
            continue
        if not right:
            yield f"checkpoint {recorded.location} has not the weights of step {recorded.step}"
    if job.state is JobState.SUCCEEDED:
        epochs = [report.epoch for report in store.reports(job.id)]
        if epochs != list(range(1, expected.epochs + 1)):
            yield f"succeeded after the epochs {epochs}"
        newest = store.checkpoints(job.id)[:1]
        if not newest or newest[0].epoch != expected.epochs:
            yield "succeeded without a checkpoint of its last epoch"
        elif not expected.real and newest[0].step != expected.epochs * STEPS:
            yield f"succeeded after {newest[0].step} steps"
        elif expected.real:
            yield from _of_weights(store, artifacts, job, expected, newest[0].location, settings)


def _of_weights(
    store: Store, artifacts: Artifacts, job: Job, expected: Expected, location: str, settings: Settings
) -> Iterable[str]:
    """However often it was killed, a real job ends with the weights of one that nobody touched."""
    if expected.like is not None:
        last = store.checkpoints(expected.like)[0].location
        whole = fingerprint(artifacts.fetch(last, Path("unused")))
    else:
        config = from_mapping(store.config(job.id)).training_config().model_dump(mode="json")
        with tempfile.TemporaryDirectory() as scratch:
            whole = uninterrupted(config, settings.data, Path(scratch))
    if fingerprint(artifacts.fetch(location, Path("unused"))) != whole:
        yield f"has in {location} other weights than without interruptions"


def _of_resumes(store: Store, job: Job) -> Iterable[str]:
    """An attempt goes on from the newest checkpoint that was recorded before it: no more is done twice."""
    made = store.checkpoints(job.id, deleted=True)
    by_id = {checkpoint.id: checkpoint for checkpoint in made}
    for attempt in store.attempts(job.id):
        before = max((c.step for c in made if c.attempt < attempt.number), default=0)
        resumed = by_id[attempt.resumed_from].step if attempt.resumed_from is not None else 0
        if attempt.started is not None and resumed != before:
            yield f"attempt {attempt.number} went on from step {resumed}, not {before}"


def _of_events(store: Store, job: Job) -> Iterable[str]:
    """The history must tell of each transition once."""
    told = Counter((event.kind, event.attempt) for event in store.events(job.id))
    for number in range(1, job.attempt + 1):
        for kind in (EventKind.CLAIMED, EventKind.FINISHED):
            if told[kind, number] != 1:
                yield f"attempt {number} has {told[kind, number]} events {kind}"
    for kind, times in ((EventKind.SUBMITTED, 1), (EventKind.SUCCEEDED, job.state is JobState.SUCCEEDED)):
        count = sum(n for (k, _), n in told.items() if k is kind)
        if count != int(times):
            yield f"has {count} events {kind}"


def _of_models(store: Store, artifacts: Artifacts, real: Collection[str]) -> Iterable[str]:
    makers: Counter[str] = Counter()
    for model in store.models():
        for version in store.versions(model.name):
            makers[version.job] += 1
            try:
                folder = artifacts.fetch(version.location, Path("unused"))
                (checkpoint.load if version.job in real else checkpoint.verify)(folder, digest=version.digest)
            except (CheckpointError, RuntimeError) as error:
                yield f"version {version.version} of {model.name} does not load: {error}"
        promotions = store.promotions(model.name)
        if not promotions or promotions[-1].version != model.current:
            yield f"model {model.name} serves version {model.current}, which was not promoted last"
    yield from (f"job {job} made {count} versions" for job, count in makers.items() if count > 1)


def _of_redis(store: Store, settings: Settings) -> Iterable[str]:
    queue = Queue(settings.redis_url)
    try:
        waiting = [job.id for job in store.queued()]
        if sorted(queue.entries()) != sorted(waiting):
            yield f"the queue holds {sorted(queue.entries())}, waiting are {sorted(waiting)}"
    finally:
        queue.close()
