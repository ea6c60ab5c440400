"""Kill storms. `make chaos` has the large one; TEXTVAE_CHAOS_SEED makes another, or the same again."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from jobs.store import Store

from .ground import Ground, Redis
from .oracle import problems
from .storm import FLUSH, WEIGHTS, Plan, Storm

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"


def rage(plan: Plan, ground: Ground, redis: Redis, reviews: Path) -> None:
    storm = Storm(plan, ground, redis, reviews)
    journal = storm.rage()
    store = Store(ground.settings.database_url)
    found = problems(store, ground.settings, journal.expected, ground.processes)
    store.close()
    print(
        f"seed {plan.seed}: killed {dict(journal.killed)}, emptied Redis {journal.flushed} times"
        f" in {journal.seconds:.0f} s; settled {journal.settled}"
    )
    assert not found, "\n".join([f"seed {plan.seed}", *journal.lines, *found])
    assert journal.settled is not None
    assert journal.killed == Counter(blow.kind for blow in plan.blows() if blow.kind != FLUSH)
    assert set(journal.killed) == set(WEIGHTS)
    assert journal.killed.total() == plan.kills
    assert journal.flushed == plan.flushes


@pytest.mark.timeout(3600)
def test_a_storm_loses_nothing_and_completes_nothing_twice(ground: Ground, redis: Redis, reviews: Path):
    large = Plan(SEED, jobs=200, kills=300, flushes=20, real=10)
    rage(large if ALL else Plan(SEED, jobs=14, kills=24, flushes=2, real=2), ground, redis, reviews)


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_draws_the_same_storm_again_with_every_kind_in_it(seed: int):
    plan = Plan(seed, jobs=14, kills=24, flushes=2)
    blows = plan.blows()
    assert blows == plan.blows()
    assert blows != Plan(seed + 1, jobs=14, kills=24, flushes=2).blows()
    kinds = Counter(blow.kind for blow in blows)
    assert kinds.pop(FLUSH) == 2
    assert set(kinds) == set(WEIGHTS) and kinds.total() == 24
