"""What can be asked of an evaluation in vain."""

from __future__ import annotations


class EvaluationError(ValueError):
    """This cannot be measured: an option is out of range, or there is nothing to measure."""
