from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from textvae import plots
from textvae.config import METRICS


def reports(epochs: int, **odd: Any) -> list[dict[str, Any]]:
    def values(epoch: int, shift: float) -> dict[str, float]:
        return dict.fromkeys(METRICS, 1.0 / epoch + shift)

    return [
        {"epoch": e, "train": values(e, 0.0), "validation": {**values(e, 0.1), **odd}}
        for e in range(1, epochs + 1)
    ]


def shows(path: Path, colour: str) -> bool:
    """Whether the picture has pixels of this colour."""
    pixels = imread(path)[..., :3]
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(pixels - wanted).max(axis=-1) < 0.01).any())


def cloud(n: int, latent: int = 6) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(0)
    labels = random.integers(-1, 2, size=n)
    direction = random.normal(size=latent)
    means = random.normal(size=(n, latent)) + np.outer(labels, direction)
    return means.astype(np.float32), labels, direction


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_show_both_parts(tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "new folder" / "curves.png"
    plots.curves(reports(epochs), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert shows(path, plots.BLUE) and shows(path, plots.VERMILION)
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


def test_curves_take_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    plots.curves(reports(3, sentiment_loss=float("nan"), active_units=None), path)
    assert shows(path, plots.VERMILION)
    plots.curves([{"epoch": 1, "train": {}, "validation": {}}], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no report"):
        plots.curves([], path)


def test_projection_shows_every_class_and_the_head(tmp_path: Path) -> None:
    means, labels, direction = cloud(60)
    path = tmp_path / "projection.png"
    plots.projection(means, labels, path, direction=direction, bias=0.1)
    for colour in (plots.BLUE, plots.VERMILION, plots.GREY):
        assert shows(path, colour)
    with_head = path.read_bytes()
    plots.projection(means, labels, path)
    assert path.read_bytes() != with_head
    plots.projection(means, labels, path, direction=direction, bias=0.1)
    assert path.read_bytes() == with_head  # the same picture of the same numbers


def test_principal_components_are_those_of_the_covariance() -> None:
    means, _, direction = cloud(500)
    centered = (means - means.mean(axis=0)).astype(np.float64)
    two, share = plots._principal(centered, direction)
    values, vectors = np.linalg.eigh(np.cov(centered.T))
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(two @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-6)
    assert (two @ direction >= 0).all()


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (40, 1), (40, 2)])
def test_projection_takes_few_reviews_and_dimensions(tmp_path: Path, shape: tuple[int, int]) -> None:
    means = np.random.default_rng(0).normal(size=shape)
    plots.projection(means, np.ones(len(means)), tmp_path / "p.png", direction=np.ones(shape[1]), bias=0.0)
    assert shows(tmp_path / "p.png", plots.BLUE)


def test_projection_takes_a_collapsed_latent(tmp_path: Path) -> None:
    plots.projection(np.zeros((9, 4)), np.zeros(9), tmp_path / "p.png", direction=np.zeros(4), bias=0.0)
    assert shows(tmp_path / "p.png", plots.VERMILION)


def test_projection_says_what_does_not_fit(tmp_path: Path) -> None:
    means, labels, _ = cloud(10)
    path = tmp_path / "p.png"
    with pytest.raises(ValueError, match=r"labels must be \(10,\)"):
        plots.projection(means, labels[1:], path)
    with pytest.raises(ValueError, match=r"direction must be \(6,\), got \(5,\)"):
        plots.projection(means, labels, path, direction=np.ones(5))
    with pytest.raises(ValueError, match="at least 2 reviews"):
        plots.projection(means[:1], labels[:1], path)
    assert not path.exists()


def test_threads_may_draw_at_once(tmp_path: Path) -> None:
    means, labels, _ = cloud(50)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    threads = [threading.Thread(target=plots.projection, args=(means, labels, path)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in paths}) == 1
