"""Sides that take short turns on the same reviews, and what may be concluded from their times.

A machine's pace drifts by more than the differences that are looked for. So the sides alternate, A B B A A B,
and are compared portion by portion, each with its neighbour in time.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from textvae.batches import Batch

Portion = Sequence[Batch]  # the same reviews for all sides, though perhaps not in the same batches
_DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class Side:
    """One way to train: `step` takes a batch one step on, `wait` until the device has done all of it."""

    name: str
    portions: Sequence[Portion]
    step: Callable[[Batch], object]
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Turn:
    """What a side took for one portion."""

    seconds: float
    tokens: int  # real ones: padding left out

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds


def take_turns(
    sides: Sequence[Side], *, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[Turn]]:
    """Each side's turns, one a portion, after `warm_up` portions' first steps that do not count."""
    for side in sides:
        for portion in side.portions[:warm_up]:
            side.step(portion[-1])
        side.wait()
    turns: dict[str, list[Turn]] = {side.name: [] for side in sides}
    for number in range(min(len(side.portions) for side in sides)):
        for side in sides if number % 2 == 0 else reversed(sides):
            portion = side.portions[number]
            began = clock()
            for batch in portion:
                side.step(batch)
            side.wait()
            seconds = clock() - began
            turns[side.name].append(Turn(seconds, sum(int(batch.lengths.sum()) for batch in portion)))
    return turns


@dataclass(frozen=True)
class Ratio:
    """How many times as large the numbers of one side are as those of the other, pair by pair."""

    medians: float  # of the sides' medians
    best: float  # of the sides' best turns: their largest numbers, or smallest, whichever is better
    paired: float  # the median of the pairs' ratios
    low: float  # from here ...
    high: float  # ... to here it lies with a probability of 95 % (bootstrap over pairs)
    smallest: float  # of the pairs' ratios
    largest: float
    pairs: int

    def shown(self) -> str:
        """As text."""
        return (
            f"medians {self.medians:.3f}, best turns {self.best:.3f}, median of {self.pairs} pairs "
            f"{self.paired:.3f} (95 %: {self.low:.3f} to {self.high:.3f}; all: {self.smallest:.3f} to "
            f"{self.largest:.3f})"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def ratio(
    ours: Sequence[float], theirs: Sequence[float], *, best: Callable[[Sequence[float]], float] = max
) -> Ratio:
    """Of two sides' numbers, the same portion's at the same place."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, high = interval(pairs)
    return Ratio(
        medians=statistics.median(ours) / statistics.median(theirs),
        best=best(ours) / best(theirs),
        paired=statistics.median(pairs),
        low=low,
        high=high,
        smallest=min(pairs),
        largest=max(pairs),
        pairs=len(pairs),
    )


def interval(numbers: Sequence[float], *, share: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Where the median lies with that probability (Efron 1979: the percentiles of resampled medians)."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(numbers, k=len(numbers))) for _ in range(_DRAWS))
    cut = round((1 - share) / 2 * _DRAWS)
    return medians[cut], medians[-1 - cut]
