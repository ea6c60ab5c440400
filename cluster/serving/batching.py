"""Answering many small requests by few large computations.

While one batch is computed, the next one gathers; an idle server starts at once. So a lone request never
waits for company, and the batches grow with the load. (`serve.batch` makes every batch wait for a fixed
time, and works nowhere but in a Serve replica.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Request(Generic[Key, Item, Result]):
    key: Key
    items: Sequence[Item]
    answer: asyncio.Future[list[Result]]


class Batcher(Generic[Key, Item, Result]):
    """Computes `work(key, items)`, one result for each item, for the items of many requests together.

    Only requests of an equal key share a batch, of at most `limit` items (a larger request is a batch of
    its own). `work` runs in `executor`, one batch at a time; what it raises, every request of its batch
    raises. A request whose caller has gone before its turn is left out.
    """

    def __init__(self, work: Callable[[Key, list[Item]], list[Result]], *, limit: int, executor: Executor):
        self._work = work
        self._limit = limit
        self._executor = executor
        self._waiting: deque[_Request[Key, Item, Result]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, key: Key, items: Sequence[Item]) -> list[Result]:
        """The results for `items`, in their order."""
        request = _Request[Key, Item, Result](key, items, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer())
        return await request.answer

    async def _answer(self) -> None:
        while batch := self._take():
            items = [item for request in batch for item in request.items]
            try:
                results = await asyncio.get_running_loop().run_in_executor(
                    self._executor, self._work, batch[0].key, items
                )
            except Exception as error:  # noqa: BLE001 - it belongs to those who asked, not to this loop
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)
                continue
            given = iter(results)
            for request in batch:
                part = [next(given) for _ in request.items]
                if not request.answer.done():
                    request.answer.set_result(part)

    def _take(self) -> list[_Request[Key, Item, Result]]:
        """The oldest request, and as many others of its key as fit, oldest first."""
        batch: list[_Request[Key, Item, Result]] = []
        left: deque[_Request[Key, Item, Result]] = deque()
        size = 0
        while self._waiting:
            request = self._waiting.popleft()
            if request.answer.done():
                continue
            fits = not batch or (request.key == batch[0].key and size + len(request.items) <= self._limit)
            if fits:
                batch.append(request)
                size += len(request.items)
            else:
                left.append(request)
        self._waiting = left
        return batch
