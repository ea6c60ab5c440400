"""Learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from textvae.config import METRICS
from textvae.plots.style import BLUE, INK, VERMILION, tidy

_TITLES = {
    "loss": ("Loss", "nats per review"),
    "reconstruction": ("Reconstruction", "nats per review"),
    "kl": ("KL divergence", "nats per review"),
    "sentiment_loss": ("Sentiment loss", "nats per labelled review"),
    "sentiment_accuracy": ("Sentiment accuracy", "labelled reviews"),
    "token_accuracy": ("Token accuracy", "real tokens"),
    "all_positions_accuracy": ("All-positions accuracy", "positions, padding too"),
    "active_units": ("Active units", "latent dimensions"),
}


def curves(reports: Sequence[Mapping[str, Any]], *, title: str = "Training") -> Figure:
    """Every metric over the epochs, training and validation, as a grid.

    A report is a mapping with `epoch` (from 1) and `train` and `validation`, each of metric to value; a value
    may be missing or NaN, and a metric that has none in any report says so. Raises ValueError if there is no
    report.
    """
    if not reports:
        raise ValueError("there is no report to draw: training has not finished an epoch")
    columns = 4
    rows = math.ceil(len(METRICS) / columns)
    figure = Figure(figsize=(3.3 * columns, 2.75 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    epochs = [int(report["epoch"]) for report in reports]
    for axes, metric in zip(grid, METRICS, strict=False):
        drawn: list[float] = []
        for part, colour, style in (("train", BLUE, "-"), ("validation", VERMILION, "--")):
            values = [_number(report.get(part, {}).get(metric)) for report in reports]
            drawn += [value for value in values if math.isfinite(value)]
            axes.plot(
                epochs, values, style, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=part
            )
        heading, unit = _TITLES.get(metric, (metric.replace("_", " ").capitalize(), ""))
        axes.set_title(heading, fontsize=11, color=INK)
        axes.set_ylabel(unit, fontsize=8.5, color=INK)
        axes.set_xlabel("epoch", fontsize=8.5, color=INK)
        axes.set_xlim(min(epochs) - 0.4, max(epochs) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        if not drawn:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=INK)
        elif metric.endswith("accuracy"):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        elif metric == "active_units":
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.set_ylim(0, 1.08 * max([1.0, *drawn]))
        tidy(axes)
    for spare in grid[len(METRICS) :]:
        spare.set_visible(False)
    figure.suptitle(title, fontsize=14, color=INK, x=0.01, ha="left")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=10, labelcolor=INK
    )
    return figure


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
