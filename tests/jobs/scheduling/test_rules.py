"""The rules one by one, where a reader can follow them; `test_simulation` holds them all at once."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs.scheduling import (
    Accounts,
    Backlog,
    Blocked,
    Cluster,
    Decisions,
    Explainer,
    Growing,
    Growth,
    History,
    Node,
    Patience,
    Policy,
    Preempting,
    Promises,
    Reservation,
    Running,
    Share,
    Spent,
    Used,
    Waiting,
    decide,
    parse_policy,
    read_policy,
    too_large,
)
from textvae.parsing import ConfigError

FOUR = Cluster(4, 0, 4, 0)
DAY = 86400.0


def waits(
    id: str, *, owner: str = "ada", priority: int = 0, cpus: float = 1, since: float = 0, **more
) -> Waiting:  # type: ignore[no-untyped-def]
    sequence = more.pop("sequence", sum(ord(letter) for letter in id))
    return Waiting(id, owner, priority, 1, cpus, 0, sequence, since, **more)


def runs(id: str, *, owner: str = "ada", priority: int = 0, cpus: float = 1, **more) -> Running:  # type: ignore[no-untyped-def]
    return Running(id, owner, priority, 1, cpus, 0, **{"opened": 0.0, "started": 0.0, **more})


def started(
    *waiting: Waiting,
    running: tuple[Running, ...] = (),
    cluster: Cluster = FOUR,
    history: History | None = None,
    policy: Policy | None = None,
    now: float = 0,
) -> list[str]:
    decisions = decide(waiting, running, cluster, history or History(), policy or Policy(), now)
    return [job.id for job in decisions.start]


def test_priority_then_order_of_submission():
    assert started(waits("b"), waits("a"), waits("c", priority=1), waits("d", priority=-1)) == list("cabd")


def test_the_owner_who_had_less_goes_first_by_weight():
    had = History(used={"ada": Used(cpu_seconds=100), "bob": Used(cpu_seconds=150)})
    one = Cluster(1, 0, 1, 0)
    jobs = waits("a", owner="ada"), waits("b", owner="bob")
    assert started(*jobs, cluster=one, history=had) == ["a"]
    twice = Policy(owners={"bob": Share(weight=2)})
    assert started(*jobs, cluster=one, history=had, policy=twice) == ["b"]


def test_nobody_fills_an_empty_cluster_before_the_others_have_something():
    jobs = [waits(f"a{n}", sequence=n) for n in range(9)] + [waits("b", owner="bob", sequence=99)]
    assert started(*jobs) == ["a0", "b", "a1", "a2"]


def test_what_others_have_had_is_forgotten_by_halves():
    accounts = Accounts(half_life=DAY)
    accounts.spend(Spent("ada", 0, 1, cpus=2, gpus=0, opened=0, finished=10))
    accounts.spend(Spent("ada", 0, 2, cpus=2, gpus=4, opened=0, finished=10))
    used = accounts.history((), {}, 10 + DAY).used["ada"]
    assert used.cpu_seconds == pytest.approx(10, rel=1e-3)  # half of 20: of the attempt without GPUs alone
    assert used.gpu_seconds == pytest.approx(20, rel=1e-3)
    late = Accounts(half_life=DAY)  # told in another order it comes to the same
    late.spend(Spent("ada", 0, 2, cpus=1, gpus=0, opened=DAY, finished=DAY + 5))
    late.spend(Spent("ada", 0, 1, cpus=1, gpus=0, opened=0, finished=8))
    early = Accounts(half_life=DAY)
    early.spend(Spent("ada", 0, 1, cpus=1, gpus=0, opened=0, finished=8))
    early.spend(Spent("ada", 0, 2, cpus=1, gpus=0, opened=DAY, finished=DAY + 5))
    assert late.history((), {}, 2 * DAY).used["ada"].cpu_seconds == pytest.approx(
        early.history((), {}, 2 * DAY).used["ada"].cpu_seconds
    )


def test_a_running_attempt_is_charged_as_it_goes():
    used = Accounts(half_life=DAY).history([runs("a", cpus=3)], {}, 100).used["ada"]
    assert used.cpu_seconds == pytest.approx(300, rel=1e-2)


def test_a_turn_is_the_start_of_a_job_from_before_the_first():
    accounts = Accounts(half_life=DAY)
    group = ("ada", 0)
    for sequence, at in ((5, 10.0), (7, 20.0), (6, 30.0), (9, 15.0)):
        accounts.turn(group, sequence, at)
    assert accounts.last_turn(group, before=5) is None
    assert accounts.last_turn(group, before=6) == 10
    assert accounts.last_turn(group, before=8) == 30  # the sixth started last
    assert accounts.last_turn(group, before=100) == 30
    assert accounts.last_turn(("bob", 0), before=100) is None


def test_waiting_lifts_a_group_up_to_the_highest_and_no_further():
    policy = Policy(ageing=10, overdue=1000)
    assert [policy.level(0, waited, top=3) for waited in (0, 9, 10, 29, 30, 1e6)] == [0, 0, 1, 2, 3, 3]
    assert policy.level(5, 0, top=3) == 5
    one = Cluster(1, 0, 1, 0)
    had = History(used={"bob": Used(cpu_seconds=50)})
    low, high = waits("low", since=0), waits("high", owner="bob", priority=3, since=25)
    assert started(low, high, cluster=one, policy=policy, history=had, now=29) == ["high"]
    assert started(low, high, cluster=one, policy=policy, history=had, now=30) == ["low"]  # shares decide


def test_an_overdue_group_goes_before_any_priority():
    policy = Policy(ageing=10, overdue=100)
    one = Cluster(1, 0, 1, 0)
    low, high = waits("low"), waits("high", priority=2, since=110)
    had = History(used={"ada": Used(cpu_seconds=1)})
    assert started(low, high, cluster=one, policy=policy, history=had, now=119) == ["high"]
    assert started(low, high, cluster=one, policy=policy, history=had, now=121) == ["low"]
    turn = History(turns={("ada", 0): 100.0})
    assert started(low, high, cluster=one, policy=policy, history=turn, now=121) == ["high"]


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


def two(a: float, b: float) -> Cluster:
    """Two machines of four CPUs each, with so many of them free."""
    return Cluster(8, 0, a + b, 0, (Node(a, 0, 4, 0, "a"), Node(b, 0, 4, 0, "b")))


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
        return fits_at(replace(two(1, 1), free_cpus=1, promised=(new,)), new)

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


def test_a_quota_keeps_back_the_owner_and_nobody_else():
    policy = Policy(owners={"ada": Share(cpus=2)})
    jobs = [waits("a1"), waits("a2", cpus=2), waits("a3"), waits("b", owner="bob", cpus=2)]
    assert sorted(started(*jobs, policy=policy)) == ["a1", "b"]
    assert started(waits("a9", cpus=3), waits("aa"), policy=policy) == [
        "aa"
    ]  # never possible: in nobody's way


CLASSES = Policy(preemption=Preempting(patience=30, uninterrupted=60, times=2))
FULL = Cluster(4, 0, 0, 0)


def displaced(*running: Running, job: Waiting | None = None, now: float = 100) -> list[str]:
    job = job or waits("high", priority=100, since=0)
    decisions = decide([job], running, FULL, History(), CLASSES, now)
    assert decisions.start == ()
    return [each.victim for each in decisions.preempt]


def test_the_lowest_and_then_the_youngest_make_way_and_no_more_than_needed():
    rest = runs("old", cpus=1, started=1.0), runs("young", cpus=1, started=20.0)
    assert displaced(*rest, runs("lower", priority=-5, cpus=2)) == ["lower"]
    assert displaced(*rest, runs("same", priority=50, cpus=2)) == ["young"]
    assert displaced(*rest, job=waits("high", priority=100, cpus=2)) == ["young", "old"]
    assert displaced(*rest, job=waits("high", priority=100, cpus=3)) == []  # not enough: then for nothing
    # The small one is taken first, and let go again once the large one turns out to be needed anyway.
    assert displaced(
        runs("small", cpus=1, started=30.0), runs("large", cpus=3), job=waits("high", priority=100, cpus=3)
    ) == ["large"]


def test_who_makes_way_leaves_room_in_one_piece():
    running = (
        runs("keeps", priority=50, cpus=2, on=(("a", 1),)),
        runs("old", cpus=2, started=1.0, on=(("b", 1),)),
        runs("young", priority=-5, cpus=2, started=20.0, on=(("a", 1),)),
    )
    high = waits("high", priority=100, cpus=4)
    decisions = decide([high], running, two(0, 2), History(), CLASSES, 100)
    assert [each.victim for each in decisions.preempt] == ["old"]  # the lowest would leave it in pieces


def test_nobody_starts_on_the_room_that_others_make():
    x, low = runs("x", priority=50, cpus=3, limit=3000, on=(("a", 1),)), runs("low", cpus=3, on=(("b", 1),))
    high, small = waits("high", priority=100, cpus=4), waits("small", limit=600)
    decisions = decide([high, small], (x, low), two(1, 1), History(), CLASSES, 100)
    assert [each.victim for each in decisions.preempt] == ["low"]
    assert decisions.start == ()  # Ray might have placed it on b


def test_nobody_is_displaced_for_room_that_is_about_to_come():
    keeps, low = runs("keeps", priority=50, cpus=4, on=(("a", 1),)), runs("low", cpus=4, on=(("b", 1),))
    high = waits("high", priority=100, cpus=4)
    ended = runs("ended", cpus=4, ending=True, on=(("c", 1),))
    three = Cluster(12, 0, 0, 0, (*two(0, 0).nodes, Node(0, 0, 4, 0, "c")))
    assert decide([high], (keeps, low), three, History(), CLASSES, 100).preempt != ()
    assert decide([high], (keeps, low), three, History(), CLASSES, 100, gone=[ended]).preempt == ()
    # Nor for that of one which is cancelled while its ranks are being placed.
    starting = runs("starting", cpus=4, started=None, ending=True)
    free = Cluster(12, 0, 0, 0, (*two(0, 0).nodes, Node(4, 0, 4, 0, "c")), promised=(starting,))
    assert decide([high], (keeps, low, starting), free, History(), CLASSES, 100).preempt == ()


@pytest.mark.parametrize(
    "spared",
    [
        runs("r", priority=1, cpus=4),  # not a class lower
        runs("r", cpus=4, displaced=2),  # often enough
        runs("r", cpus=4, started=50.0),  # not long enough
        runs("r", cpus=4, started=None),  # its ranks are not even there
        runs("r", cpus=4, yielding=99.0),  # it makes way already
        runs("r", cpus=4, ending=True),  # it is about to end
        runs("r", cpus=4, limit=-100.0),  # over in a moment, by its limit
    ],
)
def test_who_is_not_displaced(spared: Running):
    assert displaced(spared) == []
    assert displaced(runs("r", cpus=4)) == ["r"]


def test_waiting_does_not_make_a_higher_class_and_the_impatient_wait():
    old = waits("old", priority=99, since=-10 * DAY)
    assert displaced(runs("r", cpus=4), job=old) == []
    assert displaced(runs("r", cpus=4), job=waits("new", priority=100, since=71)) == []
    off = Policy(preemption=Preempting(enabled=False))
    assert decide([waits("high", priority=900)], [runs("r", cpus=4)], FULL, History(), off, 1e6).preempt == ()


def wide(id: str, most: int, **more) -> Waiting:  # type: ignore[no-untyped-def]
    return waits(id, max_ranks=most, **more)


def ranks(*waiting: Waiting, running: tuple[Running, ...] = (), **more) -> dict[str, int]:  # type: ignore[no-untyped-def]
    cluster, policy = more.get("cluster", FOUR), more.get("policy", Policy())
    decisions = decide(waiting, running, cluster, History(), policy, 0)
    assert [job.cpus for job in decisions.start] == [job.ranks for job in decisions.start]
    return {job.id: job.ranks for job in decisions.start}


def test_elastic_jobs_share_what_is_left_when_all_have_what_they_need():
    assert ranks(wide("a", 8)) == {"a": 4}
    assert ranks(wide("a", 3)) == {"a": 3}
    assert ranks(wide("a", 8), waits("b"), waits("c")) == {"a": 2, "b": 1, "c": 1}
    assert ranks(wide("a", 8), wide("b", 8)) == {"a": 2, "b": 2}
    assert ranks(wide("a", 8), wide("b", 8), waits("c")) == {"a": 2, "b": 1, "c": 1}
    assert ranks(wide("a", 8), policy=Policy(owners={"ada": Share(cpus=2)})) == {"a": 2}
    pieces = Cluster(4, 0, 4, 0, (Node(1.5, 0), Node(1.5, 0), Node(1, 0)))
    assert ranks(wide("a", 8), cluster=pieces) == {"a": 3}


def test_elastic_jobs_start_with_nothing_that_the_first_in_line_will_need():
    running = (runs("r", cpus=2, limit=100),)
    free = Cluster(4, 0, 2, 0)
    large = waits("large", cpus=3, priority=1, sequence=1)
    assert ranks(large, wide("a", 8), running=running, cluster=free) == {"a": 1}  # beside it at its time
    soon = wide("b", 8, limit=10)  # it is over by then, with all that it has
    assert ranks(large, soon, running=running, cluster=free, policy=Policy(margin=10)) == {"b": 2}


def grows(
    *running: Running, waiting: tuple[Waiting, ...] = (), policy: Policy | None = None, now: float = 1000
) -> tuple[str, int] | None:
    free = Cluster(8, 0, 3, 0)
    grow = decide(waiting, running, free, History(), policy or Policy(), now).grow
    return None if grow is None else (grow.job, grow.ranks)


def test_one_job_grows_at_a_time_and_the_smallest_first():
    small, large = runs("small", max_ranks=3), runs("large", max_ranks=9)
    assert grows(large) == ("large", 4)
    assert grows(small, large) == ("large", 4)  # of equals, by their names
    assert grows(small) == ("small", 3)
    two = Running("two", "ada", 0, 2, 2, 0, 0.0, started=0.0, max_ranks=9)
    assert grows(two, small) == ("small", 3)
    assert grows(two, policy=Policy(owners={"ada": Share(cpus=3)})) == ("two", 3)


@pytest.mark.parametrize(
    "spared",
    [
        runs("r"),  # not elastic
        runs("r", max_ranks=1),  # it has them all
        runs("r", max_ranks=8, started=800.0),  # not long enough
        runs("r", max_ranks=8, started=None),  # its ranks are not even there
        runs("r", max_ranks=8, yielding=990.0),
        runs("r", max_ranks=8, ending=True),
        runs("r", max_ranks=8, cpus=4),  # there is no room for one more
    ],
)
def test_who_does_not_grow(spared: Running):
    assert grows(spared) is None


def test_nobody_grows_while_others_wait_or_come_and_go():
    elastic = runs("r", max_ranks=8)
    assert grows(elastic, waiting=(waits("huge", cpus=99),)) == ("r", 4)  # it could never start
    assert grows(elastic, waiting=(waits("large", owner="bob", cpus=5),)) is None
    assert grows(elastic, waiting=(waits("small", owner="bob"),)) is None  # it starts first
    assert grows(elastic, runs("other", started=None)) is None
    assert grows(elastic, runs("other", yielding=1.0)) is None
    assert grows(elastic, policy=Policy(growing=Growing(enabled=False))) is None
    # Who waits for an owner's quota waits for jobs of that owner alone.
    quota = Policy(owners={"ada": Share(jobs=1), "bob": Share(jobs=1)})
    bobs = runs("b", owner="bob"), waits("next", owner="bob")
    assert grows(elastic, bobs[0], waiting=(bobs[1],), policy=quota) == ("r", 4)
    assert grows(elastic, waiting=(waits("mine"),), policy=quota) is None


def test_a_job_grows_once_that_has_been_possible_for_a_while():
    policy, patience = Policy(growing=Growing(patience=30)), Patience()
    running, grow = (runs("r", max_ranks=8),), Growth("r", 4)
    assert [patience.over(grow, running, policy, now) for now in (0, 29, 30)] == [False, False, True]
    assert not patience.over(None, running, policy, 31)  # the room was gone for a moment
    assert [patience.over(grow, running, policy, now) for now in (32, 61, 62)] == [False, False, True]
    again = (runs("r", max_ranks=8, opened=62.0),)
    assert not patience.over(grow, again, policy, 63)  # another attempt


def test_the_backlog_knows_who_is_ready():
    backlog = Backlog([waits("a", held=True), waits("b", not_before=50.0), waits("c", blocked_by=("x",))])
    assert len(backlog) == 3 and not backlog.ready(0)
    assert backlog.next_time() == 50
    assert [line for lines in backlog.ready(50).values() for line in lines.values()] == [[(98, "b")]]
    backlog.put(waits("a"))
    backlog.put(waits("b", not_before=80.0))  # put off again
    assert "b" in backlog and backlog["b"].not_before == 80
    assert list(decide(backlog, [], FOUR, History(), Policy(), 60).start) == [backlog["a"]]
    backlog.discard("a")
    backlog.discard("never")
    assert not backlog.ready(60)


def test_every_reason_is_told():
    policy = Policy(owners={"bob": Share(cpus=1), "eve": Share(jobs=0)})
    running = (runs("r", cpus=2, limit=1000), runs("b", owner="bob", cpus=1))
    jobs = [
        waits("first", cpus=4),
        waits("next", cpus=2, priority=-1),
        waits("small", priority=-2, since=5),
        waits("held", held=True),
        waits("later", not_before=500.0),
        waits("after", blocked_by=("r",)),
        waits("huge", cpus=99),
        waits("bobs", owner="bob", priority=-5),
        waits("eves", owner="eve"),
    ]
    explainer = Explainer(jobs, running, Cluster(4, 0, 1, 0), History(), policy, 10)
    reasons = {job.id: explainer.reason(job.id) for job in jobs}
    told = {id: reason and reason.blocked for id, reason in reasons.items()}
    assert told == {
        "first": Blocked.RESOURCES,
        "next": Blocked.PRIORITY,
        "small": Blocked.PRIORITY,
        "held": Blocked.HELD,
        "later": Blocked.NOT_BEFORE,
        "after": Blocked.DEPENDENCY,
        "huge": Blocked.RESOURCES,
        "bobs": Blocked.QUOTA,
        "eves": Blocked.QUOTA,
    }
    first, small, bobs = reasons["first"], reasons["small"], reasons["bobs"]
    assert first is not None and small is not None and bobs is not None
    assert (first.position, first.starts) == (1, None)  # nobody knows when bob's ends
    assert small.text == "there is room, but job first, which goes first, would wait longer for its own"
    assert bobs.waits_for == ("b",)
    assert explainer.reason("unknown") is None


def test_a_start_is_estimated_from_what_is_expected():
    running = (runs("r", cpus=4, expected=60.0),)
    jobs = [waits("a", cpus=4, expected=100.0), waits("b", cpus=4), waits("c", cpus=4)]
    explainer = Explainer(jobs, running, FULL, History(), Policy(), 10)
    starts = [reason and reason.starts for reason in map(explainer.reason, "abc")]
    assert starts == [60, 160, None]  # how long b takes is unknown
    assert not any(reason and reason.guaranteed for reason in map(explainer.reason, "abc"))


def test_a_policy_file_is_closed(tmp_path: Path):
    path = tmp_path / "scheduling.yaml"
    assert read_policy(path) == read_policy(None) == Policy()
    path.write_text("owners: {ada: {weight: 3, gpus: 2}}\npreemption: {gap: 7}\n")
    policy = read_policy(path)
    assert (policy.share("ada").weight, policy.share("bob").weight, policy.preemption.gap) == (3, 1, 7)
    with pytest.raises(ConfigError, match=r"half_live: unknown key; the nearest known one is half_life"):
        parse_policy({"half_live": 3})
    with pytest.raises(ConfigError, match="weight"):
        parse_policy({"default": {"weight": 0}})
    for endless in (math.inf, 1e11):  # no clock goes back, or on, so far
        with pytest.raises(ConfigError, match="half_life: input should be"):
            parse_policy({"half_life": endless})
        with pytest.raises(ConfigError, match="margin: input should be"):
            parse_policy({"margin": endless})


def test_the_documented_defaults_are_the_defaults():
    page = (Path(__file__).parents[3] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    documented = yaml.safe_load(block)
    del documented["owners"]  # an example
    assert parse_policy(documented) == Policy()
    assert set(documented) | {"owners"} == set(Policy.model_fields)
    assert math.isfinite(Policy().overdue_after(-1000, 1000))
