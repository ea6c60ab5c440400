from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import textvae.artifacts
from cluster import serving, stack
from cluster.serving import control
from cluster.serving.models import Loaded, Models, Wanted, read
from cluster.stack import parts, processes

from .versions import TEXTS, Version, client, save

LONG = "word " * 200


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, Version]:
    folder = tmp_path_factory.mktemp("versions")
    return save(folder / "one", 1), save(folder / "two", 2)


@pytest.fixture(scope="module")
def answers(versions: tuple[Version, Version]) -> dict[str, httpx.Response]:
    """Every kind of request to one model, asked once."""
    asked: dict[str, tuple[str, Any]] = {
        "sentiment": ("/v1/sentiment", {"texts": [*TEXTS, LONG]}),
        "embed": ("/v1/embed", {"texts": TEXTS, "model": "film"}),
        "reconstruct": ("/v1/reconstruct", {"texts": TEXTS}),
        "sample": ("/v1/sample", {"n": 3, "seed": 5, "temperature": 0.5}),
        "sample again": ("/v1/sample", {"n": 3, "seed": 5, "temperature": 0.5}),
        "unseeded": ("/v1/sample", {}),
        "interpolate": ("/v1/interpolate", {"a": TEXTS[0], "b": TEXTS[1], "steps": 4}),
        "unknown model": ("/v1/sentiment", {"texts": TEXTS, "model": "flim"}),
        "blank": ("/v1/embed", {"texts": ["fine", " \n"]}),
        "blank end": ("/v1/interpolate", {"a": "fine", "b": " "}),
        "no text": ("/v1/sentiment", {"texts": []}),
        "many texts": ("/v1/sentiment", {"texts": ["x"] * 65}),
        "long text": ("/v1/sentiment", {"texts": ["fine", "x" * 10_001]}),
        "unknown key": ("/v1/sentiment", {"texts": TEXTS, "modle": "film"}),
        "steps": ("/v1/interpolate", {"a": "x", "b": "y", "steps": 33}),
        "large": ("/v1/sentiment", {"texts": ["x" * 1_000_001]}),
        "not json": ("/v1/sentiment", b"{texts"),
        "not unicode": ("/v1/sentiment", b'{"texts": ["\xff"]}'),
        "deep": ("/v1/sentiment", b"[" * 100_000),
        "digits": ("/v1/sample", b'{"n": ' + b"1" * 5000 + b"}"),
        "a list": ("/v1/sentiment", TEXTS),
        "nowhere": ("/v1/nothing", {}),
    }

    async def ask() -> dict[str, httpx.Response]:
        models = Models()
        await models.serve({"film": versions[0].desired()})
        async with client(models) as http:
            given = {
                name: await http.post(path, content=body, headers={"content-type": "application/json"})
                if isinstance(body, bytes)
                else await http.post(path, json=body)
                for name, (path, body) in asked.items()
            }
            given["models"] = await http.get("/v1/models")
            given["healthz"] = await http.get("/healthz")
            given["wrong method"] = await http.get("/v1/sentiment")
            given["openapi"] = await http.get("/openapi.json")
            return given

    return asyncio.run(ask())


def test_the_answers_are_the_predictor_s(
    answers: dict[str, httpx.Response], versions: tuple[Version, Version]
) -> None:
    from textvae.predict import Predictor

    predictor = Predictor.load(versions[0].folder)
    told = answers["sentiment"].json()
    assert (told["model"], told["version"]) == ("film", 1)
    assert [r["positive"] for r in told["results"]] == pytest.approx(
        predictor.sentiment([*TEXTS, LONG]), abs=1e-6
    )
    assert [r["truncated"] for r in told["results"]] == [False, False, False, True]
    for result in told["results"]:
        assert result["label"] == ("positive" if result["positive"] >= 0.5 else "negative")
    assert answers["embed"].json()["dimensions"] == 4
    for given, wanted in zip(answers["embed"].json()["vectors"], predictor.embed(TEXTS), strict=True):
        assert given == pytest.approx(wanted.tolist(), abs=1e-6)
    assert answers["reconstruct"].json()["texts"] == predictor.reconstruct(TEXTS)
    assert answers["interpolate"].json()["texts"] == predictor.interpolate(TEXTS[0], TEXTS[1], 4)
    assert answers["sample"].json()["texts"] == predictor.sample(3, 5, 0.5)
    assert answers["sample"].json() == answers["sample again"].json()
    unseeded = answers["unseeded"].json()
    assert unseeded["texts"] == predictor.sample(1, unseeded["seed"], 1.0)


