"""Items made ahead: while a device computes, a thread prepares what comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items in the same order, up to `count` of them made by a thread before they are asked for.

    What `items` raises, this raises in its place. A consumer that stops early should close the generator:
    then nothing more is made.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        made = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]  # it is not `end`
    finally:
        pool.shutdown(cancel_futures=True)
