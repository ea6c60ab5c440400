"""The service's parts as the commands see them: opened late, once, with errors that say what to do."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from jobs.cli import errors

if TYPE_CHECKING:
    from jobs.settings import Settings
    from jobs.store import Store


@functools.cache
def settings() -> Settings:
    """The settings of this process, joined with the addresses of the running stack."""
    from jobs.settings import Settings

    return Settings.from_environment(os.environ).connected()


@functools.cache
def store() -> Store:
    """The store that the settings name."""
    from jobs.store import Store

    return Store(settings().database_url)


@contextmanager
def quiet() -> Iterator[None]:
    """For completion: an expected error means no suggestions, since there is nowhere to say so."""
    try:
        yield
    except Exception as error:
        if errors.translate(error) is None:
            raise


__all__ = ["quiet", "settings", "store", "suppress"]
