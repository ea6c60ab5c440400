"""A sweep from its submission to what is served of it, through real attempts."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from jobs.store import Cause, JobState, Store
from textvae.artifacts import Artifacts

from .ground import Ground, Redis, end, until
from .launcher import kill
from .oracle import Expected, problems
from .training import METRIC, STEPS, chain, value_of, weights_of

EPOCHS = 4
SECOND, BEST, WORST = SEEDS = (80, 90, 10)  # of the children, which are as good as their seeds are high


def test_a_sweep_serves_its_best_child_and_stops_the_one_that_is_behind(ground: Ground, redis: Redis):
    """All three wait after their second epoch until the worst is told to stop; the second best ends last."""
    release = ground.home / "release"
    ground.attempt_order |= {"hold": 2 * STEPS + 1, "release": str(release)}
    config = json.loads(ground.config("stub", 0, EPOCHS).read_text())
    stopping = {"rule": "median", "grace": 2, "siblings": 2}
    sweep = {"parameters": {"seed": {"values": SEEDS}}, "early_stopping": stopping}
    path = ground.home / "sweep.yaml"
    path.write_text(json.dumps(config | {"sweep": sweep}))
    dispatcher = ground.dispatcher()
    assert ground.client("submit", str(path), "--id", "sweep").wait() == 0
    store = Store(ground.settings.database_url)
    until(lambda: store.jobs(parent="sweep"), "the children")
    second, best, worst = (f"sweep.{number}" for number in (1, 2, 3))
    until(lambda: store.job(worst).state.final, "the worst child to end")
    slow = ground.home / "attempts" / f"{second}-1.rank"
    assert kill(slow, signal.SIGSTOP)
    release.touch()
    until(lambda: store.job(best).state.final, "the best child to end")
    assert kill(slow, signal.SIGCONT)
    until(lambda: store.job("sweep").state.final, "the sweep to end")
    ground.settle(store)
    end(dispatcher)

    succeeded, stopped = frozenset({JobState.SUCCEEDED}), frozenset({JobState.CANCELLED})
    ends = (succeeded, succeeded, stopped)
    jobs = [
        Expected(f"sweep.{number}", seed, EPOCHS, may_be=may_be)
        for number, (seed, may_be) in enumerate(zip(SEEDS, ends, strict=True), 1)
    ]
    assert problems(store, ground.settings, jobs, ground.processes) == []
    assert store.job("sweep").state is JobState.SUCCEEDED
    assert [attempt.cause for attempt in store.attempts()] == [None, None, Cause.STOPPED_EARLY]
    (version,) = store.versions("stub")
    assert (version.job, version.metrics[METRIC]) == (best, value_of(BEST, EPOCHS))
    folder = Artifacts(ground.settings.storage).fetch(version.location, Path("unused"))
    assert weights_of(folder) == {"step": EPOCHS * STEPS, "state": chain(BEST, EPOCHS * STEPS)}
    assert [promotion.version for promotion in store.promotions("stub")] == [version.version]
    store.close()
