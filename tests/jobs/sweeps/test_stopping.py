"""Which children are behind their siblings."""

from __future__ import annotations

import pytest

from jobs.sweeps.config import EarlyStopping
from jobs.sweeps.stopping import Curve, behind


def curve(*values: float) -> Curve:
    return dict(enumerate(values, start=1))


SIBLINGS = [curve(0.5, 0.7, 0.8), curve(0.6, 0.8), curve(0.4, 0.6, 0.9), curve(0.7)]


def told(own: Curve, others: list[Curve] = SIBLINGS, mode: str = "max", **rule: object) -> str | None:
    return behind(EarlyStopping(**rule), mode, "accuracy", own, others)  # type: ignore[arg-type]


def test_behind_the_median_of_the_same_epoch():
    assert told(curve(0.3, 0.65)) == (
        "accuracy 0.65 at best in 2 epochs, behind the median 0.7 of 3 siblings at epoch 2"
    )
    assert told(curve(0.3, 0.7)) is None  # as good is not behind
    assert told(curve(0.9, 0.1)) is None  # its best so far counts, not its last
    assert told(curve(0.54)) is not None
    assert told(curve(0.55)) is None


def test_less_may_be_better():
    assert told(curve(0.9, 0.9), mode="min") is not None
    assert told(curve(0.9, 0.65), mode="min") is None


@pytest.mark.parametrize(
    ("own", "rule"),
    [
        (curve(0.1), {"grace": 2}),  # its grace is not over
        (curve(0.1), {"siblings": 5}),  # too few have got so far
        (curve(0.1, 0.1, 0.1), {"siblings": 3}),
        ({}, {}),  # it has reported nothing
        (curve(0.1), {"rule": "halving", "grace": 2}),
        ({}, {"rule": "halving"}),
    ],
)
def test_nobody_is_judged_too_early(own: Curve, rule: dict[str, object]):
    assert told(own, **rule) is None


def test_a_third_goes_on_at_each_rung():
    siblings = [curve(0.1 * n) for n in range(1, 9)]  # 0.1 to 0.8
    halving = {"rule": "halving", "siblings": 2, "factor": 3}
    assert told(curve(0.55), siblings, **halving) is not None  # three of nine are ahead
    assert told(curve(0.65), siblings, **halving) is None
    assert "place 4 of 9 that got so far; 3 of them go on" in str(told(curve(0.55), siblings, **halving))


def test_between_two_rungs_the_lower_one_counts():
    siblings = [curve(0.5, 0.5, 0.5), curve(0.6, 0.6, 0.6), curve(0.7, 0.7, 0.7)]
    halving = {"rule": "halving", "siblings": 2, "factor": 3}
    assert told(curve(0.9, 0.1), siblings, **halving) is None
    assert told(curve(0.4, 0.9), siblings, **halving) is not None  # what came later was not there at the rung
    # At its next rung it is compared with those that got there, by their best until then.
    assert told(curve(0.9, 0.1, 0.1), siblings, **halving) is None
    assert "in 3 epochs" in str(told(curve(0.4, 0.4, 0.65), siblings, **halving))
