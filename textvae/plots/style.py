"""Colours, captions and files: what all pictures share."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by people of every colour vision.
BLUE, VERMILION, GREY, INK = "#0072B2", "#D55E00", "#B0B0B0", "#333333"

CLASSES = {-1: ("no label", GREY), 0: ("negative", VERMILION), 1: ("positive", BLUE)}

# From bad to good through the colours of the two classes, the extremes darkest.
_RATINGS = LinearSegmentedColormap.from_list(
    "ratings", ["#7A2E00", VERMILION, "#F3B48A", "#9BCBEA", BLUE, "#00304D"]
)


def rating_colour(rating: float, low: float = 1.0, high: float = 10.0) -> str:
    """The colour of a rating between `low` and `high`."""
    return to_hex(_RATINGS((rating - low) / (high - low) if high > low else 0.5))


def captions(figure: Figure, title: str, caption: str = "") -> None:
    """A title above and a paragraph below, both from the left and broken to the figure's width."""
    width = float(figure.get_size_inches()[0])
    figure.suptitle(textwrap.fill(title, int(8.2 * width)), fontsize=14, color=INK, x=0.01, ha="left")
    if caption:
        figure.supxlabel(
            textwrap.fill(caption, int(12.5 * width)), fontsize=9.5, color=INK, x=0.01, ha="left"
        )


def legend(axes: Axes, columns: int = 4) -> None:
    """The axes' legend above it, at the right, where it covers nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=columns,
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
            handletextpad=0.3,
            columnspacing=0.9,
            borderaxespad=0.2,
            handlelength=1.6,
        )


def tidy(axes: Axes) -> None:
    """No frame but two lines, a pale grid behind everything."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.grid(color="#EBEBEB", linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path | str) -> Path:
    """Write the figure as PNG at `path`, whose folder is made; it appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    FigureCanvasAgg(figure)
    try:
        figure.savefig(partial, format="png", dpi=150, facecolor="white")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
