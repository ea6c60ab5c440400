"""What every test may rely on, however pytest was started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from .local_ray import LocalRay, end_ray, short_folder, start_head, write_reviews


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay together when pytest-xdist spreads them over workers.

    One worker alone starts Ray: two clusters at once are more than two cores bear. Else a file's tests stay
    together, and share what its fixtures have made.
    """
    for item in items:
        ray = any(item.get_closest_marker(name) for name in ("ray", "e2e"))
        item.add_marker(pytest.mark.xdist_group("ray" if ray else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Ctrl-C reaches the tests and the programs they start, also where a shell began them with `&`.

    Such a shell has its children ignore SIGINT, and they hand that on.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[LocalRay]:
    """A Ray with 2 CPUs; this process becomes its driver."""
    from cluster import launching

    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    with short_folder() as folder:
        head, process = start_head(folder, cpus=2)
        try:
            deadline = time.monotonic() + 240
            while True:
                try:
                    launching.connect(head.address, token_path=head.token_path)
                    break
                except launching.ClusterError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError((folder / "start.log").read_text()) from None
                    time.sleep(0.2)
            yield head
        finally:
            launching.disconnect()
            end_ray(process)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A config that trains in a second: three epochs of eight steps, with dropout of units and words."""
    from textvae.config import Config
    from textvae.parsing import parse

    reviews = write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.parquet")
    return parse(
        Config,
        {
            "seed": 7,
            "data": {"source": "files", "train": [str(reviews)]},
            "vocabulary": {"kind": "words", "size": 40, "max_length": 16},
            "model": {
                "embedding": 8,
                "encoder_hidden": 8,
                "latent": 4,
                "decoder_hidden": 8,
                "dropout": 0.2,
            },
            "objective": {"kind": "elbo", "word_dropout": 0.3},
            "training": {"epochs": 3, "batch_size": 20, "clip_norm": 1.0},
        },
    ).model_dump(mode="json")
