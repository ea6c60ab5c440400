"""Elastic jobs at the dispatcher: they start with what fits, shrink with the cluster, grow with it again."""

from __future__ import annotations

import itertools

import pytest

from jobs.config import JobConfig
from jobs.dispatcher import Capacity
from jobs.scheduling import Node
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, EventKind, Job, JobState, Store

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock
from .conftest import AddJob, At, Cluster, running


def nodes(*free: float, of: float) -> Capacity:
    """Machines with so many CPUs free each, `of` so many in all."""
    return Capacity(of, 0, sum(free), 0, tuple(Node(cpus, 0) for cpus in free) if len(free) > 1 else ())


@pytest.fixture
def wide(store: Store, config: JobConfig, settings: Settings) -> Job:
    settings.create_home()
    settings.scheduling_file.write_text("growing: {patience: 30, uninterrupted: 100}\n")
    job, _ = store.add_job(
        "wide",
        config=config.model_dump(mode="json"),
        name="reviews",
        owner="ada",
        priority=0,
        ranks=1,
        cpus=1,
        gpus=0,
        max_ranks=8,
    )
    return job


def begin(store: Store, number: int, job: str = "wide") -> None:
    store.join_attempt(job, number, host="here")
    store.start_attempt(job, number)


def finish(
    service: Service, cluster: Cluster, number: int, state: AttemptState, cause: Cause | None = None
) -> None:
    service.finish("wide", number, state, by="attempt", cause=cause)
    cluster.alive.discard(f"wide-{number}")


def ranks(store: Store) -> list[int]:
    return [attempt.ranks for attempt in store.attempts("wide")]


def asked(store: Store) -> list[str]:
    return [job.id for job in store.running() if job.yield_requested is not None]


def test_a_lost_node_shrinks_it_and_its_return_lets_it_grow(
    dispatcher: At, service: Service, cluster: Cluster, wide: Job, clock: Clock
):
    store = service.store
    cluster.capacity = nodes(2, 2, of=4)
    dispatcher.step()
    assert ranks(store) == [4]
    begin(store, 1)
    cluster.capacity = nodes(0, of=2)  # one is gone, and with it two ranks
    finish(service, cluster, 1, AttemptState.FAILED, Cause.RANK_LOST)
    dispatcher.step()
    assert ranks(store) == [4]  # its other ranks are still counted: it would get more in a moment
    cluster.capacity = nodes(2, of=2)
    dispatcher.step()
    assert ranks(store) == [4, 2]
    begin(store, 2)
    cluster.capacity = nodes(0, of=2)
    clock.forward(1000)
    dispatcher.step()
    assert asked(store) == []
    cluster.capacity = nodes(0, 2, of=4)  # it is back
    dispatcher.step()
    clock.forward(29)
    dispatcher.step()
    assert asked(store) == []
    clock.forward(6)  # it is looked at again every five seconds
    dispatcher.step()
    assert asked(store) == ["wide"]
    (event,) = [e for e in store.events("wide") if e.kind is EventKind.YIELD_REQUESTED]
    assert event.detail["reason"] == "there is room for 4 ranks"
    assert store.check_attempt("wide", 2).yield_cause is Cause.RESIZED
    cluster.capacity = nodes(2, 2, of=4)
    finish(service, cluster, 2, AttemptState.PREEMPTED, Cause.RESIZED)
    dispatcher.step()
    assert ranks(store) == [4, 2, 4]
    begin(store, 3)
    cluster.capacity = nodes(0, 0, of=4)
    clock.forward(10_000)
    dispatcher.step(3)
    assert asked(store) == [] and ranks(store) == [4, 2, 4]  # there is nothing to gain
    assert [a.cause for a in store.attempts("wide")] == [Cause.RANK_LOST, Cause.RESIZED, None]
    job = store.job("wide")
    assert (job.errors_used, job.infrastructure_used) == (0, 1)
    assert store.running()[0].preempted == 0


def test_it_does_not_grow_again_before_it_has_trained_for_a_while(
    dispatcher: At, service: Service, cluster: Cluster, wide: Job, clock: Clock
):
    """Whatever the cluster says: each attempt comes as far as `uninterrupted` seconds bring it."""
    store = service.store
    cluster.capacity = nodes(1, of=1)
    opened = []
    for number in range(1, 4):
        dispatcher.step()
        opened.append(clock.now)
        begin(store, number)
        cluster.capacity = nodes(3, of=4)  # there seems to be room, always
        while not asked(store):
            dispatcher.step()
            clock.forward(10)
        cluster.capacity = nodes(1, of=1)  # and whenever it makes way for itself it is gone again
        finish(service, cluster, number, AttemptState.PREEMPTED, Cause.RESIZED)
    assert ranks(store) == [1, 1, 1]
    assert min((b - a).total_seconds() for a, b in itertools.pairwise(opened)) >= 100


def test_it_grows_into_no_room_that_somebody_waits_for(
    dispatcher: At, service: Service, cluster: Cluster, wide: Job, add_job: AddJob, clock: Clock
):
    store = service.store
    cluster.capacity = nodes(2, of=2)
    add_job("large", owner="bob", cpus=4)
    dispatcher.step()
    assert ranks(store) == [2]  # of a job that is larger than the whole cluster nobody need think
    begin(store, 1)
    cluster.capacity = nodes(2, of=4)  # now the large one could start if all of it were free
    clock.forward(1000)
    dispatcher.step()
    clock.forward(31)
    dispatcher.step(2)
    assert asked(store) == []
    service.cancel("large", by="bob")
    dispatcher.step()
    clock.forward(31)
    dispatcher.step()
    assert asked(store) == ["wide"]


@pytest.mark.parametrize("how", ["drained", "held"])
def test_it_does_not_make_way_where_it_would_not_start_again(
    dispatcher: At, service: Service, cluster: Cluster, wide: Job, clock: Clock, how: str
):
    store = service.store
    cluster.capacity = nodes(1, of=1)
    dispatcher.step()
    begin(store, 1)
    cluster.capacity = nodes(3, of=4)
    if how == "drained":
        store.drain("ada")
    else:
        store.hold("wide", "ada")
    clock.forward(200)
    dispatcher.step()
    clock.forward(31)
    dispatcher.step(2)
    assert asked(store) == []
    service.drain(False)
    service.release("wide")
    dispatcher.step(2)
    assert asked(store) == ["wide"]


def test_one_that_does_not_make_way_for_itself_is_killed_for_that(
    dispatcher: At, service: Service, cluster: Cluster, wide: Job
):
    store = service.store
    cluster.capacity = nodes(1, of=1)
    dispatcher.step()
    begin(store, 1)
    store.request_yield("wide", "test", cause=Cause.RESIZED)
    dispatcher.step()
    dispatcher.later(31)
    assert cluster.stopped == ["wide-1"]
    assert [a.cause for a in store.attempts("wide")] == [Cause.RESIZED, None]
    assert store.job("wide").state is JobState.RUNNING and running(store) == ["wide-2"]


def test_it_waits_for_as_many_ranks_as_it_needs(
    dispatcher: At, service: Service, cluster: Cluster, wide: Job
):
    store = service.store
    cluster.capacity = nodes(0.5, 0.5, of=4)
    dispatcher.step()
    assert ranks(store) == []
    cluster.capacity = nodes(0.5, 1.5, of=4)
    dispatcher.step()
    assert ranks(store) == [1]
