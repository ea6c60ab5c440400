from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from textvae import plots
from textvae.plots import Seen, maps

Cloud = Callable[..., Seen]


def named(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def dots(axes: Axes) -> np.ndarray[Any, Any]:
    """The points of a map, in the order of their first coordinate."""
    drawn = np.concatenate(
        [np.asarray(c.get_offsets()) for c in axes.collections if len(c.get_offsets()) > 1]
    )
    return drawn[np.argsort(drawn[:, 0])]


def drawn(figure: Figure, path: Path) -> bool:
    """Whether the figure can be written, and nothing of its axes overlaps."""
    plots.save(figure, path)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    apart = [not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    return path.read_bytes().startswith(b"\x89PNG") and all(apart)


def test_principal_components_are_those_of_the_covariance(cloud: Cloud, tmp_path: Path) -> None:
    seen = cloud()
    plane = maps.principal_plane(seen.means, seen.direction)
    values, vectors = np.linalg.eigh(np.cov(seen.means.T))
    np.testing.assert_allclose(plane.explained, values[::-1][:2] / values.sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(plane.axes @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-6)
    assert (plane.axes @ seen.direction >= 0).all()
    np.testing.assert_allclose(maps.explained_variance(seen.means), values[::-1] / values.sum(), rtol=1e-6)

    figure = plots.principal_components(seen, title="a title", caption="an answer")
    by_label, by_rating, bars = figure.axes
    assert figure.get_suptitle() == "a title" and figure.get_supxlabel() == "an answer"
    for axes in (by_label, by_rating):
        np.testing.assert_allclose(dots(axes), plane.points[np.argsort(plane.points[:, 0])])
        assert axes.get_xlabel() == f"first principal component ({plane.explained[0]:.0%} of the variance)"
    assert named(by_label) == ["negative", "positive", "head: even odds", "more positive"]
    assert named(by_rating) == ["1", "2", "3", "4", "7", "8", "9", "10"]
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_allclose(heights, maps.explained_variance(seen.means))
    assert drawn(figure, tmp_path / "latent.png")


def test_the_head_has_even_odds_on_its_line(cloud: Cloud) -> None:
    seen = cloud(direction=np.array([1.0, 0.5, 0.2, 0.0, -0.3, 0.1]))
    plane = maps.principal_plane(seen.means, seen.direction)
    axes = plots.principal_components(seen).axes[0]
    (line,) = [line for line in axes.get_lines() if line.get_linestyle() == "--" and hasattr(line, "get_xy1")]
    for on_line in (line.get_xy1(), line.get_xy2()):
        there = plane.center + np.asarray(on_line) @ plane.axes  # the point of the plane in the latent space
        assert there @ seen.direction + seen.bias == pytest.approx(0.0, abs=1e-9)
    (arrow,) = [text for text in axes.texts if text.arrow_patch is not None]  # type: ignore[attr-defined]
    along = np.asarray(arrow.xy) - np.asarray(arrow.xyann)  # type: ignore[attr-defined]
    assert along @ (plane.axes @ seen.direction) > 0


def test_reviews_without_a_rating_or_a_label_have_no_map_of_it(cloud: Cloud) -> None:
    labels = cloud().labels.copy()
    labels[::3] = -1
    figure = plots.principal_components(cloud(rated=False, labels=labels))
    by_label, bars = figure.axes
    assert named(by_label)[:3] == ["no label", "negative", "positive"]
    assert bars.get_xlabel() == "principal component"


def test_tsne_keeps_the_classes_apart_and_depends_on_its_seed(cloud: Cloud, tmp_path: Path) -> None:
    seen = cloud(120, apart=12.0)
    figure = plots.neighbourhoods(seen, seed=3)
    points = dots(figure.axes[0])
    assert points.shape == (120, 2)
    np.testing.assert_array_equal(points, dots(plots.neighbourhoods(seen, seed=3).axes[0]))
    found = plots.separation(maps.tsne(seen.means, 3), seen.labels, direction=[1, 0], bias=0.0)
    assert found is not None and found.neighbour_accuracy == 1.0
    assert "no unit" in figure.axes[0].get_xlabel()
    assert drawn(figure, tmp_path / "tsne.png")


def test_tsne_shows_a_capped_number_of_reviews(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textvae.plots.latent._MAP_REVIEWS", 50)
    figure = plots.neighbourhoods(cloud(120))
    assert len(dots(figure.axes[0])) == 50
    assert figure.axes[0].get_title(loc="left") == "50 reviews by label"


def test_discriminant_shows_reviews_that_it_was_not_fitted_on(cloud: Cloud, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = cloud(120, latent=50, means=random.normal(size=(120, 50)))
    figure = plots.discriminant(noise)
    by_label, by_rating, lda, _ = figure.axes
    assert len(dots(by_label)) == len(dots(by_rating)) == 60
    right = float(lda.get_title(loc="left").removeprefix("LDA: ").removesuffix("% right"))
    assert right < 70  # in sample, 50 dimensions of noise would tell 60 reviews apart
    assert drawn(plots.discriminant(cloud(400)), tmp_path / "lda.png")


def test_discriminant_says_how_the_classes_lie(cloud: Cloud) -> None:
    seen = cloud(800, apart=4.0)
    figure = plots.discriminant(seen)
    by_label, _, lda, head = figure.axes
    assert lda.get_title(loc="left").startswith("LDA: 9") and head.get_title(loc="left").startswith(
        "linear head: 9"
    )
    assert lda.get_xlabel() == "log-odds of positive by LDA (nats)" and lda.get_ylabel() == "reviews"
    assert named(lda) == ["negative", "positive"]
    assert named(by_label) == ["negative", "positive", "LDA: even odds"]
    points = dots(by_label)
    assert abs(np.corrcoef(points.T)[0, 1]) < 1e-9  # the second axis is what the first does not explain


def test_the_rest_beside_scores_is_their_regressions(cloud: Cloud) -> None:
    means = cloud().means
    scores = means @ np.arange(6.0)
    points, shares = maps.along(means, scores)
    np.testing.assert_array_equal(points[:, 0], scores)
    slope, *_ = np.linalg.lstsq(np.stack((scores, np.ones(300)), axis=1), means, rcond=None)
    rest = means - np.stack((scores, np.ones(300)), axis=1) @ slope
    total = means.var(axis=0).sum()
    assert shares[0] == pytest.approx(1 - rest.var(axis=0).sum() / total)
    assert shares[1] == pytest.approx(np.linalg.eigvalsh(np.cov(rest.T, bias=True))[-1] / total)


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (40, 1), (40, 2)])
def test_few_reviews_and_dimensions_are_drawn(cloud: Cloud, shape: tuple[int, int], tmp_path: Path) -> None:
    seen = cloud(shape[0], latent=shape[1])
    for number, draw in enumerate((plots.principal_components, plots.neighbourhoods)):
        assert len(dots(draw(seen).axes[0])) == shape[0]
        assert drawn(draw(seen), tmp_path / f"{number}.png")
    if shape[0] > 8:
        assert drawn(plots.discriminant(seen), tmp_path / "lda.png")


def test_a_collapsed_latent_is_drawn(cloud: Cloud, tmp_path: Path) -> None:
    seen = cloud(30, means=np.zeros((30, 6)), direction=np.zeros(6))
    for draw in (plots.principal_components, plots.neighbourhoods, plots.discriminant):
        figure = draw(seen)
        plots.save(figure, tmp_path / "p.png")
        assert "more positive" not in named(figure.axes[0])


def test_what_cannot_be_drawn_is_said(cloud: Cloud) -> None:
    for draw in (plots.principal_components, plots.neighbourhoods, plots.discriminant):
        with pytest.raises(ValueError, match="without a latent"):
            draw(cloud(latent=0))
        with pytest.raises(ValueError, match="at least 2 reviews"):
            draw(cloud(1))
    with pytest.raises(ValueError, match="at least 4 labelled reviews of each class"):
        plots.discriminant(cloud(6))
