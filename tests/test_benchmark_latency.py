"""What benchmarks/latency.py makes of logs and stamps. To make some it takes a stack, and minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def latency() -> ModuleType:
    """The benchmark; its folder is on the path for this module's tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import latency

        return latency


def at(second: float) -> float:
    return datetime.fromisoformat("2026-11-27T10:00:00+00:00").timestamp() + second


def test_the_stages_are_found_in_an_attempts_log(latency: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "attempt-1.log"
    assert latency.heard(log) == {}
    log.write_text(
        "2026-11-27T10:00:01.500Z abc-1 attempt 1 of job abc on somewhere, process 4711\n"
        "2026-11-27T10:00:01.600Z abc-1 training quickstart with 2 rank(s)\n"
        "2026-11-27T10:00:05.000Z abc-1 rank 1: started, one of 2, on node f00 (127.0.0.1)\n"
        "2026-11-27T10:00:06.000Z abc-1 rank 0: started, one of 2, on node f00 (127.0.0.1)\n"
        "2026-11-27T10:00:08.000Z abc-1 rank 0: 90 training, 10 validation reviews, 40 token ids, "
        "1234 parameters, 2 rank(s) on cpu, step 0\n"
        "2026-11-27T10:00:09.250Z abc-1 rank 0: the first step is done\n"
    )
    assert latency.heard(log) == {
        "work begins": at(1.5),
        "process": 4711.0,
        "fit": at(1.6),
        "rank begins": at(6),
        "model built": at(8),
        "first step": at(9.25),
    }


def test_the_stages_of_ray_train_are_those_of_the_training_that_began_last(
    latency: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "session_latest" / "logs" / "train"
    folder.mkdir(parents=True)
    attempting = "Attempting to start training worker group of size 2 with\nthe following resources"
    for name, first in (("before", -60.0), ("now", 3.0)):
        lines = [
            {"message": "[State Transition] INITIALIZING -> SCHEDULING", "timestamp_ns": at(first) * 1e9},
            {"message": attempting, "timestamp_ns": at(first + 1) * 1e9},
            {"message": "Started training worker group of size 2:", "timestamp_ns": at(first + 4) * 1e9},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"ray-train-app-controller-{name}.log").write_text(text)
    found = latency.ray_train(tmp_path, at(0))
    assert found == pytest.approx({"controller is up": at(4), "ranks are up": at(7)})


def test_when_a_process_began_is_known_to_less_than_the_whole_seconds_of_the_boot(
    latency: ModuleType,
) -> None:
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        after = time.time()
        assert before - 0.05 <= latency.started(process.pid) <= after + 0.05  # the kernel counts hundredths
        process.communicate(b"\n")


def test_stages_count_from_the_beginning_in_the_order_in_which_they_were_reached(latency: ModuleType) -> None:
    stages = latency.since(100.0, {"fit": 103.0, "actor's process": 98.0, "recorded": 100.5})
    assert list(stages.items()) == [("actor's process", -2.0), ("recorded", 0.5), ("fit", 3.0)]


def test_the_ratio_is_against_fit_alone_and_against_the_whole_script(latency: ModuleType) -> None:
    result = latency.summary(
        {
            "ours": [{"fit": 4.0, "first step": each} for each in (12.0, 14.0, 13.0)],
            "bare": [{"fit": 3.0, "first step": each} for each in (13.0, 13.0, 14.0)],
        }
    )
    assert result["seconds"]["ours"] == {"median": 13.0, "smallest": 12.0, "largest": 14.0}
    assert result["seconds"]["fit"]["median"] == 10.0
    assert result["ratios"]["ours / fit"]["medians"] == pytest.approx(1.3)
    assert result["ratios"]["ours / script"]["medians"] == pytest.approx(1.0)
    assert result["stages"]["bare"] == {"fit": 3.0, "first step": 13.0}
    result["dispatcher"] = {"MB": 104.6, "% of a core": 0.5}
    result["dispatcher, 110,000 jobs"] = {"MB": 200.1, "% of a core": 0.61}
    lines = latency.shown(result | {"ranks": 2, "rounds": 3, "load before": 0.1}).splitlines()
    assert "dispatcher, idle: MB 105, % of a core 0.5" in lines
    assert "dispatcher, 110,000 jobs, idle: MB 200, % of a core 0.61" in lines
    assert any(line.startswith("ours / fit               1.30") for line in lines)
    assert f"promised: {result['promised']}" in lines and "3 rounds, 2 rank(s), load before 0.1" in lines
