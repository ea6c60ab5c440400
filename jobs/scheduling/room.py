"""Whether a gang fits: on what is free now, on the machines that have it, and once others have ended."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from jobs.scheduling.policy import Policy, Share
from jobs.scheduling.values import SLACK, Cluster, Node, Running, Shape


class Pool:
    """What is left of the cluster while starts are being decided. A gang is taken whole or not at all."""

    def __init__(self, cluster: Cluster):
        self.cpus = cluster.free_cpus
        self.gpus = cluster.free_gpus
        self._nodes = [[node.cpus, node.gpus] for node in cluster.nodes]

    def fits(self, shape: Shape) -> bool:
        """Whether all ranks find room."""
        if shape.cpus > self.cpus + SLACK or shape.gpus > self.gpus + SLACK:
            return False
        return not self._nodes or sum(_hosts(shape, *node) for node in self._nodes) >= shape.ranks

    def take(self, shape: Shape) -> None:
        """Give its ranks the machines that hold most of them."""
        self.cpus -= shape.cpus
        self.gpus -= shape.gpus
        left = shape.ranks
        for node in sorted(self._nodes, key=lambda node: -_hosts(shape, *node)):
            here = min(left, _hosts(shape, *node))
            node[0] -= here * shape.cpus / shape.ranks
            node[1] -= here * shape.gpus / shape.ranks
            left -= here


def left_beside(gangs: Iterable[Shape], cluster: Cluster) -> tuple[Node, ...]:
    """The machines with what is free on each once these gangs have their places too."""
    pool = Pool(cluster)
    for shape in gangs:
        pool.take(shape)
    free = zip(cluster.nodes, pool._nodes, strict=True)
    return tuple(replace(node, cpus=cpus, gpus=gpus) for node, (cpus, gpus) in free)


def _hosts(shape: Shape, cpus: float, gpus: float) -> int:
    """How many ranks of a gang one machine holds."""
    by_cpus = (cpus + SLACK) * shape.ranks / shape.cpus if shape.cpus > 0 else math.inf
    by_gpus = (gpus + SLACK) * shape.ranks / shape.gpus if shape.gpus > 0 else math.inf
    return max(0, math.floor(min(by_cpus, by_gpus, shape.ranks)))


def too_large(shape: Shape, cluster: Cluster) -> str | None:
    """Why no end of other jobs would make room; none if one could."""
    if shape.gpus > cluster.total_gpus + SLACK:
        return f"needs {shape.gpus:g} GPUs, the cluster has {cluster.total_gpus:g}"
    if shape.cpus > cluster.total_cpus + SLACK:
        return f"needs {shape.cpus:g} CPUs, the cluster has {cluster.total_cpus:g}"
    if not cluster.nodes:
        return None
    # A rank is on one machine: what no machine has, no sum of several has either.
    hosts = sum(_hosts(shape, *_all_of(node)) for node in cluster.nodes)
    if hosts >= shape.ranks:
        return None
    each = f"{shape.cpus / shape.ranks:g} CPUs"
    if shape.gpus > 0:
        each += f" and {shape.gpus / shape.ranks:g} GPUs"
    ranks = "1 rank" if shape.ranks == 1 else f"{shape.ranks} ranks"
    return f"needs machines for {ranks} of {each}, the cluster has them for {hosts or 'none'}"


def _all_of(node: Node) -> tuple[float, float]:
    """What a machine has, in use or not."""
    return (
        math.inf if node.total_cpus is None else node.total_cpus,
        math.inf if node.total_gpus is None else node.total_gpus,
    )


def beyond_quota(shape: Shape, share: Share) -> str | None:
    """Why the owner may never have this; none if the owner may."""
    if share.jobs is not None and share.jobs < 1:
        return "its owner may run no jobs"
    if share.gpus is not None and shape.gpus > share.gpus + SLACK:
        return f"needs {shape.gpus:g} GPUs, its owner may have {share.gpus:g} at once"
    if share.cpus is not None and shape.cpus > share.cpus + SLACK:
        return f"needs {shape.cpus:g} CPUs, its owner may have {share.cpus:g} at once"
    return None


@dataclass
class Held:
    """What an owner's running jobs hold."""

    jobs: int = 0
    cpus: float = 0.0
    gpus: float = 0.0

    def add(self, cpus: float, gpus: float) -> None:
        """One job more."""
        self.jobs, self.cpus, self.gpus = self.jobs + 1, self.cpus + cpus, self.gpus + gpus

    def more(self, cpus: float, gpus: float) -> None:
        """More for a job that is counted already."""
        self.cpus, self.gpus = self.cpus + cpus, self.gpus + gpus

    def full(self, shape: Shape, share: Share) -> str | None:
        """Why a job would take the owner over the quota now; none if it would not."""
        if share.jobs is not None and self.jobs + 1 > share.jobs:
            return f"its owner runs {self.jobs} of {share.jobs} jobs"
        return self.beyond(shape, share)

    def beyond(self, shape: Shape, share: Share) -> str | None:
        """The same of more for a job that they run already."""
        if share.gpus is not None and self.gpus + shape.gpus > share.gpus + SLACK:
            return f"needs {shape.gpus:g} GPUs; its owner holds {self.gpus:g} of {share.gpus:g}"
        if share.cpus is not None and self.cpus + shape.cpus > share.cpus + SLACK:
            return f"needs {shape.cpus:g} CPUs; its owner holds {self.cpus:g} of {share.cpus:g}"
        return None


