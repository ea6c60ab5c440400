"""Real training that is killed at a random step ends as if nobody had touched it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from jobs.store import Store

from .forking import gone
from .ground import Ground, Redis, end, until
from .oracle import Expected, problems

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
EPOCHS, STEPS = 4, 8  # of an epoch: 160 reviews in batches of 20


@pytest.mark.timeout(3600)
def test_training_killed_at_a_random_step_ends_with_the_same_weights(
    ground: Ground, redis: Redis, reviews: Path
):
    """Bit for bit, after at most one epoch was done twice: the oracle trains it anew and compares."""
    draw = random.Random(SEED)
    store, jobs = Store(ground.settings.database_url), []
    for number in range(40 if ALL else 3):
        id, step = f"job-{number}", draw.randint(1, EPOCHS * STEPS)
        reached = ground.home / f"reached-{number}"
        points = {"role": "rank", "kill": f"rank step taken #{step}", "reached": str(reached)}
        config = str(ground.config("real", number, EPOCHS, data=reviews))
        assert ground.client("submit", config, "--id", id).wait() == 0
        dying = {**ground.attempt_order, "points_of": {"rank": points}}
        pid = ground.dispatcher(passes=1, attempt=dying)
        until(lambda pid=pid: gone(pid), "the dispatcher to end")  # type: ignore[misc]
        until(lambda: not ground.processes.living(), "the attempt to end with its rank")
        assert reached.exists(), f"{id} did not come to step {step}"
        again = ground.dispatcher()
        until(lambda id=id: store.job(id).state.final, f"{id} to end")  # type: ignore[misc]
        ground.settle(store)
        end(again)
        jobs.append(Expected(id, number, EPOCHS, real=True))
        done = [c.step for c in store.checkpoints(id, deleted=True) if c.attempt == 1]
        assert step - max(done, default=0) <= STEPS
    assert problems(store, ground.settings, jobs) == []
    store.close()
