"""Pictures of a training and of a latent space, as PNG files.

Drawn with matplotlib's objects alone, without pyplot and its global state: any thread may draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from textvae.config import METRICS

# Okabe & Ito's colours, told apart by people of every colour vision.
BLUE, VERMILION, GREY, INK = "#0072B2", "#D55E00", "#B0B0B0", "#333333"

_CLASSES = {-1: ("no label", GREY), 0: ("negative", VERMILION), 1: ("positive", BLUE)}

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


def curves(reports: Sequence[Mapping[str, Any]], path: Path | str, *, title: str = "Training") -> None:
    """Every metric over the epochs, training and validation, as a grid in the PNG at `path`.

    A report is a mapping with `epoch` (from 1) and `train` and `validation`, each of metric to value; a value
    may be missing or NaN. Raises ValueError if there is no report.
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
            drawn += values
            axes.plot(
                epochs, values, style, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=part
            )
        heading, unit = _TITLES[metric]
        axes.set_title(heading, fontsize=11, color=INK)
        axes.set_ylabel(unit, fontsize=8.5, color=INK)
        axes.set_xlabel("epoch", fontsize=8.5, color=INK)
        axes.set_xlim(min(epochs) - 0.4, max(epochs) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        if metric.endswith("accuracy"):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        elif metric == "active_units":
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.set_ylim(0, 1.08 * max([1.0, *(v for v in drawn if not math.isnan(v))]))
        _tidy(axes)
    for spare in grid[len(METRICS) :]:
        spare.set_visible(False)
    figure.suptitle(title, fontsize=14, color=INK, x=0.01, ha="left")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False, fontsize=10)
    _save(figure, path)


def projection(
    means: ArrayLike,
    labels: ArrayLike,
    path: Path | str,
    *,
    direction: ArrayLike | None = None,
    bias: float | None = None,
    title: str = "The latent space",
) -> None:
    """Posterior means (reviews, latent) on their two principal components, in the PNG at `path`.

    `labels` (reviews,): 1 positive, 0 negative, -1 none. `direction` (latent,), the weights of the linear
    sentiment head, is drawn as an arrow, its projection; with the head's `bias` too, a line shows where the
    plane of the two components has even odds. Raises ValueError for shapes that do not fit.
    """
    points = np.asarray(means, dtype=np.float64)
    classes = np.asarray(labels)
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"means must be (reviews, latent) of at least 2 reviews, got {points.shape}")
    if classes.shape != points.shape[:1]:
        raise ValueError(f"labels must be ({len(points)},), one a review, got {classes.shape}")
    weights = None if direction is None else np.asarray(direction, dtype=np.float64)
    if weights is not None and weights.shape != points.shape[1:]:
        raise ValueError(f"direction must be ({points.shape[1]},), got {weights.shape}")
    center = points.mean(axis=0)
    axes_of, explained = _principal(points - center, weights)
    flat = (points - center) @ axes_of.T  # (reviews, 2)

    limits = _limits(flat)
    width, height = (high - low for low, high in limits)
    scale = 6.2 / max(width, height)
    figure = Figure(figsize=(scale * width + 1.0, scale * height + 1.1), layout="constrained")
    axes = figure.subplots()
    _scatter(axes, flat, classes)
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.set_aspect("equal")
    says = f"{len(points):,} reviews"
    if weights is not None:
        offset = None if bias is None else float(center @ weights + bias)
        _head(axes, axes_of @ weights, offset, limits)
        says += "; arrow: more positive" + ("" if bias is None else ", dashed: even odds")
    axes.set_title(says, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel(f"first principal component ({explained[0]:.0%} of the variance)", color=INK)
    axes.set_ylabel(f"second principal component ({explained[1]:.0%})", color=INK)
    _tidy(axes)
    figure.suptitle(title, fontsize=14, color=INK, x=0.01, ha="left")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="upper right", ncols=3, frameon=False, fontsize=9.5, handletextpad=0.1)
    _save(figure, path)


def _scatter(axes: Axes, flat: NDArray[np.float64], classes: NDArray[Any]) -> None:
    size = float(np.clip(9000 / len(flat), 3.0, 26.0))
    alpha = float(np.clip(600 / len(flat), 0.25, 0.75))
    unlabelled = np.flatnonzero(classes < 0)
    # Both classes at once and in mixed order: drawn one after the other, the second would bury the first.
    labelled = np.random.default_rng(0).permutation(np.flatnonzero(classes >= 0))
    for rows in (unlabelled, labelled):
        colours = [_CLASSES[int(classes[row])][1] for row in rows]
        axes.scatter(flat[rows, 0], flat[rows, 1], s=size, c=colours, alpha=alpha, linewidths=0)
    for value, (name, colour) in _CLASSES.items():
        if (classes == value).any():
            axes.scatter([], [], s=30, color=colour, label=name)


def _principal(
    centered: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two main axes (2, latent) and the share of the variance on each.

    Their signs are such that the head points up and right. A latent of one dimension gets a second axis of
    zeros.
    """
    _, scales, axes_of = np.linalg.svd(centered, full_matrices=False)
    total = float(np.square(scales).sum()) or 1.0
    two = np.zeros((2, centered.shape[1]))
    share = np.zeros(2)
    kept = min(2, len(axes_of))
    two[:kept] = axes_of[:kept]
    share[:kept] = np.square(scales[:kept]) / total
    for axis in two[:kept]:
        towards = axis @ weights if weights is not None else axis[np.abs(axis).argmax()]
        if towards < 0:
            axis *= -1.0
    return two, share


def _limits(flat: NDArray[np.float64]) -> list[tuple[float, float]]:
    """What to show of both components: all points, a margin, and a shape that leaves room for titles."""
    low, high = flat.min(axis=0), flat.max(axis=0)
    extent = np.maximum(high - low, 1e-6) * 1.12
    half = np.maximum(extent, np.array([0.85, 0.45]) * extent.max()) / 2
    middle = (low + high) / 2
    return [(float(m - h), float(m + h)) for m, h in zip(middle, half, strict=True)]


def _head(
    axes: Axes, towards: NDArray[np.float64], offset: float | None, limits: list[tuple[float, float]]
) -> None:
    """The head's direction in the plane as an arrow, and where its log-odds are 0 there as a line."""
    length = float(np.linalg.norm(towards))
    if length == 0:
        return
    unit = towards / length
    reach = 0.3 * min(high - low for low, high in limits)
    start = np.zeros(2) if offset is None else -offset / length * unit
    if offset is not None:
        across = np.array([-unit[1], unit[0]])
        axes.axline(tuple(start), tuple(start + across), color=INK, linewidth=1.2, linestyle="--")
    end = start + reach * unit
    axes.annotate(
        "",
        xy=tuple(end),
        xytext=tuple(start),
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0},
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.grid(color="#EBEBEB", linewidth=0.8)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path | str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    FigureCanvasAgg(figure)
    try:
        figure.savefig(partial, format="png", dpi=150, facecolor="white")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