def test_what_is_served_is_listed_with_its_metrics(
    answers: dict[str, httpx.Response], versions: tuple[Version, Version]
) -> None:
    assert answers["models"].json() == {
        "models": [
            {
                "name": "film",
                "version": 1,
                "digest": versions[0].digest,
                "objective": "elbo",
                "latent": 4,
                "max_length": 12,
                "metrics": {"sentiment_accuracy": 0.6},
            }
        ],
        "default": "film",
        "problems": [],
    }
    assert (answers["healthz"].status_code, answers["healthz"].json()) == (
        200,
        {"status": "ok", "models": ["film"]},
    )
    assert set(answers["openapi"].json()["paths"]) == {
        "/v1/sentiment",
        "/v1/embed",
        "/v1/reconstruct",
        "/v1/sample",
        "/v1/interpolate",
        "/v1/models",
        "/healthz",
    }


@pytest.mark.parametrize(
    ("name", "status", "code", "field", "reason"),
    [
        ("unknown model", 404, "unknown_model", "model", "no model is named 'flim'; served are: film"),
        ("blank", 422, "invalid", "texts.1", "texts.1: the text is blank"),
        ("blank end", 422, "invalid", "b", "b: the text is blank"),
        ("no text", 422, "invalid", "texts", "at least 1 item"),
        ("many texts", 422, "invalid", "texts", "at most 64 items"),
        ("long text", 422, "invalid", "texts.1", "at most 10000 characters"),
        ("unknown key", 422, "invalid", "modle", "Extra inputs are not permitted"),
        ("steps", 422, "invalid", "steps", "less than or equal to 32"),
        ("large", 413, "too_large", None, "more than 1,000,000 bytes"),
        ("not json", 422, "invalid", None, "not JSON"),
        ("not unicode", 422, "invalid", None, "not JSON in UTF-8"),
        ("deep", 422, "invalid", None, "nested too deep"),
        ("digits", 422, "invalid", None, "too long a number"),
        ("a list", 422, "invalid", None, "must be a JSON object"),
        ("nowhere", 404, "not_found", None, "POST /v1/nothing"),
        ("wrong method", 405, "method_not_allowed", None, "GET /v1/sentiment"),
    ],
)
def test_a_wrong_request_is_told_why(
    answers: dict[str, httpx.Response], name: str, status: int, code: str, field: str | None, reason: str
) -> None:
    assert answers[name].status_code == status
    error = answers[name].json()["error"]
    assert error["code"] == code
    assert error.get("field") == field
    assert reason in error["message"]


def test_a_wrong_method_is_told_the_right_one(answers: dict[str, httpx.Response]) -> None:
    assert answers["wrong method"].headers["allow"] == "POST"


def test_an_error_of_the_model_is_json_too(versions: tuple[Version, Version]) -> None:
    async def ask() -> httpx.Response:
        models = Models()
        await models.serve({"film": versions[0].desired()})
        vars(models.get("film").predictor)["sentiment"] = lambda texts: 1 / 0
        async with client(models) as http:
            return await http.post("/v1/sentiment", json={"texts": TEXTS})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "ZeroDivisionError" not in answer.text  # that is for the log


def test_requests_are_answered_together_each_by_the_version_it_met(versions: tuple[Version, Version]) -> None:
    calls: list[tuple[int, int]] = []

    def load(wanted: Wanted) -> Loaded:
        loaded = read(wanted)
        sentiment = loaded.predictor.sentiment

        def counted(texts: list[str]) -> list[float]:
            calls.append((wanted.version, len(texts)))
            return sentiment(texts)

        loaded.predictor.sentiment = counted  # type: ignore[method-assign, assignment]
        return loaded

    async def ask() -> list[list[tuple[float, bool]]]:
        models = Models(load)
        await models.serve({"film": versions[0].desired()})
        old = models.get("film")
        await models.serve({"film": versions[1].desired()})
        new = models.get("film")
        return await asyncio.gather(
            *(models.sentiment(old if i % 2 else new, [t]) for i, t in enumerate(TEXTS * 4))
        )

    given = asyncio.run(ask())
    assert sorted(calls) == [(1, 6), (2, 6)]
    alone = [read(Wanted("film", **version.desired())).predictor for version in versions]
    for i, text in enumerate(TEXTS * 4):
        assert given[i][0][0] == pytest.approx(alone[0 if i % 2 else 1].sentiment([text])[0], abs=1e-6)


