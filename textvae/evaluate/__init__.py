"""The field's metrics. docs/metrics.md has all of them, with their formulas and how each is tested.

`Meter` adds up an epoch's; `evaluate` measures a checkpoint; each metric alone is a function of one of the
modules: likelihood, latent, sentiment, writing, surface, moving, language.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from textvae.evaluate.arguments import PARTS
from textvae.evaluate.errors import EvaluationError

if TYPE_CHECKING:
    from textvae.evaluate.evaluation import Options, evaluate
    from textvae.evaluate.meter import ACTIVE_VARIANCE, Meter

__all__ = ["ACTIVE_VARIANCE", "PARTS", "EvaluationError", "Meter", "Options", "evaluate"]

# Imported when they are asked for: a command line wants the names of the parts and no torch, and training
# wants the Meter and nothing of what measures a whole model.
_LATE = {
    "ACTIVE_VARIANCE": "meter",
    "Meter": "meter",
    "Options": "evaluation",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"textvae.evaluate.{_LATE[name]}"), name)
