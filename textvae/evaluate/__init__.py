"""The field's metrics. docs/metrics.md has all of them, with their formulas and how each is tested.

`Meter` adds up an epoch's; `evaluate` measures a checkpoint; each metric alone is a function of one of the
modules: likelihood, latent, sentiment, writing, surface, moving, language.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textvae.evaluate.errors import EvaluationError
from textvae.evaluate.meter import ACTIVE_VARIANCE, Meter

if TYPE_CHECKING:
    from textvae.evaluate.evaluation import PARTS, Options, evaluate

__all__ = ["ACTIVE_VARIANCE", "PARTS", "EvaluationError", "Meter", "Options", "evaluate"]


def __getattr__(name: str) -> Any:
    # Late: training imports Meter from here, and what measures a whole model imports what training does not.
    if name in ("PARTS", "Options", "evaluate"):
        from textvae.evaluate import evaluation

        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
