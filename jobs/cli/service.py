"""The service's parts as the commands see them: opened late, once, with errors that say what to do."""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import errors, output

if TYPE_CHECKING:
    from jobs.queue import Queue
    from jobs.scheduling import Reason
    from jobs.service import Service
    from jobs.settings import Settings
    from jobs.store import Job, Store

_RETRY = 3.0  # seconds until a Redis that did not answer is asked again
_PAUSE = 0.5
_ELSEWHERE = (
    "TEXTVAE_DATABASE_URL",
    "TEXTVAE_REDIS_URL",
    "TEXTVAE_STORAGE",
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN_PATH",
)


_environment: dict[str, str] | None = None  # None: this process'


def environment() -> dict[str, str]:
    """The environment that the settings are read from, and that the stack's parts are given."""
    return dict(os.environ) if _environment is None else dict(_environment)


def move_to(home: Path) -> None:
    """From now on, use a service of its own in this home folder, whatever the environment names."""
    global _environment
    forget()
    # Set to nothing, which counts as not set: parts that are started inherit what is merely left out.
    _environment = os.environ | dict.fromkeys(_ELSEWHERE, "") | {"TEXTVAE_HOME": str(home.absolute())}


@functools.cache
def settings() -> Settings:
    """The settings of this process, joined with the addresses of the running stack."""
    from jobs.settings import Settings

    return Settings.from_environment(environment()).connected()


@functools.cache
def store() -> Store:
    """The store that the settings name."""
    # SQLAlchemy makes many objects that stay; looking through them for garbage took a third of `list`.
    gc.disable()
    from jobs.store import Store

    gc.freeze()
    gc.enable()
    settings().create_home()
    return Store(settings().database_url)


def newest_jobs(
    states: Sequence[str], owner: str | None, limit: int, *, parent: str | None, children: bool
) -> list[Job]:
    """The newest jobs, in these states if any are named: at a glance where that will do.

    Of a `parent` its children, which are a sweep's; of no sweep's unless `children`.
    """
    from jobs.store import JobState, glance

    wanted = [JobState(state) for state in states] or None
    if parent is not None:
        return store().jobs(wanted, owner=owner, limit=limit, parent=parent)
    found = glance.newest(settings().database_url, wanted, owner=owner, limit=limit, children=children)
    if found is None:
        return store().jobs(wanted, owner=owner, limit=limit, children=children)
    return found


@functools.cache
def queue() -> Queue:
    """The queue; each call to it raises QueueUnavailable while Redis is away."""
    from jobs.queue import Queue

    return Queue(settings().redis_url)


@functools.cache
def service() -> Service:
    """The verbs that change jobs and models."""
    from jobs.service import Service

    return Service(store(), queue())


def forget() -> None:
    """Read the settings anew at the next call: the stack has come up, or another home was chosen."""
    if store.cache_info().currsize:
        store().close()
    if queue.cache_info().currsize:
        queue().close()
    for opened in (settings, store, queue, service, _warn):
        opened.cache_clear()


def progress(job: str) -> dict[str, Any] | None:
    """The newest live progress of a job; None without one, or without Redis."""
    from jobs.queue import QueueUnavailable

    try:
        return queue().progress([job]).get(job)
    except QueueUnavailable:
        return None


def cluster() -> dict[str, float] | None:
    """What the dispatcher saw of the cluster within the last minute; None without it, or without Redis."""
    from jobs.queue import QueueUnavailable

    try:
        return queue().cluster()
    except QueueUnavailable:
        return None


def scheduler() -> Callable[[str], Reason | None] | None:
    """Asks the scheduler why a job waits, by what a dispatcher saw in the last minute; None without that, or
    without rules that can be read: the dispatcher goes on by those that it had."""
    from jobs.outlook import explainer
    from jobs.queue import QueueUnavailable
    from jobs.scheduling import read_policy
    from textvae.parsing import ConfigError

    try:
        seen = queue().outlook()
        if seen is None:
            return None
        progress = queue().progress([job.id for job in store().running()])
    except QueueUnavailable:
        return None
    try:
        policy = read_policy(settings().scheduling_file)
    except ConfigError as error:
        _warn(str(error))
        return None
    return explainer(store(), seen, policy, progress).reason


@functools.cache
def _warn(text: str) -> None:
    """Say it once, however often one looks."""
    output.talk(f"warning: {errors.one_line(text)}; the dispatcher goes on by the rules that it had")


def live_progress(job: str) -> Iterator[dict[str, Any] | None]:
    """The live progress of a job, without end; None at least twice a second, also while Redis is away."""
    from jobs.queue import QueueUnavailable

    while True:
        try:
            yield from queue().follow(job, every=_PAUSE)
        except QueueUnavailable:
            again = time.monotonic() + _RETRY
            while time.monotonic() < again:
                time.sleep(_PAUSE)
                yield None
            if settings().redis_url is None:  # the service may have come up in the meantime
                settings.cache_clear()
                queue.cache_clear()


@contextmanager
def quiet() -> Iterator[None]:
    """For completion: an expected error means no suggestions, since there is nowhere to say so."""
    try:
        yield
    except Exception as error:
        if errors.translate(error) is None:
            raise
