"""Kill storms. `make chaos` has the large one; TEXTVAE_CHAOS_SEED makes another, or the same again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.store import Store

from .ground import Ground, Redis
from .oracle import problems
from .storm import Plan, Storm

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"


def rage(plan: Plan, ground: Ground, redis: Redis, reviews: Path) -> None:
    storm = Storm(plan, ground, redis, reviews)
    journal = storm.rage()
    store = Store(ground.settings.database_url)
    found = problems(store, ground.settings, journal.expected, ground.processes)
    store.close()
    killed = dict(journal.killed)
    print(f"seed {plan.seed}: killed {killed} in {journal.seconds:.0f} s; settled {journal.settled}")
    assert not found, "\n".join([f"seed {plan.seed}", *journal.lines, *found])
    assert journal.settled is not None
    assert journal.killed.total() >= plan.kills


@pytest.mark.timeout(3600)
def test_a_storm_loses_nothing_and_completes_nothing_twice(ground: Ground, redis: Redis, reviews: Path):
    large = Plan(SEED, jobs=200, kills=300, real=10)
    rage(large if ALL else Plan(SEED, jobs=14, kills=24, real=2), ground, redis, reviews)
