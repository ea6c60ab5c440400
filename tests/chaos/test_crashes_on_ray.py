"""Every call into Ray on the road of a real job: whoever dies before it, nothing is lost, nothing left."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster import launching

from ..local_ray import LocalRay
from ..marks import takes_minutes
from ..on_ray import nothing_left
from .crashes_on_ray import ROLES, Road

TOGETHER = 4  # roads at once
TURNS = 10  # at a point that does not come


@pytest.mark.ray
@pytest.mark.timeout(7200)
@takes_minutes
def test_a_crash_before_any_call_into_ray_is_recovered_from(
    tmp_path: Path, local_ray: LocalRay, small_config: dict[str, Any]
):
    cpus = launching.resources()[0]["CPU"] / TOGETHER
    config = {**small_config, "resources": {"cpus_per_rank": cpus}}

    def whole(freezes: bool) -> list[str]:
        with Road(0, tmp_path / f"whole-{freezes}", local_ray, config) as road:
            nothing_left(road.service, [], local_ray.temp_dir, "before it begins")
            points = road.points(freezes=freezes)
            nothing_left(road.service, [road.job], local_ray.temp_dir, "without a crash")
            assert road.problems() == []
        return points

    straight, frozen = whole(False), whole(True)
    late = [point for point in frozen if point not in straight]
    points = straight + late
    of = Counter(point.split(" ")[0] for point in points)
    print(f"{len(points)} points {dict(of)}, {len(late)} with a frozen attempt:", *points, sep="\n  ")
    assert all(of[role] for role in ROLES)
    found, reached, missed = [], Counter[str](), points
    numbers, began = itertools.count(1), time.monotonic()
    for _ in range(TURNS):
        again: list[str] = []
        for first in range(0, len(missed), TOGETHER):
            batch = missed[first : first + TOGETHER]
            with ExitStack() as stack, ThreadPoolExecutor(TOGETHER) as pool:
                roads = [
                    stack.enter_context(Road(number, tmp_path / str(number), local_ray, config))
                    for _, number in zip(batch, numbers, strict=False)
                ]
                there = list(pool.map(lambda road, point: crash(road, point, point in late), roads, batch))
                for road, point, was in zip(roads, batch, there, strict=True):
                    nothing_left(road.service, [road.job], local_ray.temp_dir, f"after {batch}")
                    if problems := road.problems():
                        found += [f"{point}:", *(f"  {problem}" for problem in problems), road.log()]
                    if was:
                        reached[point.split(" ")[0]] += 1
                    else:
                        again.append(point)
        missed = again
    print(
        f"killed at {reached.total()} of {len(points)} {dict(reached)} in {time.monotonic() - began:.0f} s;"
        f" not at {missed}"
    )
    assert not found, "\n".join(found)
    assert not missed, f"no kill in {TURNS} turns at {missed}"


def crash(road: Road, point: str, freezes: bool) -> bool:
    """Go a road up to the crash and to its end then; whether the point was reached."""
    there = road.crash(point, freezes=freezes)
    road.recover()
    return there