@pytest.mark.parametrize("disk", ["sound", "full"])
def test_a_version_that_cannot_be_loaded_leaves_the_earlier_one(
    versions: tuple[Version, Version], disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because it is not what was recorded, or because the replica's disk takes no copy of it."""
    bad = versions[1].desired() | ({"digest": "0" * 64} if disk == "sound" else {"location": "full"})
    fetch = textvae.artifacts.fetch

    def fetched(location: str, cache: Path) -> Path:
        if location == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fetch(location, cache)

    monkeypatch.setattr(textvae.artifacts, "fetch", fetched)

    async def ask() -> tuple[httpx.Response, ...]:
        models = Models()
        async with client(models) as http:
            empty = await http.get("/healthz"), await http.post("/v1/sentiment", json={"texts": TEXTS})
            await models.serve({"film": versions[0].desired()})
            await models.serve({"film": bad, "other": versions[1].desired()}, "other")
            return (
                *empty,
                await http.get("/v1/models"),
                await http.post("/v1/sentiment", json={"texts": TEXTS, "model": "film"}),
                await http.post("/v1/sentiment", json={"texts": TEXTS}),
            )

    health, nothing, listed, film, default = asyncio.run(ask())
    assert (health.status_code, health.json()) == (503, {"status": "no model", "models": []})
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (503, "no_model")
    assert [(m["name"], m["version"]) for m in listed.json()["models"]] == [("film", 1), ("other", 2)]
    (problem,) = listed.json()["problems"]
    assert (problem["name"], problem["version"]) == ("film", 2)
    words = ("digest", "SHA-256") if disk == "sound" else ("No space left on device",)
    assert any(word in problem["reason"] for word in words)
    assert (film.status_code, film.json()["version"]) == (200, 1)
    assert default.json()["model"] == "other"


def test_several_models_without_a_default_must_be_named(versions: tuple[Version, Version]) -> None:
    async def ask() -> httpx.Response:
        models = Models()
        await models.serve({"film": versions[0].desired(), "book": versions[1].desired()})
        async with client(models) as http:
            return await http.post("/v1/sentiment", json={"texts": TEXTS})

    answer = asyncio.run(ask())
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "several models are served, name one of: book, film"


def test_the_requests_of_the_documentation_are_answered_as_it_says(versions: tuple[Version, Version]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text(encoding="utf-8")
    examples = re.findall(
        r"```\ncurl -s 127.0.0.1:8000(/\S+)(?:[^`]*-d '([^`]*)')?\n```\n\n```json\n([^`]*)```", page
    )
    assert len(examples) == 7

    async def ask() -> list[httpx.Response]:
        models = Models()
        await models.serve({"quickstart": versions[0].desired()})
        async with client(models) as http:
            return [
                await http.post(path, json=json.loads(body)) if body else await http.get(path)
                for path, body, _ in examples
            ]

    for (path, _, told), given in zip(examples, asyncio.run(ask()), strict=True):
        assert given.json().keys() == json.loads(told).keys(), path
        assert given.status_code == (422 if "error" in told else 200), path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    home = tmp_path_factory.mktemp("serving")
    try:
        yield stack.up(
            home, dispatcher=None, cpus=1, dashboard_port=parts.free_port(), serve_port=parts.free_port()
        )
    finally:
        stack.down(home)


@pytest.mark.ray
def test_a_new_version_rolls_in_without_a_failed_request(
    running: stack.Stack, versions: tuple[Version, Version]
) -> None:
    first, second = ({"film": version.desired()} for version in versions)
    where = {"dashboard_url": running.dashboard_url, "token": running.token()}
    port = int(running.serve_url.rsplit(":", 1)[1])
    serving.apply(first, http_port=port, **where)
    serving.wait(first, serve_url=running.serve_url, timeout=60, **where)
    seen: list[tuple[float, int, int]] = []  # asked at, status, version
    moment = math.inf
    enough, late, stop = threading.Event(), threading.Event(), threading.Event()

    def hammer() -> None:
        with httpx.Client(base_url=running.serve_url, trust_env=False) as http:
            while not stop.is_set():
                asked = time.monotonic()
                answer = http.post("/v1/sentiment", json={"texts": TEXTS})
                seen.append((asked, answer.status_code, answer.json().get("version", 0)))
                if len(seen) >= 50:
                    enough.set()
                if asked > moment:
                    late.set()

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    serving.apply(second, http_port=port, **where)
    serving.wait(second, serve_url=running.serve_url, timeout=60, **where)
    moment = time.monotonic()
    assert [model["version"] for model in serving.current(serve_url=running.serve_url).values()] == [2]
    assert late.wait(30)
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert {status for _, status, _ in seen} == {200}
    assert {version for _, _, version in seen[:40]} == {1}
    assert {version for asked, _, version in seen if asked > moment} == {2}

    bad = {"film": versions[0].desired() | {"version": 3, "digest": "0" * 64}}
    serving.apply(bad, http_port=port, **where)
    with pytest.raises(serving.ServingError, match="model film version 3: "):
        serving.wait(bad, serve_url=running.serve_url, timeout=60, **where)
    assert serving.current(serve_url=running.serve_url)["film"]["version"] == 2


@pytest.mark.ray
def test_what_others_have_deployed_goes_on_untouched(
    running: stack.Stack, versions: tuple[Version, Version]
) -> None:
    """Their application is this one under another name."""
    url = f"{running.dashboard_url}/api/serve/applications/"
    headers = {"Authorization": f"Bearer {running.token()}"}
    where = {"dashboard_url": running.dashboard_url, "token": running.token()}

    def told() -> dict[str, Any]:
        answer = httpx.get(url, headers=headers, trust_env=False).raise_for_status()
        applications: dict[str, Any] = answer.json()["applications"]
        return applications

    def deploy(*configs: dict[str, Any]) -> None:
        body = {"applications": configs}
        httpx.put(url, json=body, headers=headers, trust_env=False, timeout=30).raise_for_status()

    def replicas_of_theirs() -> list[str]:
        (deployment,) = told()["theirs"]["deployments"].values()
        return [replica["replica_id"] for replica in deployment["replicas"]]

    ours = told()["textvae"]["deployed_app_config"]
    deploy(ours, {**ours, "name": "theirs", "route_prefix": "/theirs"})
    deadline = time.monotonic() + 120
    try:
        while (found := told())["theirs"]["status"] != "RUNNING":
            assert time.monotonic() < deadline, found["theirs"]
            time.sleep(0.2)
        known = replicas_of_theirs()
        assert known
        wanted = {"film": versions[0].desired()}
        serving.apply(wanted, **where)
        serving.wait(wanted, serve_url=running.serve_url, timeout=60, **where)
        assert told()["theirs"]["status"] == "RUNNING"
        assert replicas_of_theirs() == known
        assert httpx.get(f"{running.serve_url}/theirs/v1/models", trust_env=False).status_code == 200
    finally:
        deploy(told()["textvae"]["deployed_app_config"])
        while len(replicas(running)) > 1:
            assert time.monotonic() < deadline, replicas(running)
            time.sleep(0.2)


def replicas(running: stack.Stack) -> list[psutil.Process]:
    found = []
    for each in processes.family(running.processes, running.mark):
        with suppress(psutil.NoSuchProcess):
            if " ".join(each.cmdline()).startswith("ray::ServeReplica"):
                found.append(each)
    return found


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_replica_that_is_killed_or_frozen_fails_only_the_requests_that_it_had(
    number: signal.Signals,
    running: stack.Stack,
    versions: tuple[Version, Version],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever asks later waits for the next replica, which serves the same versions."""
    if os.environ.get("TEXTVAE_CHAOS") != "all":
        quick = {"health_check_period_s": 1, "health_check_timeout_s": 3}
        monkeypatch.setattr(control, "HEALTH_CHECK", quick)
    wanted = {"film": versions[0].desired()}
    where = {"dashboard_url": running.dashboard_url, "token": running.token()}
    serving.apply(wanted, http_port=int(running.serve_url.rsplit(":", 1)[1]), **where)
    serving.wait(wanted, serve_url=running.serve_url, timeout=120, **where)
    clients = 4
    answers: list[tuple[float, int]] = []  # when it was asked, and the status
    hurt: list[float] = []  # when the replica was
    enough, again, stop = threading.Event(), threading.Event(), threading.Event()

    def hammer() -> None:
        with httpx.Client(base_url=running.serve_url, trust_env=False, timeout=240) as http:
            while not stop.is_set():
                asked = time.monotonic()
                answer = http.post("/v1/sentiment", json={"texts": TEXTS})
                assert answer.status_code == 500 or answer.json()["version"] == 1
                answers.append((asked, answer.status_code))
                if len(answers) >= 20:
                    enough.set()
                if hurt and asked > hurt[0] and answer.status_code == 200:
                    again.set()

    threads = [threading.Thread(target=hammer) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        assert enough.wait(60)
        (victim,) = replicas(running)
        victim.send_signal(number)
        hurt.append(time.monotonic())
        assert again.wait(240)
        deadline = time.monotonic() + 60  # Serve ends the old one once the next one answers
        while [each.pid == victim.pid for each in replicas(running)] != [False]:
            assert time.monotonic() < deadline, replicas(running)
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=240)
    failed = [asked for asked, status in answers if status != 200]
    print(
        f"{len(failed)} of {len(answers)} requests failed; an answer after {answers[-1][0] - hurt[0]:.0f} s"
    )
    assert len(failed) <= clients
    assert not psutil.pid_exists(victim.pid) or victim.status() == psutil.STATUS_ZOMBIE
