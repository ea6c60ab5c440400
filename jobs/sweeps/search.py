"""Which child comes next: the grid's, one drawn at random, or the one that Optuna suggests.

Each is a function of the sweep and, for Optuna, of what the children before it came to. Whoever computes it
again from the same records comes to the same child.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jobs.sweeps.space import Axis, Space
from textvae.parsing import ConfigError

if TYPE_CHECKING:
    import optuna

    from jobs.config import JobConfig

_TRIES = 100  # suggestions in a row that may be no config

Outcome = Literal["open", "done", "stopped", "failed"]


class NoSuggestion(Exception):
    """Nothing that Optuna suggests is a config; the message says what was wrong last."""


@dataclass(frozen=True)
class Past:
    """A child that was made before, as the search sees it."""

    number: int
    parameters: Mapping[str, Any]
    outcome: Outcome  # not ended yet, succeeded, stopped early, or ended otherwise
    value: float | None  # of its best checkpoint
    curve: Mapping[int, float]  # the metric by epoch


def checked(config: JobConfig) -> Space:
    """The space of a sweep, every child of which that can be told by now is a whole config.

    Raises ConfigError that names what is wrong, and in which child.
    """
    space = Space(config)
    if space.sweep.search == "optuna":
        space.check_edges()
    else:
        space.check(planned(space))
    return space


def planned(space: Space) -> list[dict[str, Any]]:
    """The parameters of every child that is known before any has run: of all, but with Optuna of none."""
    if space.sweep.search == "grid":
        return [grid(space, number) for number in range(1, space.size + 1)]
    if space.sweep.search == "random":
        return [draw(space, number) for number in range(1, space.size + 1)]
    return []


def choose(space: Space, number: int, past: Sequence[Past]) -> dict[str, Any]:
    """The parameters of child `number`, from 1. Raises NoSuggestion."""
    if space.sweep.search == "grid":
        return grid(space, number)
    if space.sweep.search == "random":
        return draw(space, number)
    return suggest(space, number, past)


def grid(space: Space, number: int) -> dict[str, Any]:
    """Every combination in turn; the last key's values change fastest."""
    rest, found = number - 1, {}
    for axis in reversed(space.axes):
        rest, index = divmod(rest, axis.count)
        found[axis.key] = axis.value(index)
    return {axis.key: found[axis.key] for axis in space.axes}


def draw(space: Space, number: int) -> dict[str, Any]:
    """One drawn at random, each number by itself."""
    source = random.Random(f"sweep {space.sweep.seed}, child {number}")
    return {axis.key: _drawn(axis, source) for axis in space.axes}


def _drawn(axis: Axis, source: random.Random) -> Any:
    if not axis.continuous:
        return axis.value(source.randrange(axis.count))
    if axis.log:
        value = math.exp(source.uniform(math.log(axis.low), math.log(axis.high)))
    else:
        value = source.uniform(axis.low, axis.high)
    return axis.number(min(max(value, axis.low), axis.high))


def suggest(space: Space, number: int, past: Sequence[Past]) -> dict[str, Any]:
    """What Optuna suggests after `past`. A suggestion that is no config is told to it as failed, and it is
    asked again. Raises NoSuggestion."""
    import optuna  # takes a second, and only such a sweep needs it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    source = random.Random(f"sweep {space.sweep.seed}, child {number}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=source.randrange(2**32),
            n_startup_trials=space.sweep.startup,
            constant_liar=True,  # children that run keep the next one away from where they are
        )
    study = optuna.create_study(
        sampler=sampler, direction="maximize" if space.config.select.mode == "max" else "minimize"
    )
    ways = {axis.key: _distribution(axis) for axis in space.axes}
    for each in sorted(past, key=lambda one: one.number):
        study.add_trial(_trial(space, each, ways))
    problem = ""
    for _ in range(_TRIES):
        trial = study.ask(ways)
        found = {axis.key: _told(axis, trial.params[axis.key]) for axis in space.axes}
        try:
            space.child(found)
        except ConfigError as error:
            problem = error.problems[0]
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            return found
    raise NoSuggestion(f"{_TRIES} suggestions in a row were no config, the last one because: {problem}")


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values:
        # By their places: a value may be a list, or a mapping.
        return CategoricalDistribution(tuple(range(len(axis.values))))
    if axis.whole:
        if axis.log:
            return IntDistribution(int(axis.low), int(axis.high), log=True)
        step = int(axis.step or 1)
        return IntDistribution(int(axis.low), int(axis.low) + (axis.count - 1) * step, step=step)
    # Optuna takes for unreachable what the float below a step's multiple is.
    high = axis.high if axis.step is None else axis.number(axis.low + (axis.count - 1) * axis.step)
    return FloatDistribution(axis.low, high, log=axis.log, step=axis.step)


def _told(axis: Axis, value: Any) -> Any:
    return axis.values[value] if axis.values else axis.number(value)


def _trial(
    space: Space, past: Past, ways: Mapping[str, optuna.distributions.BaseDistribution]
) -> optuna.trial.FrozenTrial:
    import optuna
    from optuna.trial import TrialState

    state, value = TrialState.FAIL, None
    if past.outcome == "done" and past.value is not None:
        state, value = TrialState.COMPLETE, past.value
    elif past.outcome == "open":
        state = TrialState.RUNNING
    elif past.outcome == "stopped":
        state = TrialState.PRUNED
    places = {
        axis.key: axis.values.index(past.parameters[axis.key]) if axis.values else past.parameters[axis.key]
        for axis in space.axes
    }
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=places,
        distributions=dict(ways),
        intermediate_values=dict(past.curve),
    )
