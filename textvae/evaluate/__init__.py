"""The field's metrics. `Meter` adds up an epoch's; docs/metrics.md has all of them with their formulas."""

from textvae.evaluate.meter import ACTIVE_VARIANCE, Meter

__all__ = ["ACTIVE_VARIANCE", "Meter"]
