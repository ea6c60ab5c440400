"""From a sweep's config to its children's: which keys there are, which values, and whether each may be."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from jobs.sweeps.config import MOST, Parameter, Sweep
from textvae.parsing import ConfigError, keys, sections, set_key

if TYPE_CHECKING:
    from pydantic import BaseModel

    from jobs.config import JobConfig

# Children are compared by one metric, and are versions of one model.
_SHARED = ("name", "select", "select.metric", "select.mode")
_MANY = 5  # problems told at once


@dataclass(frozen=True)
class Axis:
    """One key, and what it may be: listed values, or every number of a range."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False  # integers only

    @property
    def continuous(self) -> bool:
        """Whether there is no end of values."""
        return not self.values and self.step is None

    @property
    def count(self) -> int:
        """How many values there are, of those that can be counted."""
        if self.values:
            return len(self.values)
        assert self.step is not None
        return int((self.high - self.low) / self.step + 1e-9) + 1

    def value(self, index: int) -> Any:
        """The value of that number, from 0."""
        if self.values:
            return self.values[index]
        assert self.step is not None
        return self.number(self.low + index * self.step)

    def number(self, value: float) -> float | int:
        """A number of the range as a config takes it."""
        return round(value) if self.whole else float(f"{value:.12g}")

    def __str__(self) -> str:
        if self.values:
            return f"{self.key}: {', '.join(map(shown, self.values))}"
        how = ", by the logarithm" if self.log else f", in steps of {self.step:g}" if self.step else ""
        return f"{self.key}: {self.low:g} to {self.high:g}{how}"


class Space:
    """The children that a sweep may have. Raises ConfigError for a key or a value that cannot be."""

    def __init__(self, config: JobConfig):
        assert config.sweep is not None
        self.config = config
        self.sweep: Sweep = config.sweep
        self.axes = axes(type(config), self.sweep, config.seed)

    @cached_property
    def size(self) -> int:
        """How many children the sweep has."""
        if self.sweep.trials is not None:
            return self.sweep.trials
        product = 1
        for axis in self.axes:
            product *= axis.count
        return product

    @cached_property
    def _base(self) -> dict[str, Any]:
        # Only what was given: a default of one kind of objective would be an unknown key of another.
        given = self.config.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
        # Without its kind no key of the objective can be told.
        given.setdefault("objective", {"kind": self.config.objective.kind})
        return given

    def child(self, parameters: Mapping[str, Any]) -> JobConfig:
        """The whole config of the child with these values. Raises ConfigError."""
        from jobs.config import from_mapping

        mapping = copy.deepcopy(self._base)
        for key, value in parameters.items():
            set_key(mapping, key, copy.deepcopy(value), f"sweep.parameters.{key}")
        return from_mapping(mapping)

    def check(self, children: Sequence[Mapping[str, Any]]) -> list[JobConfig]:
        """The config of each child. Raises ConfigError that names what is wrong, and in which child."""
        found: list[JobConfig] = []
        problems: dict[str, str] = {}
        for number, parameters in enumerate(children, start=1):
            try:
                found.append(self.child(parameters))
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, f"{problem} (child {number}: {told(parameters)})")
        if problems:
            more = len(problems) - _MANY
            raise ConfigError(
                [*list(problems.values())[:_MANY], *([f"{more} more"] if more > 0 else [])], "sweep"
            )
        return found

    def check_edges(self) -> None:
        """Check each value by itself, where nobody can tell yet which go together. Raises ConfigError."""
        problems: list[str] = []
        for axis in self.axes:
            ends = axis.values or (axis.number(axis.low), axis.number(axis.high))
            for value in ends:
                try:
                    self.child({axis.key: value})
                except ConfigError as error:
                    # What other keys have to say to it may be otherwise in a child.
                    own = [p for p in error.problems if p.startswith(axis.key)]
                    problems += [f"{p} (sweep.parameters.{axis.key}: {shown(value)})" for p in own]
        if problems:
            raise ConfigError(problems[:_MANY], "sweep")


def axes(model: type[BaseModel], sweep: Sweep, seed: int) -> list[Axis]:
    """The sweep's keys with their values, in the order given. Raises ConfigError."""
    problems: list[str] = []
    found: list[Axis] = []
    known = [key for key in keys(model) if key.split(".")[0] != "sweep"]
    for key, parameter in sweep.parameters.items():
        problem = _unusable(key, known, sweep)
        try:
            if problem is None:
                found.append(_axis(model, key, parameter, sweep.search == "grid"))
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            problems.append(f"sweep.parameters.{key}: {problem}")
    if sweep.array is not None:
        found.append(Axis("seed", tuple(range(seed, seed + sweep.array))))
    if not problems and sweep.search == "grid":
        size = 1
        for axis in found:
            size *= axis.count
        if size > MOST:
            problems.append(f"sweep: a grid of {size:,} children; there may be {MOST:,}")
    if problems:
        raise ConfigError(problems)
    return found


def _unusable(key: str, known: Sequence[str], sweep: Sweep) -> str | None:
    if key not in known:
        last = key.rsplit(".", 1)[-1]
        same_name = [k for k in known if k.rsplit(".", 1)[-1] == last]
        nearest = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"unknown key; the nearest known one is {nearest[0]}"
    if key in _SHARED:
        return "is shared by all children: they are versions of one model, and the best is told by one metric"
    inside = [other for other in sweep.parameters if other.startswith(key + ".")]
    return f"is the section of {inside[0]}: take one of the two" if inside else None


def _axis(model: type[BaseModel], key: str, parameter: Parameter, grid: bool) -> Axis:
    if parameter.values:
        return Axis(key, parameter.values)
    assert parameter.min is not None and parameter.max is not None
    whole = _whole(model, key)
    step = parameter.step
    if whole:
        odd = [n for n in (parameter.min, parameter.max, step) if n is not None and n != int(n)]
        if odd:
            raise ValueError(f"takes integers, not {odd[0]:g}")
        step = step or (None if parameter.log else 1)
    if grid and step is None:
        raise ValueError("a grid needs values, or a range with a step and without log")
    return Axis(key, (), parameter.min, parameter.max, step, parameter.log, whole)


def _whole(model: type[BaseModel], key: str) -> bool:
    """Whether a key takes integers only. Raises ValueError if it takes no numbers."""
    holders: list[type[BaseModel]] = [model]
    *path, last = key.split(".")
    for name in path:
        fields = [holder.model_fields[name] for holder in holders if name in holder.model_fields]
        holders = [section for field in fields for section in sections(field.annotation)]
    taken: set[Any] = set()
    for holder in holders:
        if last in holder.model_fields:
            taken |= set(_types(holder.model_fields[last].annotation))
    if not taken & {int, float}:
        raise ValueError("takes no numbers: list its values")
    return float not in taken


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


def shown(value: Any) -> str:
    """A value in a line: `0.001`, `elbo`, `[a, b]`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    return str(value)


def told(parameters: Mapping[str, Any]) -> str:
    """`objective.kl_weight = 0.1, seed = 3`."""
    return ", ".join(f"{key} = {shown(value)}" for key, value in parameters.items())
