"""What a dispatcher does about the sweeps in each of its passes: end, stop, make.

It keeps nothing that matters: the configs that it has read, and how things stood when it looked last, so
that a pass in which nothing has happened costs little.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.config import JobConfig, from_mapping
from jobs.failures import Failures
from jobs.logs import about
from jobs.service import Service
from jobs.store import Job, JobState, NewTrial, Retry, StoreUnavailable, Trial
from jobs.sweeps.search import NoSuggestion, Outcome, Past, choose
from jobs.sweeps.space import Space
from jobs.sweeps.stopping import Curve, behind
from textvae.parsing import ConfigError

logger = logging.getLogger("textvae.dispatcher")

_TOGETHER = 32  # children made in one transaction
_AGAIN = 5.0  # seconds after which a sweep is looked at although nothing has happened to its children


@dataclass
class _Seen:
    """How a sweep stood when it was looked at last."""

    sweep: Job
    changes: tuple[object, ...]
    at: float


class Sweeper:
    """Advances every sweep that has not ended."""

    def __init__(self, service: Service, failures: Failures, by: str):
        self._service = service
        self._store = service.store
        self._failures = failures
        self._by = by
        self._spaces: dict[str, Space] = {}
        self._seen: dict[str, _Seen] = {}

    def step(self, now: float) -> None:
        """One pass, at a monotonic time. A sweep that cannot be advanced does not keep others from it."""
        sweeps = self._store.sweeps()
        open_ = {sweep.id for sweep in sweeps}
        self._spaces = {id: space for id, space in self._spaces.items() if id in open_}
        self._seen = {id: seen for id, seen in self._seen.items() if id in open_}
        for sweep in sweeps:
            what = f"advancing sweep {sweep.id}"
            try:
                self._look(sweep, now)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - logged with its traceback, and tried again
                self._failures.failed(what, error, about(sweep.id))
            else:
                self._failures.worked(what, about(sweep.id))

    def _look(self, sweep: Job, now: float) -> None:
        seen = self._seen.get(sweep.id)
        changes = self._store.changes(sweep.id)
        idle = seen is not None and (seen.sweep, seen.changes) == (sweep, changes)
        if seen is not None and idle and now - seen.at < _AGAIN:
            return
        if not self._advance(sweep):
            # What is noted are the changes before it: whatever this has done itself is looked at once more.
            self._seen[sweep.id] = _Seen(sweep, changes, now)

    def _advance(self, sweep: Job) -> bool:
        """End, stop, make; whether there is more to do at once."""
        # Ended first, which takes no config: one that this version cannot read can be cancelled all the same.
        ended = self._service.end_sweep(sweep.id, by=self._by)
        if ended is not None:
            logger.info("sweep %s is %s", sweep.id, ended.state, extra=about(sweep.id))
            return False
        try:
            return self._go_on(sweep)
        except ConfigError as error:
            reason = f"this version cannot go on with it: {error}"
            cancelled = sweep.cancel_requested is not None  # then it makes no more anyway
            if not cancelled and self._store.make_no_more(sweep.id, reason, self._by):
                logger.warning("sweep %s: %s", sweep.id, reason, extra=about(sweep.id))
            return False

    def _go_on(self, sweep: Job) -> bool:
        """Stop and make; whether there is more to make at once. Raises ConfigError."""
        space = self._space(sweep)
        select = space.config.select
        trials = self._store.trials(sweep.id, select.mode)
        needs_curves = space.sweep.early_stopping is not None or space.sweep.search == "optuna"
        curves = self._store.curves(sweep.id, select.metric) if needs_curves else {}
        self._stop(space, trials, curves)
        return self._make(sweep, space, trials, curves) == _TOGETHER

    def _stop(self, space: Space, trials: Sequence[Trial], curves: Mapping[str, Curve]) -> None:
        rule = space.sweep.early_stopping
        if rule is None:
            return
        select = space.config.select
        for trial in trials:
            if trial.state.final or trial.cancel_requested is not None or trial.spared:
                continue
            own = curves.get(trial.job, {})
            siblings = [curve for job, curve in curves.items() if job != trial.job]
            reason = behind(rule, select.mode, select.metric, own, siblings)
            if reason is None or max(own) >= space.child(trial.parameters).training.epochs:
                continue  # or it is about to end by itself
            if self._service.stop_early(trial.job, reason, by=self._by) is not None:
                of = about(trial.job, trial.attempt + (trial.state is JobState.QUEUED))
                logger.info("stopping %s early: %s", trial.job, reason, extra=of)

    def _make(self, sweep: Job, space: Space, trials: Sequence[Trial], curves: Mapping[str, Curve]) -> int:
        """Make as many children as there is room for; how many were made."""
        assert sweep.trials is not None
        open_ = sum(not trial.state.final for trial in trials)
        room = min(sweep.trials - len(trials), space.sweep.at_once - open_, _TOGETHER)
        if room <= 0 or not self._may_make(sweep):
            return 0
        past = [_past(trial, curves.get(trial.job, {})) for trial in trials]
        new: list[NewTrial] = []
        for number in range(len(trials) + 1, len(trials) + 1 + room):
            try:
                parameters = choose(space, number, past)
            except NoSuggestion as error:
                self._store.make_no_more(sweep.id, str(error), self._by)
                break
            past.append(Past(number, parameters, "open", None, {}))
            new.append(_new(number, parameters, space.child(parameters)))
        made = self._service.add_trials(sweep.id, new, by=self._by) if new else []
        if made:
            logger.info(
                "sweep %s: made %s", sweep.id, ", ".join(job.id for job in made), extra=about(sweep.id)
            )
        return len(made)

    def _may_make(self, sweep: Job) -> bool:
        """Whether it is worth choosing children; `Store.add_trials` decides it."""
        if sweep.cancel_requested is not None or sweep.error is not None or sweep.held is not None:
            return False
        if sweep.state is JobState.QUEUED:
            waiting = self._store.waiting(sweep.id)
            if waiting is None or not waiting.eligible:
                return False
        return self._store.draining() is None

    def _space(self, sweep: Job) -> Space:
        if sweep.id not in self._spaces:
            self._spaces[sweep.id] = Space(from_mapping(self._store.config(sweep.id)))
        return self._spaces[sweep.id]


def _new(number: int, parameters: Mapping[str, object], config: JobConfig) -> NewTrial:
    return NewTrial(
        number,
        parameters,
        config.model_dump(mode="json"),
        config.resources.min_ranks,
        config.resources.cpus,
        config.resources.gpus,
        Retry(**config.retry.model_dump()),
        config.time_limit,
        config.resources.max_ranks,
    )


def _past(trial: Trial, curve: Curve) -> Past:
    outcome: Outcome = "open"
    if trial.state is JobState.SUCCEEDED:
        outcome = "done"
    elif trial.state.final:
        outcome = "stopped" if trial.stopped else "failed"
    return Past(trial.number, trial.parameters, outcome, trial.value, curve)
