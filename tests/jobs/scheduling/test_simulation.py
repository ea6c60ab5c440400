"""1,100 random mixes: every single decision is held against the rules, and every mix comes to its end."""

from __future__ import annotations

import pytest

from . import mixes, oracle
from .simulation import Mix, Pass, Simulation

GENERAL, ELASTIC, SATURATED = 900, 100, 50  # mixes
BLOCK = 100
YIELD, PLACING = 10.0, 3.0  # seconds that the simulation takes at most to make room, and to start


class _Watch:
    """Checks each decision, alone and against those before it."""

    def __init__(self, mix: Mix):
        self._mix = mix
        self._promised: dict[str, float] = {}  # by when a job must have started
        self._machines = 0
        self.preemptions = 0
        self.backfills = 0
        self.wide = 0  # starts with more ranks than needed

    def __call__(self, seen: Pass) -> None:
        started, reserved, ahead = oracle.reference(seen)
        seen_as = {job.id: job for job in seen.waiting}
        assert [(job.id, job.ranks) for job in seen.decisions.start] == started
        self.wide += sum(job.ranks > seen_as[job.id].ranks for job in seen.decisions.start)
        assert (seen.decisions.reserved and seen.decisions.reserved.job) == reserved
        oracle.check(seen, ahead)
        self._check_promises(seen)
        self.preemptions += len(seen.decisions.preempt)

    def _check_promises(self, seen: Pass) -> None:
        """The moment by which a reserved job fits never moves back, unless others went first by right, or
        machines were lost."""
        now = seen.decisions.reserved
        lost = len(seen.cluster.nodes) < self._machines
        self._machines = len(seen.cluster.nodes)
        if now is None or lost:
            self._promised.clear()
            return
        if now.job not in self._promised:
            self._promised.clear()
        in_turn = [job for job in seen.decisions.start if not self._behind(seen, job.id, now.job)]
        self.backfills += len(seen.decisions.start) - len(in_turn)
        if in_turn:
            self._promised.clear()
        promised = self._promised.get(now.job)
        if promised is not None:
            assert now.at is not None and now.at <= promised + 1e-6, f"{now.job} was promised {promised}"
            fit = oracle.true_fit(seen, now.job)
            assert fit is not None and fit <= promised + 1e-6, f"{now.job} was promised {promised}, not {fit}"
        if now.at is not None:
            self._promised[now.job] = now.at

    @staticmethod
    def _behind(seen: Pass, job: str, other: str) -> bool:
        spec = oracle.Spec(seen)
        by_id = {each.id: each for each in seen.waiting}
        return spec.level(by_id[job]) < by_id[other].priority and not spec.overdue(by_id[job])


def _longest_hold(mix: Mix) -> float:
    """By what its limit says: for so long others may have the room that was kept."""
    longest = max(max(job.work, job.first.limit or 0) for job in mix.jobs)
    return longest + mix.policy.margin + PLACING + YIELD + mix.lag


def _wait_limit(mix: Mix, priority: int, turns_before: int) -> float:
    """The bound of docs/scheduling.md: what a job waits at most, given who went before it in its group."""
    top = max(job.first.priority for job in mix.jobs)
    groups = len({job.first.group for job in mix.jobs})
    turn = mix.policy.overdue_after(priority, top) + (groups + 2) * _longest_hold(mix)
    return (2 * turns_before + 1) * turn + sum(ends - begins for begins, ends, _ in mix.outages)


def _run(mix: Mix, seed: int) -> _Watch:
    """Run a mix to its end with every decision watched; each of its jobs ends, within the bound."""
    watch = _Watch(mix)
    simulation = Simulation(mix, seed, watch)
    try:
        simulation.run()
        assert [job.first.id for job in mix.jobs if job.finished is None] == [], "they never ran"
        for job in mix.jobs:
            assert job.done <= job.work + 1e-6
            assert job.displaced <= mix.policy.preemption.times
            for (ready, started), before in zip(job.waits, job.turns_before, strict=True):
                limit = _wait_limit(mix, job.first.priority, before)
                assert started - ready <= limit, (
                    f"{job.first.id} waited {started - ready:.0f} s of {limit:.0f}"
                )
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, at {simulation.now}: {error}") from error
    return watch


@pytest.mark.parametrize("first", range(0, GENERAL, BLOCK))
def test_mixes_of_everything(first: int) -> None:
    watches = [_run(mixes.anything(seed), seed) for seed in range(first, first + BLOCK)]
    # Else the mixes show nothing of it.
    assert sum(watch.preemptions for watch in watches) > 20
    assert sum(watch.wide for watch in watches) > 20


def test_elastic_jobs_go_on_with_what_there_is() -> None:
    grown: list[tuple[int, int]] = []
    wide = 0
    for seed in range(ELASTIC):
        mix = mixes.coming_and_going(seed)
        wide += _run(mix, seed).wide
        grown += [each for job in mix.jobs for each in job.grown]
    assert wide > ELASTIC and len(grown) > ELASTIC / 2
    # It is worth it, but where somebody else came, or a machine was lost, in the seconds that it took.
    gained = sum(after > before for before, after in grown)
    assert gained > 0.9 * len(grown), f"{gained} of {len(grown)}"


@pytest.mark.parametrize("first", range(0, SATURATED, BLOCK // 2))
def test_owners_get_their_shares_while_all_of_them_wait(first: int) -> None:
    for seed in range(first, first + BLOCK // 2):
        mix = mixes.saturated(seed)
        simulation = Simulation(mix, seed)
        had = simulation.spent

        def measure(seen: Pass, mix: Mix = mix) -> None:
            assert {job.owner for job in seen.waiting} == set(mix.policy.owners), "somebody has nothing to do"

        simulation.watch = measure
        simulation.run(mixes.HORIZON)
        for attempt in simulation.running.values():
            job = attempt.view
            had[job.owner] += job.cpus / simulation.cluster().total_cpus * (simulation.now - job.opened)
        weights = sum(share.weight for share in mix.policy.owners.values())
        for owner, share in mix.policy.owners.items():
            due = share.weight / weights * sum(had.values())
            error = had[owner] - due
            told = f"seed {seed}: {owner} has had {error:+.0f} s beside a share of {due:.0f}"
            assert abs(error) <= 0.05 * sum(had.values()), told
            # And within 5 % of one's own share, but for a job more or less at the end.
            job = max(job.first.cpus * job.work for job in mix.jobs if job.first.owner == owner)
            assert abs(error) <= 0.05 * due + job / simulation.cluster().total_cpus, told


def test_the_same_seed_makes_the_same_history() -> None:
    def story() -> list[tuple[str, float | None, int]]:
        mix = mixes.anything(7)
        Simulation(mix, 7).run()
        return [(job.first.id, job.finished, job.attempts) for job in mix.jobs]

    assert story() == story()
