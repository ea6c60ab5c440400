"""The installed command line, from `up` to an HTTP answer to `down`, as a user drives it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.settings import Settings
from jobs.store import Store

from .home import Home, open_home
from .marks import takes_minutes

pytestmark = pytest.mark.e2e

TINY = """
name: tiny
data:
  source: files
  train: [{folder}/reviews.csv]
vocabulary: {{kind: words, size: 60, max_length: 12}}
model: {{embedding: 8, encoder_hidden: 8, latent: 4, decoder_hidden: 8}}
training: {{epochs: {epochs}, batch_size: 16, learning_rate: 0.01}}
"""


@pytest.fixture
def home() -> Iterator[Home]:
    with open_home() as home:
        yield home


def write_tiny(home: Home, epochs: int) -> None:
    """Reviews and a config, `tiny.yaml`, in the home's folder."""
    rows = ["text,label"]
    for n in range(200):
        feeling, label = ("a lovely warm film", 1) if n % 2 else ("a dull cold film", 0)
        rows.append(f"{feeling} number {n % 10},{label}")
    (home.folder / "reviews.csv").write_text("\n".join(rows))
    (home.folder / "tiny.yaml").write_text(TINY.format(folder=home.folder, epochs=epochs))


def test_from_up_to_an_http_answer_to_down(home: Home) -> None:
    write_tiny(home, epochs=2)
    home.call(*home.up[1:], "--detach")
    status = home.json("status")
    assert status["up"] is True
    assert {part["name"] for part in status["parts"]} == {"redis", "ray", "serve", "dispatcher"}
    assert home.json("doctor")["ok"] is True

    job = home.call("submit", "tiny.yaml", "--id", "first").strip()
    assert home.call("wait", job[:3], "--timeout", "180", timeout=200) == "first  succeeded\n"
    told = home.json("show", job)
    assert [report["epoch"] for report in told["reports"]] == [1, 2]
    assert Path(told["log"]).is_file()
    assert "checkpoint epoch-02" in home.call("logs", job)
    assert home.call("watch", job).splitlines()[-1] == "job first succeeded"
    (model,) = home.json("models", "list")
    assert (model["name"], model["current"], model["served"]["job"]) == ("tiny", 1, "first")

    url = f"http://127.0.0.1:{home.ports[1]}"
    served = httpx.Client(base_url=url, timeout=30, trust_env=False)
    wait_until_served(served, "tiny", 1)
    answer = served.post("/v1/sentiment", json={"texts": ["a lovely warm film", "a dull cold film"]})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert results[0]["positive"] > results[1]["positive"]
    (same,) = home.json("predict", "a lovely warm film", "--model", "tiny")["results"]
    assert same["positive"] == pytest.approx(results[0]["positive"], abs=1e-5)  # alone, not in a batch of two
    refused = home.call("predict", " ", code=2)
    assert refused == ""
    pictures = home.json("plot", job)
    assert all(Path(pictures[name]).read_bytes().startswith(b"\x89PNG") for name in ("curves", "latent"))
    home.call("models", "export", "tiny", "exported")
    assert (home.folder / "exported" / "model.safetensors").is_file()

    assert home.json("verify") == {"ok": True, "disagreements": []}

    assert {line.split()[0] for line in home.call("down").splitlines()} == {"dispatcher", "ray", "redis"}
    assert home.json("status", code=4)["up"] is False
    assert home.processes() == []
    with pytest.raises(httpx.ConnectError):
        served.get("/healthz")
    # What was recorded is still there, and says so without any part of the service.
    assert [job["state"] for job in home.json("list")] == ["succeeded"]


def wait_until_served(served: httpx.Client, name: str, version: int) -> None:
    """Ask until the model's version answers; the dispatcher tells Serve within seconds of a promotion."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        models = {model["name"]: model["version"] for model in served.get("/v1/models").json()["models"]}
        if models.get(name) == version:
            return
        time.sleep(0.1)  # HTTP has nothing to wait at
    raise AssertionError(f"{name} version {version} is not served: {served.get('/v1/models').text}")


@takes_minutes
def test_a_backup_of_a_service_at_work_is_restored_and_its_job_goes_on(home: Home) -> None:
    write_tiny(home, epochs=150)
    home.call(*home.up[1:], "--detach")
    home.call("submit", "tiny.yaml", "--id", "under-way")
    store = Store(Settings.from_environment(home.environment).connected().database_url)
    deadline = time.monotonic() + 120
    while not store.checkpoints("under-way"):
        assert time.monotonic() < deadline, home.call("logs", "under-way")
        time.sleep(0.05)
    copied = home.json("backup", "copy")
    assert not store.job("under-way").state.final and copied["missing"] == []
    store.close()
    home.call("down")

    with open_home() as other:
        other.call("restore", str(home.folder / "copy"))
        assert other.json("show", "under-way")["job"]["state"] == "running"  # as it was then
        other.call(*other.up[1:], "--detach")
        assert other.call("wait", "under-way", "--timeout", "240", timeout=260) == "under-way  succeeded\n"
        told = other.json("show", "under-way")
        first, second = told["attempts"]
        assert (first["state"], second["state"]) == ("lost", "succeeded")
        assert second["resumed_from"] is not None
        assert [report["epoch"] for report in told["reports"]] == list(range(1, 151))
        assert other.json("verify") == {"ok": True, "disagreements": []}


def test_ctrl_c_takes_a_service_in_the_foreground_down(home: Home) -> None:
    process = subprocess.Popen(
        home.up, env=home.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("up until Ctrl-C"):
            break
    assert home.json("status")["up"] is True
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    process.stderr.close()
    assert home.processes() == []
