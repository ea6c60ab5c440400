"""A cluster of two nodes on one machine: training goes across both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from textvae import checkpoint
from textvae.artifacts import Artifacts

from ..marks import takes_minutes

# A driver of its own: a process can be connected to one Ray only, and the tests' is to another.
DRIVER = """
import json, sys, time
import ray
from cluster import launching
import attempt_training

address, token_path, arguments, here = sys.argv[1:]
launching.connect(address, token_path=token_path)
deadline = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) < 2:
    assert time.monotonic() < deadline, "the second node did not come"
    time.sleep(0.1)
environment = {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
launching.start("across-1", attempt_training.train, json.loads(arguments), environment=environment)
deadline = time.monotonic() + 150
placed = {}
while launching.state("across-1") != "dead":
    assert time.monotonic() < deadline, "training did not end"
    placed = launching.placements() or placed
    time.sleep(0.1)
print(json.dumps({"placed": placed, "nodes": list(launching.nodes()), "then": launching.placements()}))
"""


@takes_minutes
@pytest.mark.ray
def test_two_ranks_train_on_two_nodes(two_nodes, small_config, tmp_path):
    fit = {
        "config": small_config,
        "ranks": 2,
        "cpus_per_rank": 1,
        "gpus_per_rank": 0,
        "data_folder": str(tmp_path / "data"),
        "storage": str(tmp_path / "storage"),
        "prefix": "across",
        "resume": None,
        "ray_storage": str(tmp_path / "ray"),
    }
    here = str(Path(__file__).parent)
    arguments = json.dumps({"folder": str(tmp_path), "fit": fit})
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, two_nodes.address, str(two_nodes.token_path), arguments, here],
        env={**two_nodes.environment, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert driver.returncode == 0, driver.stderr
    told = json.loads(driver.stdout.splitlines()[-1])
    assert told["placed"].keys() == {"across-1"}
    assert sorted(told["placed"]["across-1"]) == [[node, 1] for node in sorted(told["nodes"])]
    assert told["then"] == {}
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert (said[-1]["kind"], said[-1]["status"]) == ("result", "finished"), said[-1]
    log = "\n".join(each["text"] for each in said if each["kind"] == "log")
    nodes = dict(re.findall(r"rank (\d): started, one of 2, on node (\w+)", log))
    assert nodes.keys() == {"0", "1"}
    assert nodes["0"] != nodes["1"]
    last = Artifacts(tmp_path / "storage").fetch("across/epoch-03", tmp_path)
    assert checkpoint.load(last).position.step == 24
