"""Random mixes of users, sizes, priorities and failures: the same seed makes the same mix."""

from __future__ import annotations

import random
from dataclasses import replace

from jobs.scheduling import Growing, Node, Policy, Preempting, Share, Waiting

from .simulation import Job, Mix

OWNERS = ("ada", "bob", "cyd", "dee", "eve")


def anything(seed: int) -> Mix:
    """Everything that can happen, on a small cluster."""
    draw = random.Random(seed)
    with_gpus = draw.random() < 0.5
    machines = [
        Node(draw.choice((2, 4, 8)), draw.choice((1, 2, 4)) if with_gpus else 0)
        for _ in range(draw.randint(1, 4))
    ]
    owners = OWNERS[: draw.randint(1, 5)]
    span = draw.choice((50, 400))  # a burst, or a stream
    jobs = [_job(draw, n, draw.choice(owners), machines, span) for n in range(draw.randint(10, 30))]
    if seed % 2:  # with elastic ones, drawn apart so that the rest of the mix is what it was
        _stretch(random.Random(f"elastic {seed}"), jobs)
    if seed % 3 == 0:  # with limits that say little of what a job takes
        _loosen(random.Random(f"loose {seed}"), jobs)
    shares = {
        owner: _share(draw, [job.first for job in jobs if job.first.owner == owner]) for owner in owners
    }
    policy = Policy(
        owners=shares,
        half_life=draw.choice((600, 3600, 86400)),
        lookahead=draw.choice((0, 60, 600)),
        ageing=draw.choice((5, 20, 60)),
        overdue=draw.choice((300, 900)),
        margin=15,
        preemption=Preempting(
            enabled=draw.random() < 0.8,
            gap=draw.choice((10, 100)),
            patience=draw.choice((0, 20)),
            uninterrupted=draw.choice((10, 60)),
            times=draw.choice((1, 3)),
        ),
        growing=Growing(
            enabled=seed % 10 > 1, patience=(0, 10, 30)[seed % 3], uninterrupted=(10, 40)[seed // 2 % 2]
        ),
    )
    outages = []
    if len(machines) > 1 and draw.random() < 0.3:
        begins = draw.uniform(20, 300)
        outages.append((begins, begins + draw.uniform(20, 200), draw.randrange(len(machines))))
    return Mix(policy, machines, jobs, outages, lag=2.0)


def _stretch(draw: random.Random, jobs: list[Job]) -> None:
    """Let some jobs have more ranks if there is room: a few more, or any number. They have more to do."""
    for job in jobs:
        if draw.random() < 0.5:
            longer = draw.choice((1, 3))
            limit = None if job.first.limit is None else longer * job.first.limit
            most = job.first.ranks + draw.choice((0, 1, 2, 5, 50))
            job.first = replace(job.first, max_ranks=most, limit=limit)
            job.work *= longer


def _loosen(draw: random.Random, jobs: list[Job]) -> None:
    for job in jobs:
        if job.first.limit is not None:
            job.first = replace(job.first, limit=job.first.limit * draw.choice((1, 5, 50)))


def coming_and_going(seed: int) -> Mix:
    """A few long jobs, most of them elastic, on machines that go away and come back."""
    draw = random.Random(f"elastic {seed}")
    gpus = draw.choice((0, 0, 4))
    machines = [Node(draw.choice((2, 4, 8)), gpus) for _ in range(draw.randint(2, 4))]
    policy = Policy(
        margin=15,
        preemption=Preempting(patience=0, uninterrupted=20),
        growing=Growing(patience=draw.choice((0, 10, 30)), uninterrupted=draw.choice((10, 40))),
    )
    jobs = []
    for n in range(draw.randint(2, 8)):
        ranks, work = draw.randint(1, 2), draw.uniform(100, 1500)
        arrives = draw.uniform(0, 600)
        waiting = Waiting(
            f"job-{n:02}",
            draw.choice(OWNERS[:3]),
            draw.choice((0, 0, 0, 1, 100)),
            ranks,
            ranks,
            ranks if gpus else 0,
            sequence=n,
            since=arrives,
            limit=2 * work if draw.random() < 0.5 else None,
            max_ranks=ranks + draw.choice((1, 3, 20)) if draw.random() < 0.8 else None,
        )
        fails = [draw.uniform(0, 300) for _ in range(draw.choice((0, 0, 1)))]
        jobs.append(Job(waiting, arrives, work, fails))
    outages = []
    for machine in range(1, len(machines)):
        begins = draw.uniform(20, 400)
        outages.append((begins, begins + draw.uniform(20, 300), machine))
    return Mix(policy, machines, jobs, outages)


def _share(draw: random.Random, jobs: list[Waiting]) -> Share:
    """Some have quotas; each of their jobs is within them, or it would wait for ever, rightly."""
    quota = draw.random() < 0.25
    more = draw.choice((1, 1.5, 3))
    return Share(
        weight=draw.choice((1, 1, 2, 4)),
        cpus=more * max((job.cpus for job in jobs), default=1) if quota else None,
        gpus=more * max((job.gpus for job in jobs), default=1) if quota else None,
        jobs=draw.randint(1, 4) if quota else None,
    )


def _job(draw: random.Random, n: int, owner: str, machines: list[Node], span: float) -> Job:
    # A rank fits on some machine, and so many ranks on the empty cluster: else nothing could ever start it.
    machine = draw.choice(machines)
    cpus = draw.choice((0.5, 1, 2, machine.cpus))
    gpus = draw.choice((0, 1, machine.gpus)) if machine.gpus else 0
    most = sum(min(int(m.cpus / cpus + 1e-6), int(m.gpus / gpus + 1e-6) if gpus else 10**6) for m in machines)
    ranks = most if draw.random() < 0.15 else draw.randint(1, max(1, most // 2))
    work = draw.uniform(5, 150)
    arrives = draw.uniform(0, span)
    fails = [draw.uniform(0, 150) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
    return Job(
        Waiting(
            f"job-{n:02}",
            owner,
            draw.choice((0, 0, 0, 0, 1, 5, -3, 10, 100, 100, 200)),
            ranks,
            ranks * cpus,
            ranks * gpus,
            sequence=n,
            since=arrives,
            limit=work * draw.uniform(1, 2) if draw.random() < 0.5 else None,
            not_before=arrives + draw.uniform(0, 100) if draw.random() < 0.1 else None,
        ),
        arrives,
        work,
        fails,
        after=f"job-{draw.randrange(n):02}" if n and draw.random() < 0.1 else None,
        held_until=arrives + draw.uniform(0, 100) if draw.random() < 0.05 else None,
    )


HORIZON = (
    1000.0  # seconds for which a saturated mix has work for everybody: some thirty jobs one after another
)


def saturated(seed: int) -> Mix:
    """Owners of different weights who always have more waiting than fits, of all sizes; attempts fail too."""
    draw = random.Random(seed)
    cpus = draw.choice((4, 8, 16))
    gpus = cpus if draw.random() < 0.3 else 0
    owners = OWNERS[: draw.randint(2, 4)]
    weights = {owner: draw.choice((1.0, 1.0, 2.0, 3.0)) for owner in owners}
    policy = Policy(
        owners={owner: Share(weight=weight) for owner, weight in weights.items()},
        half_life=draw.choice((1800, 7200, 86400)),
        lookahead=draw.choice((30, 60)),
        margin=15,
    )
    made: list[Job] = []
    for owner in owners:
        sizes, typical = draw.choice(((1,), (2,), (1, 2, 4), (1, 4), (4,))), draw.choice((20, 30, 40))
        # Half as much again as its share of the cluster can do in the time.
        wanted = 1.5 * HORIZON * cpus * weights[owner] / sum(weights.values())
        while wanted > 0:
            size, work = draw.choice(sizes), draw.uniform(0.5, 1.5) * typical
            limit = work * 1.5 if draw.random() < 0.5 else None
            fails = [draw.uniform(0, work)] if draw.random() < 0.05 else []
            waiting = Waiting("", owner, 0, size, size, size if gpus else 0, sequence=0, since=0, limit=limit)
            made.append(Job(waiting, 0.0, work, fails))
            wanted -= size * work
    draw.shuffle(made)
    for n, job in enumerate(made):
        job.first = replace(job.first, id=f"job-{n:04}", sequence=n)
    return Mix(policy, [Node(cpus, gpus)], made)
