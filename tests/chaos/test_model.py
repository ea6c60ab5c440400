"""The real store and queue do what the model says: on every path of transitions, and on long random ones."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.config import from_mapping
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, Conflict, NewCheckpoint, StaleAttempt, Store, opening

from .ground import Redis, at_once, until
from .model import ACTIONS, Model, Refused, after

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
DEPTH = 4 if ALL or os.environ.get("CI") else 3
ENOUGH = 10_000 if ALL else 100  # random steps

CONFIG = from_mapping({"name": "model", "retry": {"max_attempts": 2, "max_infrastructure": 1, "backoff": 0}})

_ENDS: dict[str, tuple[AttemptState, Cause | None]] = {
    "succeed": (AttemptState.SUCCEEDED, None),
    "error": (AttemptState.FAILED, Cause.ERROR),
    "bad config": (AttemptState.FAILED, Cause.BAD_CONFIG),
    "time-out": (AttemptState.FAILED, Cause.TIMEOUT),
    "die": (AttemptState.LOST, Cause.DIED),
    "make way": (AttemptState.PREEMPTED, Cause.PREEMPTED),
    "stop": (AttemptState.CANCELLED, Cause.CANCELLED),
}


class Real:
    """The actions of the model on a real job, by one of several who have the service open."""

    def __init__(self, url: str, redis_url: str):
        self.service = Service(Store(url), Queue(redis_url))
        self._step = itertools.count(1)

    def do(self, id: str, action: str, attempt: int) -> None:
        """The action; `attempt` is the job's newest. Raises Refused."""
        try:
            self._do(id, action, attempt)
        except (StaleAttempt, Conflict) as error:
            raise Refused(type(error).__name__) from error

    def _do(self, id: str, action: str, attempt: int) -> None:
        service, store = self.service, self.service.store
        verbs: dict[str, Callable[[], object]] = {
            "open": lambda: store.open_attempt(id, attempt + 1, "model"),
            "start": lambda: store.start_attempt(id, attempt),
            "checkpoint": lambda: store.record_checkpoint(id, attempt, self._checkpoint(attempt)),
            "late end": lambda: service.finish(id, attempt - 1, AttemptState.SUCCEEDED, by="model"),
            "cancel": lambda: service.cancel(id, by="model"),
            "retry": lambda: service.retry(id, by="model"),
            "hold": lambda: service.hold(id, by="model"),
            "release": lambda: service.release(id, by="model"),
            "yield": lambda: store.request_yield(id, "model"),
        }
        if action in _ENDS:
            state, cause = _ENDS[action]
            service.finish(id, attempt, state, by="model", cause=cause)
        else:
            verbs[action]()

    def _checkpoint(self, attempt: int) -> NewCheckpoint:
        step = attempt * 10_000 + next(self._step)  # farther than any before
        return NewCheckpoint(f"step-{step}", f"at-{step}", "0" * 64, 0, step, 0, None, {})

    def see(self, id: str) -> Model:
        """The job as the store has it."""
        job = self.service.store.job(id, exact=True)
        return Model(
            state=str(job.state),
            attempt=job.attempt,
            cancelling=job.cancel_requested is not None,
            yielding=job.yield_requested is not None,
            held=job.held is not None,
            errors=job.errors_used,
            infrastructure=job.infrastructure_used,
        )

    def waiting(self) -> dict[str, int]:
        """The queue once it was compared with the store."""
        self.service.reconcile_queue()
        return self.service.queue.entries()

    def close(self) -> None:
        self.service.queue.close()
        self.service.store.close()


def outcome(job: Model, action: str) -> tuple[Model, str | None]:
    """The job after the action, and what refused it, by the model."""
    try:
        return after(job, action), None
    except Refused as error:
        return job, str(error)


def paths(depth: int) -> Iterator[tuple[str, ...]]:
    """Every sequence of at most `depth` actions of which each changes something."""
    layer: list[tuple[tuple[str, ...], Model]] = [((), Model())]
    for _ in range(depth + 1):
        yield from (path for path, _ in layer)
        layer = [
            ((*path, action), then)
            for path, job in layer
            for action in ACTIONS
            if (then := outcome(job, action)[0]) != job
        ]


def perform(real: Real, id: str, job: Model, action: str) -> Model:
    """Do it, compare it with the model; the job then."""
    expected, refusal = outcome(job, action)
    try:
        real.do(id, action, job.attempt)
        refused = None
    except Refused as error:
        refused = str(error)
    assert (real.see(id), refused) == (expected, refusal), (id, job, action)
    return expected


