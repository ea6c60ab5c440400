"""The latent space on two axes: principal components, t-SNE, and the axis that tells sentiment best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from textvae.plots import maps
from textvae.plots.style import CLASSES, GREY, INK, captions, legend, rating_colour, tidy

if TYPE_CHECKING:
    from textvae.plots.seen import Seen

Limits = list[tuple[float, float]]

_PANEL = 4.9  # inches, the width of one map
_MAP_REVIEWS = 2000  # t-SNE is of that many at most: its time grows faster than their number


def principal_components(seen: Seen, *, title: str = "The latent space", caption: str = "") -> Figure:
    """Posterior means on their two principal components, by label and, where there are any, by rating.

    The linear head's direction is an arrow, its projection, and a dashed line shows where the plane has even
    odds. A panel beside shows how much of the variance each component explains. Raises ValueError for fewer
    than 2 reviews or a model without a latent.
    """
    _check(seen)
    plane = maps.principal_plane(seen.means, seen.direction)
    names = [
        f"{which} principal component ({share:.0%} of the variance)"
        for which, share in zip(("first", "second"), plane.explained, strict=True)
    ]
    figure, panels, cell = _panels(seen, plane.points, beside=2.9, caption=caption)
    for axes in panels:
        _head(axes, *plane.linear(seen.direction, seen.bias), named=axes is panels[0])
        _name(axes, *names)
    bars = figure.add_subplot(cell)
    shares = maps.explained_variance(seen.means)
    at = np.arange(1, len(shares) + 1)
    bars.bar(at, shares, color=GREY, width=0.8, label="each")
    bars.plot(at, shares.cumsum(), color=INK, marker="o", markersize=2.5, linewidth=1.2, label="together")
    bars.set_ylim(0, 1.05)
    bars.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bars.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    bars.set_title("explained variance", fontsize=10, color=INK, loc="left", pad=24)
    _name(bars, "principal component", "share of the variance")
    return _finish(figure, [*panels, bars], title, caption)


def neighbourhoods(
    seen: Seen, *, seed: int = 0, title: str = "The latent space", caption: str = ""
) -> Figure:
    """Posterior means by t-SNE, by label and, where there are any, by rating; at most 2,000 reviews, seeded.

    Raises ValueError for fewer than 2 reviews or a model without a latent.
    """
    _check(seen)
    shown = np.random.default_rng(seed).permutation(len(seen))[:_MAP_REVIEWS]
    points = maps.tsne(seen.means[shown], seed)
    figure, panels, _ = _panels(seen, points, rows=shown, caption=caption)
    for axes in panels:
        _name(axes, "t-SNE, first axis (no unit)", "t-SNE, second axis (no unit)")
    return _finish(figure, panels, title, caption)


def discriminant(seen: Seen, *, seed: int = 0, title: str = "The latent space", caption: str = "") -> Figure:
    """Posterior means along the axis that tells sentiment best, by label and, where there are any, by rating.

    The axis is found by linear discriminant analysis on half of the labelled reviews, and only the others are
    shown. Beside: how the classes lie along that axis, and along the linear head. Raises ValueError unless
    each class has at least 4 reviews and the model has a latent.
    """
    _check(seen)
    labelled = np.random.default_rng(seed).permutation(np.flatnonzero(seen.labels >= 0))
    # Half of each class, so that neither half lacks one.
    halves = [labelled[seen.labels[labelled] == label] for label in (0, 1)]
    if min(map(len, halves)) < 4:
        raise ValueError("the axis that tells sentiment best needs at least 4 labelled reviews of each class")
    fitted = np.concatenate([half[: len(half) // 2] for half in halves])
    shown = np.sort(np.concatenate([half[len(half) // 2 :] for half in halves]))
    weights, bias = maps.discriminant_analysis(seen.means[fitted], seen.labels[fitted])
    scores = seen.means[shown] @ weights + bias
    points, explained = maps.along(seen.means[shown], scores)
    figure, panels, cell = _panels(seen, points, rows=shown, equal=False, beside=4.2, caption=caption)
    for axes in panels:
        axes.axvline(0.0, color=INK, linewidth=1.2, linestyle=":")
        _name(
            axes,
            f"best axis: log-odds by LDA ({explained[0]:.0%} of the variance)",
            f"main component of the rest ({explained[1]:.0%} of the variance)",
        )
    panels[0].plot([], [], color=INK, linewidth=1.2, linestyle=":", label="LDA: even odds")
    stacked = cell.subgridspec(2, 1)
    histograms = [figure.add_subplot(stacked[row, 0]) for row in range(2)]
    for axes, values, name in zip(
        histograms, (scores, seen.log_odds[shown]), ("LDA", "linear head"), strict=True
    ):
        _classes(axes, values, seen.labels[shown], named=axes is histograms[0])
        right = float(((values > 0) == (seen.labels[shown] > 0)).mean())
        axes.set_title(f"{name}: {right:.1%} right", fontsize=10, color=INK, loc="left")
        _name(axes, f"log-odds of positive by {name} (nats)", "reviews")
    return _finish(figure, [*panels, *histograms], title, caption)


def _check(seen: Seen) -> None:
    if seen.latent == 0:
        raise ValueError("a model without a latent has no latent space to draw")
    if len(seen) < 2:
        raise ValueError(f"a latent space is drawn of at least 2 reviews, not {len(seen)}")


def _panels(
    seen: Seen,
    points: NDArray[np.float64],
    *,
    rows: NDArray[np.int64] | None = None,
    equal: bool = True,
    beside: float = 0.0,
    caption: str = "",
) -> tuple[Figure, list[Axes], SubplotSpec]:
    """A figure with a map by label and, where there are ratings, one by rating.

    points (len(rows), 2): of the reviews at `rows`, of all by default. equal: both axes have one scale.
    beside: inches for something else at the right; the cell returned is for that.
    """
    rows = np.arange(len(seen)) if rows is None else rows
    labels, ratings = seen.labels[rows], seen.ratings[rows]
    rated = bool(np.isfinite(ratings).any())
    limits = _limits(points, equal)
    width, height = (high - low for low, high in limits) if equal else (1.0, 0.85)
    widths = [_PANEL] * (1 + rated) + [beside] * (beside > 0)
    size = (sum(widths) + 0.3 * len(widths), _PANEL * height / width + 1.2 + 0.5 * bool(caption))
    figure = Figure(figsize=size, layout="compressed")
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    panels = []
    for column in range(1 + rated):
        axes = figure.add_subplot(grid[0, column])
        if column == 0:
            _by_label(axes, points, labels)
        else:
            _by_rating(axes, points, ratings)
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
        axes.set_box_aspect(height / width)
        count = int(np.isfinite(ratings).sum()) if column else len(rows)
        heading = f"{count:,} reviews by rating" if column else f"{count:,} reviews by label"
        # The legend stands above the map; the heading above the legend.
        axes.set_title(heading, fontsize=10, color=INK, loc="left", pad=24)
        panels.append(axes)
    return figure, panels, grid[0, -1]


def _finish(figure: Figure, axes: Sequence[Axes], title: str, caption: str) -> Figure:
    for each in axes:
        tidy(each)
        legend(each, columns=10)
    captions(figure, title, caption)
    return figure


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)


def _by_label(axes: Axes, points: NDArray[np.float64], labels: NDArray[np.int8]) -> None:
    unlabelled = np.flatnonzero(labels < 0)
    # Both classes at once and in mixed order: drawn one after the other, the second would bury the first.
    labelled = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
    for rows in (unlabelled, labelled):
        _dots(axes, points[rows], [CLASSES[int(labels[row])][1] for row in rows], len(points))
    for value, (name, colour) in CLASSES.items():
        if (labels == value).any():
            axes.scatter([], [], s=28, color=colour, label=name)


def _by_rating(axes: Axes, points: NDArray[np.float64], ratings: NDArray[np.float32]) -> None:
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isfinite(ratings)))
    known = np.unique(ratings[rows]).tolist()
    # Ratings of 1 to 10 have the same colours in every picture; others are spread over theirs.
    low, high = min(1.0, *known[:1]), max(10.0, *known[-1:])
    _dots(axes, points[rows], [rating_colour(float(ratings[row]), low, high) for row in rows], len(points))
    named = known if len(known) <= 10 else np.linspace(known[0], known[-1], 5).tolist()
    for rating in named:
        axes.scatter([], [], s=28, color=rating_colour(rating, low, high), label=f"{rating:.2g}")


def _dots(axes: Axes, points: NDArray[np.float64], colours: list[str], count: int) -> None:
    size = float(np.clip(9000 / count, 4.0, 26.0))
    alpha = float(np.clip(1200 / count, 0.35, 0.75))
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, alpha=alpha, linewidths=0)


def _classes(axes: Axes, values: NDArray[np.float64], labels: NDArray[np.int8], *, named: bool) -> None:
    """Histograms of both classes on the same bins, with a line at even odds."""
    edges = np.histogram_bin_edges(values, bins=30).tolist()
    for label in (0, 1):
        name, colour = CLASSES[label]
        axes.hist(values[labels == label], edges, color=colour, alpha=0.5, label=name if named else None)
        axes.hist(values[labels == label], edges, color=colour, histtype="step", linewidth=1.3)
    axes.axvline(0.0, color=INK, linewidth=1.2, linestyle="--")


def _limits(points: NDArray[np.float64], equal: bool) -> Limits:
    """What to show of both axes: all points, a margin, and, on one scale, a shape with room for titles."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.maximum(high - low, 1e-6) * 1.12
    half = (np.maximum(extent, np.array([0.85, 0.7]) * extent.max()) if equal else extent) / 2
    middle = (low + high) / 2
    return [(float(m - h), float(m + h)) for m, h in zip(middle, half, strict=True)]


