"""The versions that a replica holds: what it serves after changes that meet, and what a model may lack."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from cluster.serving.models import Loaded, Models, Wanted


def test_a_retry_does_not_bring_back_what_was_served_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The versions that one call loads may be old by the time that one of them turns out not to load."""
    monkeypatch.setattr("cluster.serving.models._RETRY", 0.0)
    loading, go_on = threading.Event(), threading.Event()

    def load(wanted: Wanted) -> Loaded:
        loading.set()
        assert go_on.wait(10)
        if wanted.name == "away":
            raise OSError("the bucket does not answer")
        return Loaded(wanted, SimpleNamespace(), {})  # type: ignore[arg-type]

    async def ask() -> Models:
        models = Models(load)
        first, second = ({"version": number, "location": "x", "digest": str(number)} for number in (1, 2))
        older = asyncio.create_task(models.serve({"film": first, "away": first}))
        assert await asyncio.to_thread(loading.wait, 10)
        newer = asyncio.create_task(models.serve({"film": second}))
        await asyncio.sleep(0)  # it waits for the first one
        go_on.set()
        await asyncio.gather(older, newer)
        later = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*later, return_exceptions=True)
        return models

    models = asyncio.run(ask())
    assert [(loaded.wanted.name, loaded.wanted.version) for loaded in models.all()] == [("film", 2)]
    assert models.problems == {}
