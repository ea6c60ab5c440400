"""Who may start before the first job that does not fit, on one machine and on several."""

from __future__ import annotations

from dataclasses import replace

from jobs.scheduling import (
    Cluster,
    Decisions,
    Explainer,
    History,
    Node,
    Policy,
    Promises,
    Reservation,
    Running,
    Waiting,
    decide,
    too_large,
)

from .cases import DAY, runs, started, two, waits


def test_small_jobs_fill_gaps_only_if_the_first_need_not_wait_longer():
    policy = Policy(margin=10)
    running = (runs("r", cpus=3, limit=100),)
    free = Cluster(4, 0, 1, 0)
    large = waits("large", cpus=4, sequence=1)
    assert started(large, waits("no-limit"), running=running, cluster=free, policy=policy) == []
    assert started(large, waits("short", limit=101), running=running, cluster=free, policy=policy) == []
    assert started(large, waits("short", limit=80), running=running, cluster=free, policy=policy, now=20) == [
        "short"
    ]
    # It needs two: one may start beside it for as long as it likes.
    medium = waits("medium", cpus=3, sequence=1)
    assert started(medium, waits("x"), running=running, cluster=free, policy=policy) == ["x"]


def test_without_a_known_end_only_what_the_first_does_not_need_is_given_away():
    running = (runs("r", cpus=4),)
    first = Waiting("gpus", "ada", 0, 2, 2, 2, 1, 0)
    free = Cluster(16, 2, 12, 0)  # its two GPUs are in use; of its CPUs there are plenty
    jobs = [first, *(waits(f"x{n:02}", sequence=10 + n) for n in range(12))]
    assert len(started(*jobs, running=running, cluster=free)) == 10  # two CPUs are kept for it


def test_on_several_machines_nothing_starts_where_the_first_will_find_its_room():
    policy = Policy(margin=10)
    large = waits("large", cpus=4, sequence=1)
    ends, stays = runs("ends", cpus=3, limit=100, on=(("a", 1),)), runs("stays", cpus=3, on=(("b", 1),))
    rest = {"running": (ends, stays), "cluster": two(1, 1), "policy": policy}

    def fits_at(cluster: Cluster, *more: Running) -> float | None:
        reserved = decide([large], (ends, stays, *more), cluster, History(), policy, 0).reserved
        assert reserved is not None and reserved.job == "large"
        return reserved.at

    assert fits_at(two(1, 1)) == 110
    # In sum there would be enough for both; but Ray may place it where the first will be.
    assert started(large, waits("x"), **rest) == []
    assert started(large, waits("short", limit=100), **rest) == ["short"]
    # Now it can only be placed where the first will never be.
    full = replace(ends, cpus=4)
    assert started(large, waits("x"), **{**rest, "running": (full, stays), "cluster": two(0, 1)}) == ["x"]

    # Of one that starts nobody knows yet where it is: it may be where the first would have been.
    def starting(new: Running) -> float | None:
        return fits_at(replace(two(1, 1), free_cpus=1, uncounted=(new,)), new)

    assert starting(runs("new")) is None
    assert starting(runs("new", opened=20.0, limit=100)) == 130
    assert starting(runs("new", on=(("b", 1),))) == 110  # Ray has said so, and counts it in a moment


