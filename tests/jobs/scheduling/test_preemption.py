"""Who makes way for a job of a higher class."""

from __future__ import annotations

import pytest

from jobs.scheduling import (
    Cluster,
    History,
    Node,
    Policy,
    Preempting,
    Running,
    Waiting,
    decide,
)

from .cases import DAY, FULL, runs, two, waits

CLASSES = Policy(preemption=Preempting(patience=30, uninterrupted=60, times=2))


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
    free = Cluster(12, 0, 0, 0, (*two(0, 0).nodes, Node(4, 0, 4, 0, "c")), uncounted=(starting,))
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
