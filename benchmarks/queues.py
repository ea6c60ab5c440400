"""How the queue holds up when there is much of it: `python benchmarks/queues.py`.

Records 100,000 finished and 10,000 queued jobs of 20 owners in an SQLite file, beside a real Redis, and
measures what people and the dispatcher do then. Attempts are stubs: this is about deciding, not about
training. Every figure is printed with what is promised; on a machine that does other work the times are worth
little, and the CPU times beside them more. (A file called queue.py would hide the standard library's from
every script in this folder.)

| figure | of what |
|---|---|
| list | reading the newest 50 jobs, and the queued ones of one owner, in this process; p95 |
| list, whole process | `textvae-jobs list` from the start of its process to its end; p95; CPU time |
| submit | `Service.submit` in this process: one transaction that is synced to disk, one push; p50, p95, CPU |
| decisions, one by one | an attempt ends, the dispatcher makes a pass and starts another one; a second, CPU |
| decisions, together | a pass that starts 500 jobs at once; a second |
| submit to claimed | from the record of a job to that of its attempt, on an idle dispatcher; p50 |
| dispatcher | memory (RSS) and share of a core of a dispatcher whose cluster is full |
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert

from cluster.stack import parts, processes
from cluster.stack.state import Paths
from jobs.config import JobConfig, load
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, JobState, Store
from jobs.store.tables import AttemptRow, EventRow, JobRow

OWNERS = 20
CPUS = 8.0


class Stubs:
    """A cluster on which attempts are there and do nothing."""

    def __init__(self, store: Store, cpus: float):
        self._store = store
        self._cpus = cpus
        self.alive: set[str] = set()
        self.started: list[tuple[str, int]] = []

    def start(self, name: str, function: Callable[..., object], arguments: Mapping[str, Any]) -> None:
        """Its ranks are there at once; that they are is recorded by nobody that the dispatcher waits for."""
        self.alive.add(name)
        self.started.append((arguments["job"], arguments["number"]))

    def begin(self) -> None:
        """What the attempts themselves would record."""
        while self.started:
            job, number = self.started.pop()
            self._store.join_attempt(job, number, host="stub")
            self._store.start_attempt(job, number)

    def stop(self, name: str) -> None:
        """It goes at once."""
        self.alive.discard(name)

    def names(self) -> set[str]:
        """All that were started and not stopped."""
        return set(self.alive)

    def capacity(self) -> Capacity:
        """Each attempt holds a CPU."""
        return Capacity(self._cpus, 0, max(0.0, self._cpus - len(self.alive)), 0)


def main() -> None:
    """Measure, and print a line for each figure."""
    options = argparse.ArgumentParser(description="the queue's figures with many jobs recorded")
    options.add_argument("--queued", type=int, default=10_000, help="jobs that wait (default: 10,000)")
    options.add_argument("--finished", type=int, default=100_000, help="jobs that ended (default: 100,000)")
    options.add_argument(
        "--seconds", type=float, default=30, help="of watching an idle dispatcher (default: 30)"
    )
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    options.add_argument("--strict", action="store_true", help="exit 1 if a figure misses what is promised")
    options.add_argument("--daemon", nargs=2, metavar=("SETTINGS", "CPUS"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.daemon:
        daemon(Settings.from_dict(json.loads(given.daemon[0])), float(given.daemon[1]))
        return
    figures: dict[str, tuple[float, float | None, bool]] = {}  # value, promised, whether less is better
    with tempfile.TemporaryDirectory(prefix="textvae-queue-") as folder, redis(Path(folder)) as url:
        home = Path(folder) / "home"
        home.mkdir()
        settings = Settings(
            home, f"sqlite:///{home / 'textvae.db'}", storage=str(home / "storage"), redis_url=url
        )
        store, queue = Store(settings.database_url), Queue(url)
        config = load("quickstart", ["resources.ranks=1"])
        record(store, config, given.finished, JobState.SUCCEEDED)
        figures["submit to claimed, p50 ms"] = claimed(settings, store, config), 50, True
        record(store, config, given.queued, JobState.QUEUED)
        Service(store, queue).reconcile_queue()
        listing = many(lambda: store.jobs(limit=50), 100)
        waiting = many(lambda: store.jobs([JobState.QUEUED], owner="owner-03", limit=50), 100)
        figures["list, p95 ms"] = max(percentile(listing, 95), percentile(waiting, 95)), 200, True
        whole, cpu = whole_list(settings)
        figures["list, whole process, p95 ms"] = percentile(whole, 95), 200, True
        figures["list, whole process, CPU ms"] = statistics.median(cpu), None, True
        service = Service(store, queue)
        used = time.process_time()
        submitting = many(lambda: service.submit(config, owner="owner-01"), 200)
        used = time.process_time() - used
        figures["submit, p50 ms"] = percentile(submitting, 50), 20, True
        figures["submit, p95 ms"] = percentile(submitting, 95), 20, True
        figures["submit, CPU ms"] = used * 1000 / (len(submitting) + 1), None, True
        memory, busy = idle(settings, given.seconds)
        figures["dispatcher, MB"] = memory, 300, True
        figures["dispatcher idle, % of a core"] = busy, 2, True
        rate, cpu_ms = one_by_one(settings, store, queue, 100)
        figures["decisions a second, one by one"] = rate, 50, False
        figures["CPU ms of such a decision"] = cpu_ms, None, True
        figures["decisions a second, together"] = together(settings, store, queue, 500), 50, False
        queue.close()
        store.close()
    show(figures, given)


def show(figures: dict[str, tuple[float, float | None, bool]], given: argparse.Namespace) -> None:
    """Print the figures, and leave with 1 if one is missed that counts."""
    missed = [
        name
        for name, (value, promised, less) in figures.items()
        if promised is not None and (value > promised if less else value < promised)
    ]
    if given.json:
        print(json.dumps({name: round(value, 3) for name, (value, _, _) in figures.items()}, indent=2))
    else:
        print(f"{given.queued:,} queued, {given.finished:,} finished; load {os.getloadavg()[0]:.1f}")
        for name, (value, promised, less) in figures.items():
            limit = "" if promised is None else f"{'at most' if less else 'at least'} {promised:g}"
            print(f"{name:36}{value:10.1f}   {limit}{'   MISSED' if name in missed else ''}")
    sys.exit(1 if missed and given.strict else 0)


def record(store: Store, config: JobConfig, jobs: int, state: JobState, cpus: float = 1.0) -> None:
    """Put jobs of so many CPUs into the store, with the attempts and events that they would have."""
    draw, now = random.Random(0), store.clock()
    text = config.model_dump(mode="json")
    ended = state.final
    for first in range(0, jobs, 2000):
        numbers = range(first, min(first + 2000, jobs))
        rows, attempts, events = [], [], []
        for n in numbers:
            id = f"{state[0]}{n:07}"
            created = now - timedelta(seconds=60 * (jobs - n) * (0.1 if ended else 0.01))
            done = created + timedelta(seconds=draw.uniform(30, 600))
            rows.append(
                {
                    "id": id,
                    "name": "quickstart",
                    "owner": f"owner-{draw.randrange(OWNERS):02}",
                    "priority": draw.choice((0, 0, 0, 5, -5)),
                    "config": text,
                    "ranks": 1,
                    "cpus": cpus,
                    "gpus": 0.0,
                    "state": state,
                    "attempt": int(ended),
                    "created": created,
                    "started": created if ended else None,
                    "finished": done if ended else None,
                }
            )
            told = [("submitted", None, created)]
            if ended:
                told += [("claimed", 1, created), ("started", 1, created)]
                told += [("finished", 1, done), ("succeeded", 1, done)]
            events += [
                {"at": at, "job": id, "attempt": attempt, "kind": kind, "actor": "benchmark", "detail": {}}
                for kind, attempt, at in told
            ]
            if ended:
                attempts.append(
                    {
                        "job": id,
                        "number": 1,
                        "state": AttemptState.SUCCEEDED,
                        "opened": created,
                        "started": created,
                        "finished": done,
                        "seen": done,
                        "cpus": cpus,
                        "gpus": 0.0,
                        "seconds": (done - created).total_seconds(),
                    }
                )
        with store.writing() as connection:
            connection.execute(insert(JobRow), rows)
            if attempts:
                connection.execute(insert(AttemptRow), attempts)
            connection.execute(insert(EventRow), events)


def whole_list(settings: Settings) -> tuple[list[float], list[float]]:
    """Milliseconds of whole `textvae-jobs list` processes, by the clock and of CPU time."""
    program = Path(sys.executable).with_name("textvae-jobs")
    environment = os.environ | {"TEXTVAE_HOME": str(settings.home)}
    used: list[float] = []

    def call() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([program, "list"], env=environment, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)

    return many(call, 40), used[1:]


def claimed(settings: Settings, store: Store, config: JobConfig) -> float:
    """Milliseconds from the record of a job to that of its attempt, at the middle of forty."""
    queue, draw, ids = Queue(settings.redis_url), random.Random(1), []
    service = Service(store, queue)
    with dispatching(settings, 1000.0) as process:
        for _ in range(40):
            time.sleep(draw.uniform(0.1, 0.3))
            ids.append(service.submit(config).job.id)
        deadline = time.monotonic() + 30
        while store.count([JobState.QUEUED]) and time.monotonic() < deadline and process.is_running():
            time.sleep(0.05)
    took = []
    for id in ids:
        at = {str(event.kind): event.at for event in store.events(id)}
        took.append((at["claimed"] - at["submitted"]).total_seconds() * 1000)
        store.request_cancel(id, "benchmark")
        store.finish_attempt(id, 1, AttemptState.CANCELLED, by="benchmark")
        queue.release(id, 1)
    queue.close()
    return percentile(took, 50)


def idle(settings: Settings, seconds: float) -> tuple[float, float]:
    """Megabytes, and percent of a core, of a dispatcher that cannot start anything more."""
    with dispatching(settings, CPUS) as process:
        before = process.cpu_times()
        began = time.monotonic()
        most = 0.0
        while time.monotonic() - began < seconds:
            time.sleep(0.5)
            most = max(most, process.memory_info().rss / 1e6)
        after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return most, 100 * used / (time.monotonic() - began)


def one_by_one(settings: Settings, store: Store, queue: Queue, decisions: int) -> tuple[float, float]:
    """Decisions a second when one attempt after another ends on a full cluster, and each one's CPU time."""
    stubs = Stubs(store, CPUS)
    stubs.alive = {job.actor for job in store.running()}
    service = Service(store, queue)
    dispatcher = Dispatcher(service, stubs, stubs.capacity, settings, timings=Timings(reconcile=1e9))
    dispatcher.step(0.0)
    stubs.begin()
    spent = used = 0.0
    for n in range(decisions):
        job = store.running()[0]
        service.finish(job.id, job.attempt, AttemptState.SUCCEEDED, by="benchmark")
        stubs.alive.discard(job.actor)
        began, before = time.perf_counter(), time.process_time()
        dispatcher.step(float(n))
        spent += time.perf_counter() - began
        used += time.process_time() - before
        stubs.begin()
        assert len(store.running()) == CPUS
    return decisions / spent, used * 1000 / decisions


