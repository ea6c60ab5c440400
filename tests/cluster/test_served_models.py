"""The versions that a replica holds: what it serves after changes that meet, and what a model may lack."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from cluster.serving.models import Loaded, Models, Wanted

from .versions import TEXTS, client, save


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


def test_a_language_model_answers_samples_and_says_what_it_lacks_of_the_others(tmp_path: Path) -> None:
    asked = {
        "/v1/sentiment": {"texts": TEXTS},
        "/v1/embed": {"texts": TEXTS},
        "/v1/reconstruct": {"texts": TEXTS},
        "/v1/interpolate": {"a": TEXTS[0], "b": TEXTS[1]},
        "/v1/sample": {"seed": 1},
    }

    async def ask() -> dict[str, httpx.Response]:
        models = Models()
        await models.serve({"words": save(tmp_path / "words", 1, latent=0).desired()})
        assert models.problems == {}
        async with client(models) as http:
            return {path: await http.post(path, json=body) for path, body in asked.items()}

    answers = asyncio.run(ask())
    assert answers.pop("/v1/sample").status_code == 200
    for path, answer in answers.items():
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["field"]) == (422, "no_latent", "model"), path
        assert "model 'words' is a language model without a latent (model.latent: none)" in error["message"]


def test_a_temperature_that_float32_cannot_divide_by_is_none_at_all(tmp_path: Path) -> None:
    async def ask() -> list[httpx.Response]:
        models = Models()
        await models.serve({"film": save(tmp_path / "film", 1).desired()})
        async with client(models) as http:
            return [
                await http.post("/v1/sample", json={"n": 4, "seed": 1, "temperature": temperature})
                for temperature in (0, 9e-7, 1e-40, 1e-320)
            ]

    coldest, *others = asyncio.run(ask())
    assert coldest.status_code == 200
    assert [other.json() for other in others] == [coldest.json()] * 3
