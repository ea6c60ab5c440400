"""Attempts with real ranks that are frozen, replaced, killed or left behind on a real Ray: none stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psutil
import pytest

from cluster import launching
from jobs.config import from_mapping
from jobs.dispatcher import Timings
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Attempt, AttemptState, Cause, JobState
from jobs.verify import Disagreement, Kind, Parts, verify
from jobs.wiring import RayLauncher
from textvae import checkpoint
from textvae.artifacts import ArtifactError, Artifacts
from textvae.checkpoint import CheckpointError

from ..chaos.ground import until, writable
from ..local_ray import LocalRay
from ..marks import takes_minutes
from ..on_ray import dispatching, make_dispatcher, nothing_left, processes_of

pytestmark = pytest.mark.ray

START = 150  # seconds until an attempt trains, on a machine that is busy otherwise


@pytest.fixture
def end_dispatcher(settings: Settings, service: Service, local_ray: LocalRay) -> Iterator[Callable[[], None]]:
    """The service has a dispatcher until this is called. Its jobs must leave nothing of them."""
    with dispatching(service, settings) as end:
        yield end
    launching.resources()  # as the next dispatcher asks: it gives back what dead attempts had reserved
    jobs = [job.id for job in service.store.jobs()]
    nothing_left(service, jobs, local_ray.temp_dir, "after the test")


@pytest.fixture
def submit(
    service: Service, small_config: dict[str, Any], end_dispatcher: Callable[[], None]
) -> Callable[[str, int], None]:
    """Submits a job that trains for long on so many ranks."""

    def submit(id: str, ranks: int) -> None:
        training = {**small_config["training"], "epochs": 10_000, "keep_last": 2}
        more = {"name": id, "resources": {"ranks": ranks}, "retry": {"backoff": 0}}
        service.submit(from_mapping({**small_config, **more, "training": training}), id=id)

    return submit


def trains(service: Service, job: str, number: int = 1) -> None:
    """Wait until that attempt has recorded a checkpoint."""
    recorded = service.store.checkpoints
    until(lambda: any(c.attempt == number for c in recorded(job)), f"{job}-{number} to train", START, 0.05)


def attempt_of(service: Service, job: str, number: int) -> Attempt:
    """That attempt, once there is one."""

    def find() -> Attempt | None:
        return next((each for each in service.store.attempts(job) if each.number == number), None)

    found: Attempt = until(find, f"{job}-{number}", 30, 0.05)
    return found


@takes_minutes
def test_a_frozen_attempt_is_killed_with_its_ranks_and_the_next_one_goes_on(
    service: Service,
    settings: Settings,
    submit: Callable[[str, int], None],
    end_dispatcher: Callable[[], None],
):
    store = service.store
    submit("frozen", 2)  # all of Ray's CPUs: there is no second attempt before nothing is left of the first
    trains(service, "frozen")
    own, others = processes_of("frozen-1")
    own.suspend()
    service.queue.release("frozen", 1)  # as its lease would end by itself, 20 s later
    end_dispatcher()  # attempts need its patience while they come up
    impatient = make_dispatcher(service, settings, Timings(silence=1))

    def ended() -> bool:
        impatient.listen(time.monotonic())
        return not store.attempts("frozen")[0].state.active

    until(ended, "the frozen attempt to be ended", pause=0.2)
    first = store.attempts("frozen")[0]
    assert (first.state, first.cause) == (AttemptState.LOST, Cause.LEASE_LOST)
    assert first.error is not None and "frozen" in first.error
    assert launching.state("frozen-1") == "dead"
    assert psutil.wait_procs([own, *others], timeout=10)[1] == []

    with dispatching(service, settings):
        trains(service, "frozen", 2)
        resumed = attempt_of(service, "frozen", 2).resumed_from
        assert resumed is not None and store.checkpoint(resumed).attempt == 1
        service.cancel("frozen")
        assert service.wait("frozen", 60).state is JobState.CANCELLED


def test_an_attempt_that_has_lost_its_job_ends_itself_and_its_ranks(
    service: Service, settings: Settings, submit: Callable[[str, int], None]
):
    submit("lost", 2)
    trains(service, "lost")
    own, others = processes_of("lost-1")
    service.finish("lost", 1, AttemptState.LOST, by="another", cause=Cause.DIED)
    began = time.monotonic()
    assert psutil.wait_procs([own, *others], timeout=5)[1] == []
    print(f"all of it was gone {time.monotonic() - began:.2f} s after it had lost its job")
    assert "ending this process and its ranks" in settings.attempt_log("lost", 1).read_text()
    attempt_of(service, "lost", 2)
    until(lambda: launching.state("lost-2") == "alive", "the next attempt", pause=0.05)
    service.cancel("lost")
    assert service.wait("lost", 60).state is JobState.CANCELLED


@takes_minutes
def test_verify_ends_what_runs_still_and_records_what_is_dead(
    service: Service,
    settings: Settings,
    submit: Callable[[str, int], None],
    end_dispatcher: Callable[[], None],
):
    store = service.store
    parts = Parts(
        service=service,
        artifacts=Artifacts(settings.storage),
        check=checkpoint.verify,
        broken=(CheckpointError, ArtifactError),
        cache=settings.cache,
        cluster=RayLauncher(settings),
    )

    def found(*, repair: bool = False) -> list[Disagreement]:
        """About attempts: a kill may leave more to find, as it may come at any moment of a checkpoint's."""
        return [one for one in verify(parts, repair=repair) if one.kind in (Kind.DEAD, Kind.ZOMBIE)]

    for id in ("dead", "stray"):
        submit(id, 1)
    for id in ("dead", "stray"):
        trains(service, id)
    end_dispatcher()  # which would do the same as verify
    assert found() == []

    dead, _ = processes_of("dead-1")
    stray, its = processes_of("stray-1")
    dead.kill()
    until(lambda: launching.state("dead-1") == "dead", "Ray to notice", pause=0.05)
    assert found() == []  # it holds its lease: it may be there after all
    service.queue.release("dead", 1)  # as it would end by itself, 20 s later

    def frozen() -> bool:
        stray.suspend()
        if writable(settings.home / "textvae.db"):
            return True
        stray.resume()
        return False

    until(frozen, "a moment between two writes")  # else it would end itself
    service.finish("stray", 1, AttemptState.LOST, by="another", cause=Cause.DIED)
    dies = Disagreement(Kind.DEAD, "dead-1", "is active, but has no process", "record it as lost")
    assert found() == [dies]  # the other one may be about to go
    now = store.clock
    store.clock = lambda: now() + timedelta(seconds=61)
    runs = Disagreement(Kind.ZOMBIE, "stray-1", "runs still; its attempt has ended", "kill it")
    assert found() == [runs, dies]
    assert stray.status() == psutil.STATUS_STOPPED

    assert found(repair=True) == [replace(runs, repaired=True), replace(dies, repaired=True)]
    assert found() == []
    assert psutil.wait_procs([stray, *its], timeout=10)[1] == []
    (attempt,) = store.attempts("dead")
    assert (attempt.state, attempt.cause) == (AttemptState.LOST, Cause.DIED)
    assert service.queue.entries() == {"dead": 2, "stray": 2}
