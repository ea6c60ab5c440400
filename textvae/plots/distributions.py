"""How KL spreads over the latent dimensions, and lengths and losses over the reviews."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from textvae.evaluate import ACTIVE_VARIANCE
from textvae.plots.style import BLUE, GREY, INK, VERMILION, captions, legend, tidy

if TYPE_CHECKING:
    from textvae.plots.seen import Seen

_NAMED = 40  # up to so many dimensions are named on their axis
_BINS = 40
_LOWEST = 1e-6  # a variance below is drawn here: the axis is logarithmic


def kl_per_dimension(seen: Seen, *, title: str = "KL per latent dimension") -> Figure:
    """The KL divergence of every latent dimension, the largest first, and which dimensions are active.

    Below the bars: how much each dimension's posterior mean varies over the reviews, with the threshold of an
    active unit. Raises ValueError for a model without a latent.
    """
    if seen.latent == 0:
        raise ValueError("a model without a latent has no KL divergence to draw")
    order = np.argsort(-seen.kl, kind="stable")
    kl, variances, active = seen.kl[order], seen.variances[order], seen.active[order]
    figure = Figure(figsize=(float(np.clip(0.19 * len(order) + 3.0, 7.0, 14.0)), 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
    at = np.arange(1, len(order) + 1)
    for which, colour, name in ((active, BLUE, "active"), (~active, GREY, "inactive")):
        if which.any():
            label = f"{name} ({int(which.sum())})"
            above.bar(at[which], kl[which], color=colour, width=0.8, label=label)
            below.plot(at[which], np.maximum(variances[which], _LOWEST), "o", color=colour, markersize=4)
    below.axhline(ACTIVE_VARIANCE, color=VERMILION, linewidth=1.3, linestyle="--")
    below.plot(
        [], [], color=VERMILION, linewidth=1.3, linestyle="--", label=f"active above {ACTIVE_VARIANCE:g}"
    )
    below.set_yscale("log")
    above.set_ylabel("KL (nats, mean over reviews)", fontsize=9, color=INK)
    below.set_ylabel("variance of the means", fontsize=9, color=INK)
    if len(order) <= _NAMED:
        below.set_xticks(at, [str(dimension) for dimension in order])
        below.set_xlabel("latent dimension, the largest KL first", fontsize=9, color=INK)
    else:
        below.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        below.set_xlabel("rank of the latent dimension, the largest KL first", fontsize=9, color=INK)
    for axes in (above, below):
        tidy(axes)
        axes.xaxis.grid(visible=False)
        legend(axes)
    above.set_title(
        f"{kl.sum():.2f} nats a review in all, {len(seen):,} reviews", fontsize=10, color=INK, loc="left"
    )
    captions(figure, title)
    return figure


def histograms(seen: Seen, *, title: str = "Lengths and losses") -> Figure:
    """How long the reviews are, and what their reconstruction costs: per review and per token.

    Raises ValueError if there is no review.
    """
    if len(seen) == 0:
        raise ValueError("there is no review to draw")
    figure = Figure(figsize=(12.6, 3.9), layout="constrained")
    cut = float((seen.lengths > seen.limit).mean())
    for axes, (values, heading, unit) in zip(
        figure.subplots(1, 3),
        (
            (seen.lengths.astype(np.float64), "Length", "tokens of the whole review"),
            (seen.losses, "Reconstruction loss", "nats per review, of what is read"),
            (seen.losses / np.maximum(seen.tokens, 1), "Reconstruction loss", "nats per token"),
        ),
        strict=True,
    ):
        # A few reviews are many times longer than the rest: the last bin takes what is beyond.
        end = float(np.quantile(values, 0.995)) if len(values) > 200 else float(values.max())
        beyond = int((values > end).sum())
        edges = np.histogram_bin_edges(np.minimum(values, end), bins=_BINS).tolist()
        axes.hist(np.minimum(values, end), edges, color=BLUE, alpha=0.75)
        median = float(np.median(values))
        axes.axvline(median, color=INK, linewidth=1.4, label=f"median {median:.4g}")
        if heading == "Length" and edges[0] <= seen.limit <= edges[-1]:
            axes.axvline(
                seen.limit,
                color=VERMILION,
                linewidth=1.4,
                linestyle="--",
                label=f"read: {seen.limit} ({cut:.0%} cut)",
            )
        axes.set_title(heading, fontsize=10, color=INK, loc="left")
        last = f" (last bin: {f'{end:,.0f}' if end >= 100 else f'{end:.3g}'}+)" if beyond else ""
        axes.set_xlabel(unit + last, fontsize=9, color=INK)
        axes.set_ylabel("reviews", fontsize=9, color=INK)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        tidy(axes)
        legend(axes)
    captions(figure, f"{title}, {len(seen):,} reviews")
    return figure
