from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from textvae import plots
from textvae.plots import Seen

Cloud = Callable[..., Seen]


def test_kl_is_sorted_and_active_units_are_marked(cloud: Cloud, tmp_path: Path) -> None:
    seen = cloud()
    figure = plots.kl_per_dimension(seen, title="KL")
    above, below = figure.axes
    bars = sorted(above.patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == sorted(seen.kl, reverse=True)
    assert [label.get_text() for label in below.get_xticklabels()] == ["5", "4", "3", "2", "1", "0"]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["active (5)", "inactive (1)"]
    colours = {bar.get_facecolor() for bar in bars}
    assert len(colours) == 2 and bars[4].get_facecolor() != bars[5].get_facecolor()  # dimension 1 is inactive
    threshold = next(line for line in below.get_lines() if line.get_linestyle() == "--")
    assert list(threshold.get_ydata()) == [0.01, 0.01]
    assert below.get_yscale() == "log" and "nats" in above.get_ylabel()
    assert f"{seen.kl.sum():.2f} nats a review in all, 300 reviews" == above.get_title(loc="left")
    assert plots.save(figure, tmp_path / "kl.png").stat().st_size > 5000


@pytest.mark.parametrize("latent", [1, 200])
def test_kl_of_few_and_many_dimensions(cloud: Cloud, latent: int, tmp_path: Path) -> None:
    figure = plots.kl_per_dimension(cloud(latent=latent))
    plots.save(figure, tmp_path / "kl.png")
    assert ("rank" in figure.axes[1].get_xlabel()) == (latent == 200)
    assert figure.axes[0].patches and len(figure.axes[0].patches) == latent
    with pytest.raises(ValueError, match="without a latent"):
        plots.kl_per_dimension(cloud(latent=0))


def test_histograms_hold_every_review(cloud: Cloud, tmp_path: Path) -> None:
    lengths = np.full(300, 40)
    lengths[:30] = 5000  # cut, and beyond what a histogram shows without a last bin
    seen = cloud(lengths=lengths, losses=np.linspace(1.0, 2.0, 300) * 40, tokens=np.full(300, 40))
    figure = plots.histograms(seen, title="all")
    assert figure.get_suptitle() == "all, 300 reviews"
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in axes.patches) == 300
        assert axes.get_ylabel() == "reviews"
    length, loss, per_token = figure.axes
    said = [text.get_text() for text in length.get_legend().get_texts()]
    assert said == ["median 40", "read: 50 (10% cut)"]
    assert loss.get_xlabel().startswith("nats per review")
    assert per_token.get_xlabel().startswith("nats per token")
    assert [text.get_text() for text in per_token.get_legend().get_texts()] == ["median 1.5"]
    assert plots.save(figure, tmp_path / "histograms.png").stat().st_size > 5000


def test_histograms_of_a_language_model_and_of_nothing(cloud: Cloud) -> None:
    assert len(plots.histograms(cloud(3, latent=0)).axes) == 3
    with pytest.raises(ValueError, match="no review"):
        plots.histograms(cloud(0))
