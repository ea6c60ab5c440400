"""The rules of a team: weights, quotas, and how fast waiting counts. Read from one YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from textvae.parsing import Section, parse, read_yaml

_YEAR = 31_536_000  # seconds: moments are reckoned with these numbers, and there is none after the year 9999


class Share(Section):
    """What one owner may have."""

    weight: float = Field(
        1.0, gt=0, description="of two owners who both wait, how much of the cluster each gets"
    )
    cpus: float | None = Field(None, ge=0, description="CPUs at once; none is no limit")
    gpus: float | None = Field(None, ge=0, description="GPUs at once; none is no limit")
    jobs: int | None = Field(None, ge=0, description="running jobs at once; none is no limit")


class Preempting(Section):
    """When a running job has to make room for one of a higher class."""

    enabled: bool = Field(True, description="whether running jobs are ever displaced")
    gap: int = Field(100, ge=1, description="points of priority that make a higher class")
    patience: float = Field(
        30.0, ge=0, description="seconds that the higher job waits before it displaces others"
    )
    uninterrupted: float = Field(
        120.0, ge=0, description="seconds that a job trains before it may be displaced"
    )
    times: int = Field(3, ge=0, description="how often one job may be displaced")


class Growing(Section):
    """When a running job that may have more ranks makes way for itself, to start again with them."""

    enabled: bool = Field(True, description="whether running jobs ever do")
    patience: float = Field(
        60.0, ge=0, description="seconds that the room must have been there, with nobody waiting"
    )
    uninterrupted: float = Field(300.0, ge=0, description="seconds that an attempt trains before it does")


class Policy(Section):
    """All rules; `Policy()` is what holds without a file."""

    default: Share = Field(default_factory=Share, description="of owners that are not listed")
    owners: dict[str, Share] = Field(default_factory=dict, description="shares by owner")
    half_life: float = Field(
        86400.0, gt=0, le=100 * _YEAR, description="seconds after which what was used counts half"
    )
    lookahead: float = Field(
        600.0, ge=0, description="seconds for which a job is charged as soon as it starts"
    )
    ageing: float = Field(
        600.0, gt=0, description="seconds without a turn that lift jobs by one point of priority"
    )
    overdue: float = Field(
        86400.0,
        ge=0,
        description="seconds without a turn, once lifted to the highest, after which jobs go first",
    )
    margin: float = Field(
        180.0,
        ge=0,
        le=_YEAR,
        description="seconds that starting an attempt and ending it at its limit may take",
    )
    preemption: Preempting = Field(default_factory=Preempting)
    growing: Growing = Field(default_factory=Growing)

    def share(self, owner: str) -> Share:
        """What this owner may have."""
        return self.owners.get(owner, self.default)

    def level(self, priority: int, waited: float, top: int) -> int:
        """The priority of a group that has had no turn for so many seconds, lifted up to `top`."""
        return min(max(top, priority), priority + math.floor(min(max(waited, 0.0) / self.ageing, 1e6)))

    def overdue_after(self, priority: int, top: int) -> float:
        """Seconds without a turn after which a group of this priority goes before all that is not overdue."""
        return max(0, top - priority) * self.ageing + self.overdue


def read_policy(path: Path | None) -> Policy:
    """The policy in a YAML file; the default one without a file. Raises textvae.parsing.ConfigError."""
    if path is None or not path.exists():
        return Policy()
    return parse_policy(read_yaml(path), str(path))


def parse_policy(mapping: Mapping[str, object], origin: str = "policy") -> Policy:
    """The policy that a mapping holds. Raises ConfigError: key, reason, nearest key."""
    return parse(Policy, mapping, origin)