Databases = Callable[[], AbstractContextManager[str]]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What steps do is compared, and not for how long somebody waits for the other writers: of a machine with
    ten times the work that it can do that was more than ten seconds once."""
    monkeypatch.setattr(opening, "BUSY_SECONDS", 120)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database. All but the SQL is the same: the second one does less, but for `ALL`."""
    return str(request.param)


@pytest.fixture
def databases(request: pytest.FixtureRequest, database: str) -> Databases:
    """Makes an empty database, which is there while the block lasts; its URL."""
    if database == "postgresql":
        return request.getfixturevalue("postgresql_server").database

    @contextmanager
    def file() -> Iterator[str]:
        with TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/textvae.db"

    return file


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    with databases() as url:
        yield url


@pytest.mark.timeout(3600)
def test_every_path_of_transitions_is_what_the_model_says(database: str, url: str, redis: Redis):
    """And at the end of each every action that must change nothing is refused or without effect."""
    depth = DEPTH if ALL or database == "sqlite" else DEPTH - 1
    clients = [Real(url, redis.url), Real(url, redis.url)]
    jobs: dict[str, Model] = {}
    for number, path in enumerate(paths(depth)):
        id, job = f"job-{number}", Model()
        clients[0].service.submit(CONFIG, id=id, owner="ada")
        for turn, action in enumerate(path):
            job = perform(clients[turn % 2], id, job, action)
        for action in ACTIONS:
            if outcome(job, action)[0] == job:
                job = perform(clients[number % 2], id, job, action)
        jobs[id] = job
    print(f"{len(jobs)} paths of at most {depth} transitions")
    waiting = {id: job.attempt + 1 for id, job in jobs.items() if job.waits}
    assert clients[1].waiting() == waiting
    redis.flush()
    assert clients[0].waiting() == waiting
    for client in clients:
        client.close()


class Everything(set[str]):
    """All names there can be."""

    def __contains__(self, name: object) -> bool:
        return True


class Cluster:
    """Room for everything, and every attempt is there for ever, whoever opened it."""

    def __init__(self, store: Store) -> None:
        self.started: list[str] = []
        self._store = store

    def start(self, name: str, function: object, arguments: object) -> None:
        self.started.append(name)

    def stop(self, name: str) -> None:
        """Whoever is cancelled is killed as it comes up, and nobody else."""
        assert self._store.job(name.rpartition("-")[0]).cancel_requested is not None, name
        raise RuntimeError(f"{name} is not gone")

    def names(self) -> set[str]:
        return Everything()

    def capacity(self) -> Capacity:
        return Capacity(100, 0, 100, 0)