def ends_by(job: Running, now: float, policy: Policy) -> float | None:
    """When a running job has ended at the latest; none if nothing says so."""
    known = []
    if job.limit is not None:
        known.append(job.opened + job.limit + policy.margin)
    if job.yielding is not None:
        known.append(job.yielding + policy.margin)
    return max(now, min(known)) if known else None


class Reserved:
    """The room that is kept for the first job that does not fit, and what may be used meanwhile.

    If the time limits of running jobs say by when it fits, others may start that end before, or that use what
    it will not need then. If they do not, its time may come at any moment, and others may start only on what
    would be left if it had started already. And if there is room for it in sum, but in pieces on several
    machines, nothing else starts until the pieces have grown together.
    """

    def __init__(self, shape: Shape, running: Iterable[Running], pool: Pool, now: float, policy: Policy):
        self._margin = policy.margin
        self.at: float | None = None
        cpus, gpus = pool.cpus, pool.gpus
        ends = sorted(
            (end, job.cpus, job.gpus) for job in running if (end := ends_by(job, now, policy)) is not None
        )
        for end, more_cpus, more_gpus in [(now, 0.0, 0.0), *ends]:
            if self.at is not None and end > self.at:
                break
            cpus, gpus = cpus + more_cpus, gpus + more_gpus
            if self.at is None and shape.cpus <= cpus + SLACK and shape.gpus <= gpus + SLACK:
                self.at = end
        if shape.cpus <= pool.cpus + SLACK and shape.gpus <= pool.gpus + SLACK:
            self.at, cpus, gpus = None, 0.0, 0.0  # in pieces
        elif self.at is None:
            cpus, gpus = pool.cpus, pool.gpus
        self._cpus, self._gpus = cpus - shape.cpus, gpus - shape.gpus

    def allows(self, shape: Shape, now: float) -> bool:
        """Whether a job may start now that comes after the reserved one."""
        if self._over_in_time(shape, now):
            return True
        return (shape.cpus <= 0 or shape.cpus <= self._cpus + SLACK) and (
            shape.gpus <= 0 or shape.gpus <= self._gpus + SLACK
        )

    def take(self, shape: Shape, now: float) -> None:
        """Such a job starts."""
        if not self._over_in_time(shape, now):
            self._cpus -= shape.cpus
            self._gpus -= shape.gpus

    def _over_in_time(self, shape: Shape, now: float) -> bool:
        if self.at is None or shape.limit is None:
            return False
        return now + shape.limit + self._margin <= self.at
