"""Which children are behind their siblings, by what all of them have reported so far: pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from jobs.sweeps.config import EarlyStopping

Curve = Mapping[int, float]  # a metric by epoch, 1 for the first


def behind(rule: EarlyStopping, mode: str, metric: str, own: Curve, siblings: Sequence[Curve]) -> str | None:
    """Why a child with this curve should be stopped, in words; none if it should go on.

    It is judged once its grace is over, at the newest epoch that it has reported, and by siblings that have
    reported that epoch, whether they run still or have ended, however they did.
    """
    if not own:
        return None
    if rule.rule == "median":
        return _behind_median(rule, mode, metric, own, siblings)
    return _behind_halving(rule, mode, metric, own, siblings)


def _behind_median(
    rule: EarlyStopping, mode: str, metric: str, own: Curve, siblings: Sequence[Curve]
) -> str | None:
    epoch = max(own)
    others = [curve[epoch] for curve in siblings if epoch in curve]
    if epoch < rule.grace or len(others) < rule.siblings:
        return None
    best, median = _best(own, mode, epoch), statistics.median(others)
    if not _better(median, best, mode):
        return None
    return (
        f"{metric} {best:.4g} at best in {_epochs(epoch)}, behind the median {median:.4g} of "
        f"{len(others)} sibling{'' if len(others) == 1 else 's'} at epoch {epoch}"
    )


def _behind_halving(
    rule: EarlyStopping, mode: str, metric: str, own: Curve, siblings: Sequence[Curve]
) -> str | None:
    reached = max(own)
    if reached < rule.grace:
        return None
    # The newest rung that it has reached; one that it has passed was decided when it got there.
    rung = rule.grace * rule.factor ** int(math.log(reached / rule.grace, rule.factor) + 1e-9)
    others = [_best(curve, mode, rung) for curve in siblings if curve and max(curve) >= rung]
    if len(others) < rule.siblings:
        return None
    best = _best(own, mode, rung)
    going_on = max(1, (len(others) + 1) // rule.factor)
    ahead = sum(_better(other, best, mode) for other in others)
    if ahead < going_on:
        return None
    return (
        f"{metric} {best:.4g} in {_epochs(rung)}, place {ahead + 1} of {len(others) + 1} that got so far; "
        f"{going_on} of them {'goes' if going_on == 1 else 'go'} on"
    )


def _best(curve: Curve, mode: str, until: int) -> float:
    values = [value for epoch, value in curve.items() if epoch <= until]
    return max(values) if mode == "max" else min(values)


def _better(a: float, b: float, mode: str) -> bool:
    return a > b if mode == "max" else a < b


def _epochs(n: int) -> str:
    return f"{n} epoch" + ("" if n == 1 else "s")
