"""Every crash point of the road of a job: whatever dies there, nothing is lost and nothing completed twice.

The suite takes a share of the points, drawn by TEXTVAE_CHAOS_SEED; `make chaos` takes them all.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from .crashes import SCENES, Road, share_of
from .forking import Nursery
from .ground import Redis

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
KINDS = ("commit", "redis", "launcher", "fsync", "rename", "delete")
SHARE = 6  # points of each scene, without ALL
TURNS = 10  # at a point that does not come
# By the clock, not by what a job does: whether it comes is up to how long the machine takes for a step.
RENEWAL = "attempt watch redis EVAL textvae:lease:"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scene", SCENES)
def test_a_crash_at_any_point_is_recovered_from(scene: str, tmp_path: Path, nursery: Nursery, redis: Redis):
    template = tmp_path / "template"
    Road(scene, template, nursery, redis.url, None)
    redis.flush()
    points = Road(scene, tmp_path / "whole" / "home", nursery, redis.url, template).points()
    points = [point for point in points if " begin " not in point]  # a kill there is one before the commit
    kinds = {kind: sum(f" {kind} " in point for point in points) for kind in KINDS}
    assert all(kinds.values()), (kinds, points)
    chosen = points if ALL else share_of(points, SHARE, SEED, process_and_kind)
    found, reached, missed = [], Counter[str](), []
    began = time.monotonic()
    for number, point in enumerate(chosen):
        # Two threads take turns as they like, so a few points come only now and then.
        for turn in range(TURNS):
            redis.flush()
            home = tmp_path / f"{number}-{turn}" / "home"  # by its last folder's name a file is known
            road = Road(scene, home, nursery, redis.url, template)
            there = road.crash(point)
            problems = road.recover()
            if problems:
                found += [f"{point}:", *(f"  {problem}" for problem in problems)]
            else:
                shutil.rmtree(home.parent)
            if there:
                reached[point.split(" ")[0]] += 1
                break
        else:
            missed.append(point)
    print(
        f"{scene}: {len(points)} points {kinds}; killed at {reached.total()} of {len(chosen)} {dict(reached)}"
        f" in {time.monotonic() - began:.0f} s; not at {missed}"
    )
    assert not found, "\n".join(found)
    if missed:
        # What comes only where a step takes long is up to the machine.
        redis.flush()
        again = Road(scene, tmp_path / "again" / "home", nursery, redis.url, template).points()
        missed = [point for point in missed if point in again and not point.startswith(RENEWAL)]
    assert not missed, f"no kill in {TURNS} turns at {missed}"


def process_and_kind(point: str) -> tuple[str, ...]:
    """Of which process a point is, and of what kind of call; a watching thread counts as one."""
    return tuple(point.split(" ")[:3] if " watch " in point else point.split(" ")[:2])
