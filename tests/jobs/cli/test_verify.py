"""`verify`, `backup`, `restore` as one types them."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.queue import Entry, Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Store

from .conftest import Run


def test_verify_names_and_repairs(run: Run, queue: Queue, service: Service, settings: Settings):
    queue.publish_cluster({"total_cpus": 4})
    assert run("verify").exit_code == 0
    queue.push([Entry("foreign", number=1, priority=0, sequence=1)])
    result = run("verify")
    assert result.exit_code == 1
    assert "foreign" in result.stdout and "textvae-jobs verify --repair" in result.stderr
    result = run("verify", "--repair", "--json")
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)["disagreements"]
    assert (found["kind"], found["what"], found["repaired"]) == ("foreign", "job foreign", True)
    assert run("verify").exit_code == 0


def test_verify_says_what_it_could_not_compare(offline: Run):
    result = offline("verify")
    assert result.exit_code == 0
    assert "Redis is not running: not compared" in result.stderr
    assert "Ray is not running: not compared" in result.stderr


def test_backup_and_restore(offline: Run, store: Store, settings: Settings, tmp_path: Path, monkeypatch):
    copy = tmp_path / "copy"
    assert offline("backup", str(copy)).exit_code == 0
    again = offline("backup", str(copy))
    assert again.exit_code == 1 and "exists" in again.stderr
    assert offline("restore", str(copy)).exit_code == 1  # the home is not empty
    monkeypatch.setenv("TEXTVAE_HOME", str(tmp_path / "another"))
    result = offline("restore", str(copy))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "another" / "textvae.db").exists()
    assert offline("list").exit_code == 0
