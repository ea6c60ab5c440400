"""The `sweep:` section of a config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from textvae.parsing import Section

MOST = 1000  # children that one sweep may have


class Parameter(Section):
    """What one key takes in the children: listed values, or a range of numbers."""

    values: tuple[Any, ...] = Field((), description="the values themselves, of any kind that the key takes")
    min: float | None = Field(None, description="a range's least value")
    max: float | None = Field(None, description="a range's greatest value, itself included")
    step: float | None = Field(
        None, gt=0, description="distance between a range's values; grid needs it, integers default to 1"
    )
    log: bool = Field(False, description="random, optuna: draw from a range evenly by the logarithm")

    @model_validator(mode="after")
    def _values_or_a_range(self) -> Parameter:
        ends = (self.min is not None) + (self.max is not None)
        if bool(self.values) == bool(ends) or ends == 1:
            raise ValueError("needs either values: [a, b, ...] or both min and max")
        if self.values and (self.step is not None or self.log):
            raise ValueError("step and log go with min and max, not with values")
        if any(value in self.values[:i] for i, value in enumerate(self.values)):
            raise ValueError("lists a value twice")
        if self.min is not None and self.max is not None:
            if not self.min < self.max:
                raise ValueError(f"min ({self.min:g}) must be less than max ({self.max:g})")
            if self.log and self.min <= 0:
                raise ValueError(f"log needs a min above 0 (got {self.min:g})")
            if self.log and self.step is not None:
                raise ValueError("log and step exclude one another")
        return self


class EarlyStopping(Section):
    """When a child that is behind its siblings is stopped, with a checkpoint."""

    rule: Literal["median", "halving"] = Field(
        "median",
        description="median: its best so far is behind the median of what its siblings had at the same "
        "epoch; halving: after grace, grace * factor, grace * factor^2, ... epochs it is not among the best "
        "of those that got so far, one in factor",
    )
    grace: int = Field(1, ge=1, description="epochs that every child trains")
    siblings: int = Field(
        3, ge=1, description="siblings that must have reported the same epoch before it is judged by them"
    )
    factor: int = Field(3, ge=2, description="halving: one child in so many goes on")


class Sweep(Section):
    """Makes the config a sweep: one job, the parent, with a child for each combination of values."""

    search: Literal["grid", "random", "optuna"] = Field(
        "grid",
        description="grid: every combination; random: combinations drawn at random; optuna: each is chosen "
        "by what the ones before it came to (a tree-structured Parzen estimator)",
    )
    parameters: dict[str, Parameter] = Field(
        default_factory=dict, description="by dotted key, such as training.learning_rate"
    )
    array: int | None = Field(
        None, ge=2, le=MOST, description="grid: so often each combination, with the seeds seed, seed + 1, ..."
    )
    trials: int | None = Field(
        None, ge=1, le=MOST, description="random, optuna: the number of children, which they need"
    )
    parallel: int | None = Field(
        None, ge=1, description="children that may wait or run at once; none sets no limit (optuna: 4)"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="random, optuna: seed of what is drawn")
    startup: int = Field(10, ge=1, description="optuna: children drawn at random before it begins to choose")
    early_stopping: EarlyStopping | None = Field(None, description="none lets every child train to its end")

    @model_validator(mode="after")
    def _the_search_has_what_it_needs(self) -> Sweep:
        if not self.parameters and self.array is None:
            raise ValueError("needs parameters, or an array: the number of repeats with seeds of their own")
        if self.search == "grid":
            if self.trials is not None:
                raise ValueError("trials goes with search random or optuna: a grid has every combination")
        elif self.trials is None:
            raise ValueError(f"search {self.search} needs trials: the number of children")
        elif not self.parameters:
            raise ValueError(f"search {self.search} needs parameters")
        elif self.array is not None:
            raise ValueError(f"array goes with search grid, not {self.search}")
        if self.array is not None and "seed" in self.parameters:
            raise ValueError("array gives each child its seed: take it without a parameter seed")
        return self

    @property
    def at_once(self) -> int:
        """Children that may wait or run at once."""
        return self.parallel or (4 if self.search == "optuna" else MOST)
