from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..local_ray import LocalRay, await_head, end_ray, short_folder, start_head, start_node


@pytest.fixture
def two_nodes() -> Iterator[LocalRay]:
    """Two raylets of 1 CPU each under one head; who uses it connects from a process of its own."""
    with short_folder() as folder:
        head, process = start_head(folder, cpus=1)
        started = [process]
        try:
            await_head(head, process)
            started.append(start_node(head))
            yield head
        finally:
            for each in reversed(started):
                end_ray(each)
