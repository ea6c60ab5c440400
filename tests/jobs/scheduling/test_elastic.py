"""How many ranks elastic jobs start with, and when they grow."""

from __future__ import annotations

import pytest

from jobs.scheduling import (
    Cluster,
    Growing,
    Growth,
    History,
    Node,
    Patience,
    Policy,
    Running,
    Share,
    Waiting,
    decide,
)

from .cases import FOUR, runs, waits


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
