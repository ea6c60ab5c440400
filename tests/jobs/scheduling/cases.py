"""Jobs and clusters as the tests of the rules put them together."""

from __future__ import annotations

from jobs.scheduling import (
    Cluster,
    History,
    Node,
    Policy,
    Running,
    Waiting,
    decide,
)

FOUR = Cluster(4, 0, 4, 0)
FULL = Cluster(4, 0, 0, 0)
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


def two(a: float, b: float) -> Cluster:
    """Two machines of four CPUs each, with so many of them free."""
    return Cluster(8, 0, a + b, 0, (Node(a, 0, 4, 0, "a"), Node(b, 0, 4, 0, "b")))