class Conformance(RuleBasedStateMachine):
    """Random steps over several jobs by clients and dispatchers, one at a time and several at once."""

    redis: Redis
    databases: Databases
    steps: Counter[str]

    @initialize()
    def begin(self) -> None:
        self.open = ExitStack()
        home = self.open.enter_context(TemporaryDirectory())
        url = self.open.enter_context(self.databases())
        self.redis.flush()
        self.clients = [Real(url, self.redis.url) for _ in range(5)]
        self.jobs: dict[str, Model] = {}
        self.cluster = Cluster(self.clients[0].service.store)
        settings = Settings(Path(home), url, f"{home}/storage", self.redis.url)
        self.dispatchers = [
            Dispatcher(
                client.service,
                self.cluster,
                self.cluster.capacity,
                settings,
                timings=Timings(reconcile=0, claim_lease=0.02, silence=10**9, think=0),
            )
            for client in self.clients[3:]
        ]

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(who=st.integers(0, 2))
    def submit(self, who: int) -> None:
        self.steps["submit"] += 1
        id = f"job-{len(self.jobs)}"
        for _ in range(2):  # the second time, the same id is the same job
            self.clients[who].service.submit(CONFIG, id=id, owner="ada")
        self.jobs[id] = Model()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), who=st.integers(0, 2), action=st.sampled_from(ACTIONS))
    def act(self, data: Any, who: int, action: str) -> None:
        self.steps[action] += 1
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        self.jobs[id] = perform(self.clients[who], id, self.jobs[id], action)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), actions=st.tuples(st.sampled_from(ACTIONS), st.sampled_from(ACTIONS)))
    def race(self, data: Any, actions: tuple[str, str]) -> None:
        """Two at once are as one after the other, in one order or the other."""
        self.steps["race"] += 1
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[id]
        at_once(*(partial(self._try, *pair, id) for pair in zip(self.clients, actions, strict=False)))
        first, second = actions
        orders = [serial(job, first, second), serial(job, second, first)]
        self.jobs[id] = self.clients[2].see(id)
        assert self.jobs[id] in orders, (job, actions)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), action=st.sampled_from(ACTIONS))
    def dispatch(self, data: Any, action: str) -> None:
        """Two dispatchers make a pass, and a client acts on a job at the same moment."""
        self.steps["dispatch"] += 1
        id = data.draw(st.sampled_from(sorted(self.jobs)))
        jobs, began = dict(self.jobs), len(self.cluster.started)
        passes = [partial(dispatcher.step, 0.0) for dispatcher in self.dispatchers]
        worked = at_once(*passes, partial(self._try, self.clients[0], action, id))
        assert worked[:2] == [True, True]
        for each, job in jobs.items():
            # Nobody has to start a job in this pass: another may be about to.
            orders = {job, after(job, "open")}
            if each == id:
                orders = {
                    outcome(job, action)[0],
                    serial(job, "open", action),
                    serial(job, action, "open"),
                }
            self.jobs[each] = self.clients[2].see(each)
            assert self.jobs[each] in orders, (each, job, action)
        # What was opened is launched, once, by whoever opened it; what a client opens nobody launches.
        launched = self.cluster.started[began:]
        opened = {
            f"{each}-{job.attempt}" for each, job in self.jobs.items() if job.attempt > jobs[each].attempt
        }
        assert len(set(launched)) == len(launched)
        assert opened - set(launched) <= ({f"{id}-{self.jobs[id].attempt}"} if action == "open" else set())
        assert set(launched) <= opened

    @precondition(lambda self: self.jobs)
    @rule()
    def start_all(self) -> None:
        """In the end every job that waits is started by one dispatcher or the other."""
        self.steps["start all"] += 1

        def all_started() -> bool:
            for dispatcher in self.dispatchers:
                assert dispatcher.step(0.0)
            return all(not self.clients[0].see(id).waits for id in self.jobs)

        until(all_started, "all to be started", 10)
        for id, job in self.jobs.items():
            self.jobs[id] = after(job, "open")
            assert self.clients[0].see(id) == self.jobs[id]

    def _try(self, client: Real, action: str, id: str) -> None:
        with suppress(Refused):  # what it left behind is compared
            client.do(id, action, self.jobs[id].attempt)

    @precondition(lambda self: self.jobs)
    @rule()
    def empty_redis(self) -> None:
        self.steps["empty redis"] += 1
        self.redis.flush()

    @precondition(lambda self: self.jobs)
    @rule(who=st.integers(0, 2))
    def compare(self, who: int) -> None:
        self.steps["compare"] += 1
        waiting = {id: job.attempt + 1 for id, job in self.jobs.items() if job.waits}
        assert self.clients[who].waiting() == waiting

    def teardown(self) -> None:
        for client in getattr(self, "clients", ()):
            client.close()
        if hasattr(self, "open"):
            self.open.close()


def serial(job: Model, first: str, second: str) -> Model:
    """The job after both, each of which speaks of the attempt that was the newest before both."""
    between = outcome(job, first)[0]
    if between.attempt != job.attempt and second != "open" and not _of_the_job(second):
        return between  # it speaks of an attempt that has been replaced
    if second == "open" and between.attempt != job.attempt:
        return between  # that attempt is open already
    return outcome(between, second)[0]


def _of_the_job(action: str) -> bool:
    return action in ("cancel", "retry", "hold", "release", "yield")


@pytest.mark.timeout(3600)
def test_random_steps_are_what_the_model_says(database: str, databases: Databases, redis: Redis):
    enough = ENOUGH if ALL or database == "sqlite" else ENOUGH // 2
    steps = Counter[str]()
    parts = {"redis": redis, "databases": staticmethod(databases), "steps": steps}
    machine = type("Machine", (Conformance,), parts)
    # How many steps an example has Hypothesis draws too: as many examples as it takes.
    for turn in itertools.count(SEED):
        run_state_machine_as_test(
            seed(turn)(machine),
            settings=settings(
                max_examples=4,
                stateful_step_count=100 if ALL else 25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if steps.total() >= enough:
            break
    print(f"{steps.total()} steps: {dict(steps)}")