def test_a_promise_is_kept_while_the_cluster_lags_behind_what_has_ended():
    policy = Policy(margin=10)
    large, short = waits("large", cpus=4, sequence=1), waits("short", limit=80)
    told = Reservation("large", 110)

    def decisions(
        free: Cluster, *running: Running, now: float = 0, promised: Reservation = told
    ) -> Decisions:
        jobs = [large, short, waits("long", limit=500)]
        return decide(jobs, running, free, History(), policy, now, promised=promised)

    # What held three of its CPUs until then has ended, and the cluster still counts it.
    others = runs("stays", cpus=3, limit=900, on=(("b", 1),))
    seen = decisions(two(1, 1), others)
    assert [job.id for job in seen.start] == ["short"] and seen.reserved == told
    # Once that moment has passed, or if it was another job's, it says nothing.
    late = decisions(two(1, 1), others, now=110)
    assert late.reserved == Reservation("large", 910) and [job.id for job in late.start] == ["long", "short"]
    other = decisions(two(1, 1), others, promised=Reservation("other", 110))
    assert other.reserved == Reservation("large", 910)
    promises = Promises()
    promises.keep(seen, two(1, 1))
    assert promises.of(two(1, 1)) == told
    assert promises.of(Cluster(4, 0, 1, 0, (Node(1, 0, 4, 0, "b"),))) is None  # a machine is lost


def test_room_in_pieces_is_kept_together_only_on_machines_that_could_hold_the_first():
    halves = runs("r", cpus=2, on=(("a", 1),)), runs("s", cpus=2, on=(("b", 1),))
    large = waits("large", cpus=4, sequence=1)
    assert started(large, waits("x"), running=halves, cluster=two(2, 2)) == []
    # A machine that is too small for it is in use all the same, ...
    small = Node(2, 0, 2, 0, "small")
    three = Cluster(10, 0, 2, 0, (Node(0, 0, 4, 0, "a"), Node(0, 0, 4, 0, "b"), small))
    assert started(large, waits("x"), running=halves, cluster=three) == ["x"]
    # ... and so is what the first would not need of its own if it had all the GPUs there.
    gpus = Cluster(16, 2, 12, 1, (Node(6, 0, 8, 1, "a"), Node(6, 1, 8, 1, "b")))
    first = Waiting("gpus", "ada", 0, 2, 4, 2, 1, 0)
    jobs = [first, *(waits(f"x{n:02}", sequence=10 + n) for n in range(12))]
    holds = (Running("g", "ada", 0, 1, 2, 1, opened=0, on=(("a", 1),)),)
    assert len(started(*jobs, running=holds, cluster=gpus)) == 4  # wherever they are, it finds its two CPUs


def test_a_rank_that_no_machine_could_hold_is_in_nobodys_way():
    both = Node(4, 0, 4, 0), Node(4, 0, 4, 0)
    idle, others = Cluster(8, 0, 8, 0, both), [waits("x", owner="bob"), waits("y", owner="bob")]
    large = waits("large", cpus=6, priority=200, since=-DAY)
    assert started(large, *others, cluster=idle) == ["x", "y"]
    reason = Explainer([large], [], idle, History(), Policy(), 0).reason("large")
    assert reason is not None
    assert reason.text == "it needs machines for 1 rank of 6 CPUs, the cluster has them for none"
    busy = Cluster(8, 0, 0, 0, (Node(0, 0, 4, 0), Node(0, 0, 4, 0)))
    running = (runs("r", cpus=4), runs("s", cpus=4))
    assert decide([large], running, busy, History(), Policy(), 1000).preempt == ()  # in vain
    three = Waiting("three", "ada", 0, 3, 9, 0, 1, 0)
    assert too_large(three.shape, Cluster(9, 0, 9, 0, (*both, Node(1, 0, 1, 0)))) == (
        "needs machines for 3 ranks of 3 CPUs, the cluster has them for 2"
    )
    mixed = Cluster(72, 1, 72, 1, (Node(8, 1, 8, 1), Node(64, 0, 64, 0)))
    both = Waiting("both", "ada", 0, 1, 16, 1, 1, 0)
    assert too_large(both.shape, mixed) == (
        "needs machines for 1 rank of 16 CPUs and 1 GPUs, the cluster has them for none"
    )
    # What fits nowhere now but could, and what is not known, is waited for.
    assert too_large(waits("a", cpus=4).shape, busy) is None
    assert too_large(large.shape, Cluster(8, 0, 8, 0, (Node(4, 0), Node(4, 0)))) is None
    assert too_large(large.shape, Cluster(8, 0, 8, 0)) is None