def together(settings: Settings, store: Store, queue: Queue, jobs: int) -> float:
    """Decisions a second when room for many jobs appears at once."""
    running = store.running()
    stubs = Stubs(store, float(jobs + len(running)))
    stubs.alive = {job.actor for job in running}
    dispatcher = Dispatcher(
        Service(store, queue), stubs, stubs.capacity, settings, timings=Timings(reconcile=1e9)
    )
    dispatcher._starter.outlook.refresh()  # what it knows of the queue it would have known before
    began = time.perf_counter()
    started = len(dispatcher.launch())
    return started / (time.perf_counter() - began)


def many(call: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of each call; one before them does not count."""
    call()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    return took


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent stay below."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


@contextmanager
def dispatching(settings: Settings, cpus: float) -> Iterator[psutil.Process]:
    """A dispatcher in a process of its own, from its first whole pass on."""
    settings.ready_file.unlink(missing_ok=True)
    argv = [sys.executable, __file__, "--daemon", json.dumps(settings.to_dict()), str(cpus)]
    with (settings.home / "dispatcher.log").open("wb") as log:
        child = subprocess.Popen(argv, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not settings.ready_file.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((settings.home / "dispatcher.log").read_text())
            time.sleep(0.1)
        time.sleep(2)
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(20)


def daemon(settings: Settings, cpus: float) -> None:
    """The dispatcher's own loop over stubs."""
    store, queue, stop = Store(settings.database_url), Queue(settings.redis_url), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stubs = Stubs(store, cpus)
    stubs.alive = {job.actor for job in store.running()}
    dispatcher = Dispatcher(Service(store, queue), stubs, stubs.capacity, settings)
    threading.Thread(target=begin, args=(stubs, stop), daemon=True).start()

    def ready() -> None:
        settings.ready_file.parent.mkdir(exist_ok=True)
        settings.ready_file.touch()

    dispatcher.loop(stop, ready)


def begin(stubs: Stubs, stop: threading.Event) -> None:
    """Have the attempts record that they are there, while they are."""
    while not stop.wait(0.5):
        stubs.begin()


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis of its own, as the local stack starts it."""
    paths = Paths(folder / "stack")
    paths.make()
    process, url = parts.start_redis(paths, os.environ, parts.free_port())
    try:
        parts.wait_for(
            "redis", lambda: parts.redis_answers(url), process=process, log=paths.log("redis"), timeout=20
        )
        yield url
    finally:
        processes.end([process])


if __name__ == "__main__":
    main()
