"""Claims on attempts that are open and still to be launched."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jobs.queue import Queue, QueueUnavailable
from jobs.store import Attempt


@contextmanager
def kept(queue: Queue, attempts: Iterable[Attempt], lease: float) -> Iterator[dict[str, int]]:
    """Meanwhile no other dispatcher takes these attempts for lost: their claims, of `lease` seconds, last.

    A claim holds for seconds and launching a single attempt may take a minute; so this is done on a thread,
    which dies with the process, and the claims soon after it. Yields the jobs with the numbers of their
    attempts: one that is taken out is renewed no more.
    """
    claims = {attempt.job: attempt.number for attempt in attempts}
    done = threading.Event()

    def keep() -> None:
        while not done.wait(lease / 3):
            try:
                for job, number in list(claims.items()):
                    queue.renew(job, number, lease)
            except QueueUnavailable:
                continue  # nobody ends attempts without Redis

    threading.Thread(target=keep, name="claims", daemon=True).start()
    try:
        yield claims
    finally:
        done.set()
