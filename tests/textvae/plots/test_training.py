from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from textvae import plots
from textvae.config import METRICS


def reports(epochs: int, **odd: Any) -> list[dict[str, Any]]:
    def values(epoch: int, shift: float) -> dict[str, float]:
        return dict.fromkeys(METRICS, 1.0 / epoch + shift)

    return [
        {"epoch": e, "train": values(e, 0.0), "validation": {**values(e, 0.1), **odd}}
        for e in range(1, epochs + 1)
    ]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_visible()]


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_show_both_parts_of_every_metric(epochs: int) -> None:
    figure = plots.curves(reports(epochs), title="a job")
    assert figure.get_suptitle() == "a job"
    assert len(titles(figure)) == len(METRICS)
    assert {"Loss", "KL divergence", "Sentiment accuracy"} <= set(titles(figure))
    for axes in figure.axes[: len(METRICS)]:
        train, validation = axes.get_lines()
        assert list(train.get_xdata()) == list(range(1, epochs + 1))
        assert train.get_ydata()[0] == 1.0 and validation.get_ydata()[0] == pytest.approx(1.1)
        assert train.get_color() != validation.get_color()
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel()


def test_curves_say_what_was_not_measured() -> None:
    some = reports(3, sentiment_loss=float("nan"), active_units=None)
    for report in some:
        report["train"]["sentiment_loss"] = None
    figure = plots.curves(some)
    said = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in figure.axes}
    assert said["Sentiment loss"] == ["not measured"]
    assert said["Active units"] == [] and said["Loss"] == []  # measured in training
    validation = figure.axes[METRICS.index("active_units")].get_lines()[1]
    assert all(math.isnan(value) for value in validation.get_ydata())
    with pytest.raises(ValueError, match="no report"):
        plots.curves([])


def test_a_picture_appears_whole_in_a_new_folder(tmp_path: Path) -> None:
    path = plots.save(plots.curves(reports(2)), tmp_path / "new folder" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]
    first = path.read_bytes()
    plots.save(plots.curves(reports(2)), path)
    assert path.read_bytes() == first  # the same picture of the same numbers


def test_threads_may_draw_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    threads = [
        threading.Thread(target=lambda path: plots.save(plots.curves(reports(3)), path), args=(path,))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in paths}) == 1
