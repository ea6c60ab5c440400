"""The policy at work: the real store and queue, attempts that make way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

import jobs.outlook as outlook_module
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.dispatcher.starting import Starter
from jobs.outlook import Outlook, explainer
from jobs.queue import Queue
from jobs.scheduling import Blocked, Node, Policy
from jobs.scheduling import Cluster as Room
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, Ended, EventKind, JobState, Store

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock
from .conftest import AddJob, At, Cluster, end, running


def begin(store: Store, *jobs: str, number: int = 1) -> None:
    """The ranks of their attempts are there."""
    for job in jobs:
        store.join_attempt(job, number, host="here")
        store.start_attempt(job, number)


def rules(settings: Settings, text: str) -> None:
    settings.create_home()
    settings.scheduling_file.write_text(text)


def test_a_higher_class_displaces_a_lower_one_which_goes_on_later(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    store = service.store
    for id in ("low-1", "low-2"):
        add_job(id, cpus=2)
    dispatcher.step()
    begin(store, "low-1", "low-2")
    clock.forward(200)  # long enough that they may be displaced
    add_job("high", cpus=2, priority=100)
    dispatcher.step()
    assert running(store) == ["low-1-1", "low-2-1"]
    clock.forward(31)  # the high one has waited as long as it must
    dispatcher.step()
    asked = [job.id for job in store.running() if job.yield_requested is not None]
    assert len(asked) == 1  # one is enough
    (event,) = [e for e in store.events(asked[0]) if e.kind is EventKind.YIELD_REQUESTED]
    assert event.detail["reason"] == "job high is of a higher class"
    dispatcher.step(2)
    assert len([job for job in store.running() if job.yield_requested is not None]) == 1
    service.finish(asked[0], 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
    cluster.alive.discard(f"{asked[0]}-1")
    dispatcher.step()
    assert "high-1" in running(store)
    assert store.job(asked[0]).state is JobState.QUEUED
    begin(store, "high")
    clock.forward(1000)
    dispatcher.step(3)  # the displaced one displaces nobody
    assert [job.id for job in store.running() if job.yield_requested is not None] == []
    end(service, cluster, "high")
    dispatcher.step()
    assert f"{asked[0]}-2" in running(store)
    (waiting,) = [job for job in store.running() if job.id == asked[0]]
    assert waiting.preempted == 1
    assert store.job(asked[0]).errors_used == 0


@pytest.mark.parametrize("meanwhile", ["asked", "gone", "replaced"])
def test_of_two_dispatchers_at_once_one_has_others_make_way(
    make: Callable[..., Dispatcher],
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: str,
):
    """The second decides a moment later, when it may displace another job. Before the first one comes to ask
    the one that it has chosen, the other is asked; or has gone; or the higher job has its room."""
    store = service.store
    first, second = At(make()), At(make())
    add_job("early", cpus=2)
    add_job("late", cpus=2)
    first.step()
    begin(store, "early")
    clock.forward(10)
    begin(store, "late")
    add_job("high", cpus=2, priority=100)
    clock.forward(115)
    displace, waited = Starter._displace, []

    def slow(self: Starter, *arguments: Any) -> Any:
        if not waited:
            waited.append(True)
            clock.forward(10)
            second.step()
            assert yielding(store) == ["late"]
            if meanwhile != "asked":
                service.finish("late", 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
                cluster.alive.discard("late-1")
            if meanwhile == "replaced":
                second.step()
                assert running(store) == ["early-1", "high-1"]
        return displace(self, *arguments)

    monkeypatch.setattr(Starter, "_displace", slow)
    first.step()
    assert waited
    assert yielding(store) == (["late"] if meanwhile == "asked" else [])
    first.step(3)
    second.step(3)
    assert "early" not in yielding(store)
    assert meanwhile == "asked" or running(store) == ["early-1", "high-1"]


def yielding(store: Store) -> list[str]:
    """The running jobs that were asked to make way."""
    return [job.id for job in store.running() if job.yield_requested is not None]


def test_one_that_does_not_make_way_is_killed_and_queued_again(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    store = service.store
    add_job("low", cpus=4)
    dispatcher.step()
    begin(store, "low")
    store.request_yield("low", "ada")
    dispatcher.step()
    dispatcher.later(30)
    assert cluster.stopped == ["low-1"]
    (killed, *_) = store.attempts("low")
    assert (killed.state, killed.cause) == (AttemptState.PREEMPTED, Cause.PREEMPTED)
    assert "did not make way within 30 s" in (killed.error or "")
    assert running(store) == ["low-2"]


def test_one_that_trains_far_beyond_its_time_limit_is_killed(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("long", time_limit=60)
    dispatcher.step()
    begin(service.store, "long")
    service.queue.renew("long", 1, 600)
    dispatcher.step()
    dispatcher.later(89)
    assert cluster.stopped == []
    dispatcher.later(1)
    assert cluster.stopped == ["long-1"]
    assert service.store.attempts("long")[0].cause is Cause.TIMEOUT


def test_shares_and_quotas_come_from_the_settings_file_and_may_change(
    dispatcher: At, service: Service, settings: Settings, add_job: AddJob, caplog: pytest.LogCaptureFixture
):
    rules(settings, "owners: {ada: {jobs: 1}}\n")
    for id in ("ada-1", "ada-2", "ada-3"):
        add_job(id)
    add_job("bob-1", owner="bob")
    dispatcher.step(2)
    assert running(service.store) == ["ada-1-1", "bob-1-1"]
    rules(settings, "owners: {ada: {jobs: 2}}\n")
    dispatcher.step()
    assert running(service.store) == ["ada-1-1", "ada-2-1", "bob-1-1"]
    rules(settings, "owners: {ada: {weigth: 2}}\n")  # what cannot be read changes nothing
    dispatcher.step(3)
    assert running(service.store) == ["ada-1-1", "ada-2-1", "bob-1-1"]
    (told,) = [r.getMessage() for r in caplog.records if "scheduling policy" in r.getMessage()]
    assert "weigth" in told


def test_owners_who_had_less_go_first(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("ada-1", cpus=4)
    dispatcher.step()
    for id in ("ada-2", "ada-3"):
        add_job(id, cpus=4)
    add_job("bob-1", cpus=4, owner="bob")
    begin(service.store, "ada-1")
    clock.forward(3600)
    end(service, cluster, "ada-1")
    dispatcher.step()
    assert running(service.store) == ["bob-1-1"]  # although ada's were there before


def test_what_was_used_is_known_to_the_next_dispatcher(
    make: Callable[..., Dispatcher], service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("ada-1", cpus=4)
    At(make()).step()
    begin(service.store, "ada-1")
    clock.forward(3600)
    end(service, cluster, "ada-1")
    add_job("ada-2", cpus=4)
    add_job("bob-1", cpus=4, owner="bob")
    At(make()).step()
    assert running(service.store) == ["bob-1-1"]


def test_an_attempt_whose_end_has_to_wait_for_the_database_is_charged_too(
    store: Store, add_job: AddJob, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    outlook = Outlook(store, Policy())
    add_job("first", cpus=2)
    store.open_attempt("first", 1, by="test")
    outlook.refresh()
    clock.forward(100)
    guard = store._guard

    def late(*arguments: object) -> None:
        guard(*arguments)  # type: ignore[arg-type]
        clock.forward(60)  # somebody else had the row, or the whole database

    monkeypatch.setattr(store, "_guard", late)
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    outlook.refresh()
    used = outlook.history([], Room(4, 0, 4, 0)).used
    assert used["ada"].cpu_seconds == pytest.approx(320, rel=0.01)  # a little has decayed


def test_whoever_follows_many_events_reads_each_end_once(
    store: Store, add_job: AddJob, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outlook_module, "_PAGE", 4)
    outlook = Outlook(store, Policy(half_life=1e9))
    outlook.refresh()
    store.record_event(EventKind.FINISHED, by="test", attempt=1, job=add_job("gone").id)
    jobs = [add_job(f"job-{n}", cpus=2).id for n in range(40)]
    for id in jobs:
        store.open_attempt(id, 1, by="test")
        clock.forward(10)
        store.finish_attempt(id, 1, AttemptState.SUCCEEDED, by="attempt")
    read, ended = [], store.ended

    def counted(*arguments: Any, **options: Any) -> list[Ended]:
        read.extend(found := ended(*arguments, **options))
        return found

    monkeypatch.setattr(store, "ended", counted)
    outlook.refresh()
    assert [end.job for end in read] == jobs
    used = outlook.history([], Room(4, 0, 4, 0)).used
    assert used["ada"].cpu_seconds == pytest.approx(40 * 2 * 10, rel=0.01)


def test_a_small_job_with_a_time_limit_goes_before_one_that_waits_for_room(
    dispatcher: At, service: Service, add_job: AddJob
):
    add_job("first", cpus=3, time_limit=7200)
    dispatcher.step()
    add_job("large", cpus=4)
    add_job("unlimited", cpus=1)
    add_job("too-long", cpus=1, time_limit=7200)
    add_job("short", cpus=1, time_limit=600)
    dispatcher.step()
    assert running(service.store) == ["first-1", "short-1"]


def test_a_gang_needs_room_for_whole_ranks(dispatcher: At, service: Service, store: Store, cluster: Cluster):
    """Four CPUs are free, but in twos: a rank of three finds no machine."""
    cluster.capacity = Capacity(8, 0, 4, 0, (Node(2, 0), Node(2, 0)))
    store.add_job("wide", config={}, name="m", owner="ada", priority=0, ranks=1, cpus=3, gpus=0)
    store.add_job("pair", config={}, name="m", owner="bob", priority=1, ranks=2, cpus=4, gpus=0)
    dispatcher.step()
    assert running(store) == ["pair-1"]
    end(service, cluster, "pair")
    dispatcher.step()
    assert running(store) == []
    cluster.capacity = Capacity(8, 0, 4, 0, (Node(4, 0), Node(0, 0)))
    dispatcher.step()
    assert running(store) == ["wide-1"]


def test_machines_have_no_room_for_others_that_is_promised_to_a_gang_which_starts(
    dispatcher: At, store: Store, cluster: Cluster, add_job: AddJob
):
    """As long as its ranks are not placed, the cluster shows nothing of them."""
    idle = Node(4, 0, 4, 0), Node(4, 0, 4, 0)
    cluster.capacity = Capacity(8, 0, 8, 0, idle)
    store.add_job("gang", config={}, name="m", owner="ada", priority=0, ranks=2, cpus=6, gpus=0)
    dispatcher.step()
    add_job("two", cpus=2, owner="bob")
    dispatcher.step(2)
    assert running(store) == ["gang-1"]  # a CPU is left on each machine: two in all, and nowhere two
    add_job("one", cpus=1, priority=1)
    dispatcher.step()
    assert running(store) == ["gang-1", "one-1"]


def test_what_a_starting_gang_holds_already_is_not_taken_from_the_machines_again(
    dispatcher: At, store: Store, cluster: Cluster, add_job: AddJob
):
    idle = Node(4, 0, 4, 0, "a"), Node(4, 0, 4, 0, "b")
    cluster.capacity = Capacity(8, 0, 8, 0, idle)
    dispatcher.step()  # nobody else uses any of it
    store.add_job("gang", config={}, name="m", owner="ada", priority=0, ranks=1, cpus=4, gpus=0)
    dispatcher.step()
    placed = {"gang-1": (("a", 1),)}  # and still starting
    cluster.capacity = Capacity(8, 0, 4, 0, (Node(0, 0, 4, 0, "a"), idle[1]), placed)
    add_job("other", cpus=4, owner="bob")
    dispatcher.step()
    assert running(store) == ["gang-1", "other-1"]


def test_room_is_kept_on_the_machine_that_will_have_it(
    dispatcher: At, store: Store, queue: Queue, cluster: Cluster, add_job: AddJob, clock: Clock
):
    """What the cluster says of where ranks are reaches the policy, and whoever asks why a job waits."""
    cluster.capacity = Capacity(8, 0, 8, 0, (Node(4, 0, 4, 0, "a"), Node(4, 0, 4, 0, "b")))
    add_job("ends", cpus=3, time_limit=7200)
    add_job("stays", cpus=3)
    dispatcher.step()
    begin(store, "ends", "stays")
    add_job("large", cpus=4)
    add_job("small", cpus=1, priority=-1)

    cluster.capacity = Capacity(
        8,
        0,
        2,
        0,
        (Node(1, 0, 4, 0, "a"), Node(1, 0, 4, 0, "b")),
        {"ends-1": (("a", 1),), "stays-1": (("b", 1),)},
    )
    clock.forward(10)  # what decisions are made of is shown every few seconds
    dispatcher.step()
    assert running(store) == ["ends-1", "stays-1"]  # it might be placed on a, which the large one needs
    seen = queue.outlook()
    assert seen is not None
    reason = explainer(store, seen, Policy()).reason("large")
    assert reason is not None and reason.guaranteed
    (ends,) = [job for job in store.running() if job.id == "ends"]
    assert reason.starts == pytest.approx(ends.opened.timestamp() + 7200 + Policy().margin)
    # The ranks of one have ended, and it makes its version: they will not come to the other machine.
    add_job("more", cpus=1, priority=-2)
    cluster.capacity = Capacity(
        8, 0, 5, 0, (Node(4, 0, 4, 0, "a"), Node(1, 0, 4, 0, "b")), {"stays-1": (("b", 1),)}
    )
    dispatcher.step()
    assert running(store) == ["ends-1", "stays-1"]
    add_job("short", cpus=1, priority=-2, time_limit=600)
    dispatcher.step()
    assert running(store) == ["ends-1", "short-1", "stays-1"]


def test_a_rank_larger_than_any_machine_waits_for_a_larger_one_and_stops_nobody(
    dispatcher: At, service: Service, queue: Queue, add_job: AddJob, cluster: Cluster
):
    cluster.capacity = Capacity(8, 0, 8, 0, (Node(4, 0, 4, 0), Node(4, 0, 4, 0)))
    add_job("big", cpus=6, priority=10)
    add_job("small", owner="bob")
    dispatcher.step(3)
    assert running(service.store) == ["small-1"]
    unfit = [event for event in service.store.events("big") if event.kind is EventKind.UNFIT]
    words = "needs machines for 1 rank of 6 CPUs, the cluster has them for none"
    assert [event.detail["reason"] for event in unfit] == [words]
    seen = queue.outlook()
    assert seen is not None
    reason = explainer(service.store, seen, Policy()).reason("big")
    assert reason is not None and (reason.blocked, reason.text) == (Blocked.RESOURCES, f"it {words}")
    cluster.capacity = Capacity(15, 0, 14, 0, (Node(3, 0, 4, 0), Node(4, 0, 4, 0), Node(7, 0, 7, 0)))
    dispatcher.step()
    assert running(service.store) == ["big-1", "small-1"]


def test_a_released_or_freed_job_is_seen_without_reading_the_queue_again(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one")
    add_job("held")
    service.hold("held")
    add_job("after", after=("one",))
    add_job("later", not_before=clock.now + timedelta(seconds=60))
    add_job("two")
    add_job("after both", after=("one", "two"))
    dispatcher.step()
    assert running(service.store) == ["one-1", "two-1"]
    end(service, cluster, "one")
    end(service, cluster, "two")
    service.release("held")
    dispatcher.step()
    assert running(service.store) == ["after both-1", "after-1", "held-1"]
    clock.forward(61)
    dispatcher.step()
    assert running(service.store) == ["after both-1", "after-1", "held-1", "later-1"]


def test_while_it_is_drained_nothing_starts_and_nobody_makes_way(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("low", cpus=4)
    dispatcher.step()
    begin(service.store, "low")
    service.drain()
    add_job("high", cpus=4, priority=500)
    clock.forward(1000)
    dispatcher.step(3)
    assert running(service.store) == ["low-1"]
    assert service.store.running()[0].yield_requested is None
    service.drain(False)
    dispatcher.step()
    assert service.store.running()[0].yield_requested is not None


def test_dispatchers_at_once_never_give_the_same_room_away(
    make: Callable[..., Dispatcher], store: Store, cluster: Cluster, add_job: AddJob
):
    """Each sees its own queue order and 4 free CPUs; together they must not start more than fit."""
    for n in range(24):
        add_job(f"job-{n:02}", cpus=1, owner=f"owner-{n % 3}")
    dispatchers = [At(make(Timings(reconcile=1, claim_lease=0.05))) for _ in range(4)]
    barrier = threading.Barrier(4)
    most: list[float] = []

    def work(at: At) -> None:
        barrier.wait(60)
        for _ in range(3):
            at.step()
            most.append(store.committed()[0])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, dispatchers))
    assert max(most) <= 4
    At(make()).step()
    assert store.committed()[0] == 4
    assert len(cluster.started) == len(set(cluster.started)) == 4


def test_what_is_shown_explains_who_waits_and_why(
    dispatcher: At, service: Service, queue: Queue, add_job: AddJob, clock: Clock
):
    add_job("first", cpus=3, time_limit=7200)
    dispatcher.step()
    begin(service.store, "first")
    add_job("large", cpus=4)
    add_job("behind", cpus=2)
    add_job("unfit", cpus=64)
    add_job("held")
    service.hold("held")
    clock.forward(5)
    dispatcher.step()
    seen = queue.outlook()
    assert seen is not None and json.loads(json.dumps(seen)) == seen
    explained = explainer(service.store, seen, Policy())
    large, behind = explained.reason("large"), explained.reason("behind")
    assert large is not None and behind is not None
    assert (large.blocked, large.position, large.guaranteed) == (Blocked.RESOURCES, 1, True)
    assert large.starts is not None and large.starts > clock.now.timestamp() + 7000
    assert large.waits_for == ("first",)
    assert (behind.blocked, behind.position) == (Blocked.PRIORITY, 2)
    unfit, held = explained.reason("unfit"), explained.reason("held")
    assert unfit is not None and unfit.text == "it needs 64 CPUs, the cluster has 4"
    assert held is not None and held.blocked is Blocked.HELD
    assert explained.reason("first") is None
