"""Whether a gang fits: on what is free, on the machines that have it, and within its owner's quota."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

from jobs.scheduling.policy import Share
from jobs.scheduling.values import SLACK, Cluster, Node, Running, Shape

Amounts = list[tuple[int, float, float]]  # machine, and the CPUs and GPUs of it


class Pool:
    """What is left of the cluster while starts are being decided. A gang is taken whole or not at all."""

    def __init__(self, cluster: Cluster):
        self.cpus = cluster.free_cpus
        self.gpus = cluster.free_gpus
        self.nodes = [[node.cpus, node.gpus] for node in cluster.nodes]
        self._places = {node.name: place for place, node in enumerate(cluster.nodes)}
        self._likely_of: dict[str, Amounts] = {}  # uncounted, and nobody knows yet where
        for job in cluster.uncounted:
            if job.on is None:
                self._likely_of[job.id] = self._likely(job.shape)
            self.lose(self.places(job))

    def copy(self) -> Pool:
        """The same once more, to try something on."""
        other = copy(self)
        other.nodes = [[*node] for node in self.nodes]
        return other

    def fits(self, shape: Shape) -> bool:
        """Whether all ranks find room."""
        if shape.cpus > self.cpus + SLACK or shape.gpus > self.gpus + SLACK:
            return False
        return not self.nodes or sum(hosts(shape, *node) for node in self.nodes) >= shape.ranks

    def take(self, shape: Shape, places: Amounts | None = None) -> None:
        """Give its ranks these places, or those on the machines that hold most of them."""
        self.cpus -= shape.cpus
        self.gpus -= shape.gpus
        self.lose(self._likely(shape) if places is None else places)

    def give(self, shape: Shape, places: Amounts) -> None:
        """It has ended, and its places are free."""
        self.cpus += shape.cpus
        self.gpus += shape.gpus
        self.lose([(place, -cpus, -gpus) for place, cpus, gpus in places])

    def lose(self, places: Amounts) -> None:
        """The machines have this less."""
        for place, cpus, gpus in places:
            self.nodes[place][0] -= cpus
            self.nodes[place][1] -= gpus

    def places(self, job: Running) -> Amounts:
        """What a running job has of which machine, or is taken to have; nothing if nobody can tell."""
        if job.on is None:
            return self._likely_of.get(job.id, [])
        each = job.one_more
        return [
            (self._places[name], ranks * each.cpus, ranks * each.gpus)
            for name, ranks in job.on
            if name in self._places
        ]

    def anywhere(self, shape: Shape) -> Amounts:
        """What each machine has to give at most, if nobody knows where the ranks of a gang will be."""
        cpus, gpus = shape.cpus / shape.ranks, shape.gpus / shape.ranks
        found = ((place, hosts(shape, *node)) for place, node in enumerate(self.nodes))
        return [(place, ranks * cpus, ranks * gpus) for place, ranks in found if ranks]

    def _likely(self, shape: Shape) -> Amounts:
        """Its places if it goes to the machines that hold most of its ranks, as Ray packs a gang."""
        held = [hosts(shape, *node) for node in self.nodes]
        left, found = shape.ranks, []
        for place in sorted(range(len(held)), key=lambda place: -held[place]):
            here = min(left, held[place])
            if here:
                found.append((place, here * shape.cpus / shape.ranks, here * shape.gpus / shape.ranks))
            left -= here
        return found


def hosts(shape: Shape, cpus: float, gpus: float) -> int:
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
    held = sum(hosts(shape, *all_of(node)) for node in cluster.nodes)
    if held >= shape.ranks:
        return None
    each = f"{shape.cpus / shape.ranks:g} CPUs"
    if shape.gpus > 0:
        each += f" and {shape.gpus / shape.ranks:g} GPUs"
    ranks = "1 rank" if shape.ranks == 1 else f"{shape.ranks} ranks"
    return f"needs machines for {ranks} of {each}, the cluster has them for {held or 'none'}"


def all_of(node: Node) -> tuple[float, float]:
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