def _head(axes: Axes, towards: NDArray[np.float64], offset: float, *, named: bool) -> None:
    """The head's direction in the plane as an arrow, and where its log-odds are 0 there as a line."""
    length = float(np.linalg.norm(towards))
    if length == 0:
        return
    unit = towards / length
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    corner = np.array([left, bottom])
    reach = 0.3 * min(right - left, top - bottom)
    start = -offset / length * unit
    across = np.array([-unit[1], unit[0]])
    if _crosses(start, across, corner, np.array([right, top])):
        axes.axline(tuple(start), tuple(start + across), color=INK, linewidth=1.2, linestyle="--")
        if named:
            axes.plot([], [], color=INK, linewidth=1.2, linestyle="--", label="head: even odds")
    # Where the line leaves the centre of the picture, the arrow stays in it.
    middle = np.array([(left + right) / 2, (bottom + top) / 2])
    start = start + across * float((middle - start) @ across)
    if not (np.all(start > corner) and np.all(start < (right, top))):
        start = middle
    axes.annotate(
        "",
        xy=tuple(start + reach * unit),
        xytext=tuple(start),
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0},
    )
    if named:
        axes.scatter([], [], s=60, color=INK, marker=r"$\rightarrow$", label="more positive")


def _crosses(
    point: NDArray[np.float64],
    along: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> bool:
    """Whether a line crosses a rectangle: its corners are on both sides."""
    normal = np.array([-along[1], along[0]])
    corners = np.array([(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])])
    sides = (corners - point) @ normal
    return bool(sides.min() < 0 < sides.max())
