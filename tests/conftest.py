"""What every test may rely on, however pytest was started."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


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
