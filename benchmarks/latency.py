"""From `submit` to the first training step: `python benchmarks/latency.py`.

Brings a stack of its own up, in a home and on ports of its own, and starts the same training on it in turns,
A B B A: through the service, and as a script that calls `TorchTrainer.fit` itself (`bare.py`). Model, reviews
(converted before), ranks and cluster are the same. Each turn begins when nothing of the one before is left.

| time | from | to the end of the first optimizer step |
|---|---|---|
| ours | the call of `Service.submit` | of rank 0, by the attempt's log |
| fit | the call of `TorchTrainer.fit`, in a script that is connected already | of rank 0 |
| script | the start of that script's process | of rank 0 |

What is promised is ours / fit <= 1.5. That is the strict one: whoever has no service starts a script.

Then, with nothing to do, it looks at the dispatcher of that stack, and submits jobs that it cancels once they
are claimed. At last it looks at the dispatcher again, once 100,000 finished jobs are recorded and 10,000 wait
that are too large for the machine. `queues.py` measures the same without Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from queues import record
from speed.on_ray import made_up_sentences
from speed.turns import ratio

from cluster import stack as stacks
from cluster.stack import parts
from jobs.config import JobConfig, load
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import JobState, Store

PROMISED = 1.5
QUEUED = 10_000  # jobs that wait when the dispatcher is looked at for the second time
_PATIENCE = 180.0
_ROOT = Path(__file__).parent.parent
_SENTENCES = 8485  # as many as snippets has
_IDLE = 30.0  # seconds for which the dispatcher is looked at
_REST = 6.0  # seconds between two turns: Ray ends processes that nobody needs after one

# What is said when, as regular expressions, in the order in which a start goes through them.
_SAID = (
    ("work begins", r"attempt \d+ of job .*, process (?P<pid>\d+)"),
    ("fit", r"training \S+ with \d+ rank\(s\)"),
    ("rank begins", r"rank 0: started, one of .*"),
    ("model built", r"rank 0: .* training, .* parameters, .*"),
    ("first step", r"rank 0: the first step is done"),
)
_RAY_TRAIN = (
    ("controller is up", r".*Attempting to start training worker group.*"),
    ("ranks are up", r".*Started training worker group.*"),
)

# What processes call themselves that belong to one training; others stay for the next one.
_TRAINS = re.compile(r"ray::(_Attempt|TrainController|RayTrainWorker|SynchronizationActor)")


@dataclass(frozen=True)
class Bench:
    """The stack that both sides start on."""

    folder: Path
    settings: Settings
    environment: Mapping[str, str]  # of a driver
    sessions: Path  # where Ray writes its logs
    head: int  # the process of Ray's head
    dispatcher: int  # and that of the dispatcher
    config: JobConfig
    ranks: int


def main() -> None:
    """Measure, and print."""
    options = argparse.ArgumentParser(description="from submit to the first training step")
    options.add_argument("--rounds", type=int, default=6, help="turns of each side (default: 6)")
    options.add_argument("--ranks", type=int, default=2, help="(default: 2, as the quickstart has)")
    options.add_argument("--submits", type=int, default=40, help="jobs submitted when idle (default: 40)")
    options.add_argument("--json", action="store_true", help="print what a program can read")
    options.add_argument("--keep-log", type=Path, help="write every stamp of every turn to this file")
    given = options.parse_args()
    if min(given.rounds, given.ranks, given.submits) < 1:
        options.error("--rounds, --ranks and --submits must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the stack goes down then, too
    load_before = os.getloadavg()[0]
    with bench(given.ranks) as ground:
        result = measure(ground, given.rounds, lambda text: print(text, file=sys.stderr, flush=True))
        result["dispatcher"] = idle(ground) | claims(ground, given.submits)
        result["dispatcher, 110,000 jobs"] = full(ground)
    result |= {"ranks": given.ranks, "rounds": given.rounds, "load before": round(load_before, 1)}
    if given.keep_log:
        given.keep_log.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result, indent=1) if given.json else shown(result))


def measure(ground: Bench, rounds: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Both sides' stamps, `rounds` turns each after one that does not count, and what follows from them."""
    sides: dict[str, Callable[[int], dict[str, float]]] = {
        "ours": lambda turn: ours(ground, turn),
        "bare": lambda turn: bare(ground, turn),
    }
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(-1, rounds):
        for name in sides if number % 2 else reversed(list(sides)):
            time.sleep(_REST)
            stamps = sides[name](number)
            say(f"{name:5} {number:3}  " + "  ".join(f"{k} {v:.2f}" for k, v in stamps.items()))
            if number >= 0:
                turns[name].append(stamps)
    return summary(turns)


def summary(turns: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of the stages, and the ratios of the whole."""
    mine = [turn["first step"] for turn in turns["ours"]]
    script = [turn["first step"] for turn in turns["bare"]]
    fit = [turn["first step"] - turn["fit"] for turn in turns["bare"]]
    return {
        "promised": f"ours / fit <= {PROMISED}",
        "seconds": {
            name: {"median": statistics.median(each), "smallest": min(each), "largest": max(each)}
            for name, each in (("ours", mine), ("fit", fit), ("script", script))
        },
        "ratios": {
            "ours / fit": ratio(mine, fit, best=min).as_dict(),
            "ours / script": ratio(mine, script, best=min).as_dict(),
        },
        "stages": {
            name: {stage: statistics.median(turn[stage] for turn in each) for stage in each[0]}
            for name, each in turns.items()
        },
        "turns": dict(turns),
    }


def shown(result: Mapping[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'':20}{'median':>9}{'smallest':>10}{'largest':>9}   seconds to the first step"]
    for name, each in result["seconds"].items():
        lines.append(f"{name:20}{each['median']:9.2f}{each['smallest']:10.2f}{each['largest']:9.2f}")
    for name, each in result["ratios"].items():
        lines.append(
            f"{name:20}{each['medians']:9.2f}   pairs {each['paired']:.2f}, 95 % {each['low']:.2f} to "
            f"{each['high']:.2f}"
        )
    lines.append(f"promised: {result['promised']}")
    lines.append(f"{result['rounds']} rounds, {result['ranks']} rank(s), load before {result['load before']}")
    for which in ("dispatcher", "dispatcher, 110,000 jobs"):
        lines.append(f"{which}, idle: " + ", ".join(f"{k} {v:.3g}" for k, v in result[which].items()))
    for name, stages in result["stages"].items():
        lines.append(f"\n{name + ': stage':24}{'reached':>9}{'took':>9}   seconds, medians")
        before = 0.0
        for stage, at in stages.items():
            lines.append(f"{stage:24}{at:9.2f}{at - before:9.2f}")
            before = at
    return "\n".join(lines)


def ours(ground: Bench, turn: int) -> dict[str, float]:
    """Seconds from the call of `submit` to each stage."""
    store, queue = Store(ground.settings.database_url), Queue(ground.settings.redis_url)
    service = Service(store, queue)
    began = time.time()
    job = service.submit(ground.config, owner="benchmark").job.id
    returned = time.time()
    log = ground.settings.attempt_log(job, 1)
    said = wait_for(lambda: heard(log), lambda found: "first step" in found, f"{job} has not begun to train")
    happened = {str(event.kind): event.at.timestamp() for event in store.events(job)}
    actor = started(int(said.pop("process")))
    stages = {
        "recorded": returned,
        "claimed": happened["claimed"],
        "actor's process": actor,
        **said,
        **ray_train(ground.sessions, began),
    }
    service.cancel(job)
    wait_for(lambda: store.job(job), lambda found: found.state.final, f"{job} does not end")
    store.close()
    queue.close()
    gone(ground)
    return since(began, stages)


def bare(ground: Bench, turn: int) -> dict[str, float]:
    """Seconds from the start of the script to each stage."""
    stamps = ground.folder / f"bare{turn}.jsonl"
    arguments = {
        "stamps": str(stamps),
        "config": ground.config.training_config().model_dump(mode="json"),
        "data": str(ground.settings.data),
        "ranks": ground.ranks,
        "ray_storage": ground.settings.ray_results,
        "name": f"bare{turn}",
    }
    argv = [sys.executable, str(Path(__file__).with_name("bare.py")), json.dumps(arguments)]
    began = time.time()
    with (ground.folder / f"bare{turn}.log").open("wb") as log:
        done = subprocess.run(argv, env=ground.environment, stdout=log, stderr=log, timeout=_PATIENCE)
    if done.returncode != 0:
        raise SystemExit((ground.folder / f"bare{turn}.log").read_text(errors="replace")[-3000:])
    stages: dict[str, float] = {}
    for line in stamps.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        stages.setdefault(said["stage"], said["at"])
    stages |= ray_train(ground.sessions, began)
    gone(ground)
    return since(began, stages)


def idle(ground: Bench) -> dict[str, float]:
    """What the dispatcher takes when nothing happens."""
    time.sleep(_REST)
    process = psutil.Process(ground.dispatcher)
    before = process.cpu_times()
    time.sleep(_IDLE)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return {"MB": process.memory_info().rss / 1e6, "% of a core": 100 * used / _IDLE}


def claims(ground: Bench, submits: int) -> dict[str, float]:
    """Milliseconds from the call of `submit` to the claim, of jobs that find nothing else to do."""
    store, queue = Store(ground.settings.database_url), Queue(ground.settings.redis_url)
    service = Service(store, queue)
    took = []
    for _ in range(submits):
        began = time.time()
        job = service.submit(ground.config, owner="benchmark").job.id
        wait_for(lambda job=job: store.attempts(job), bool, f"{job} is not claimed")
        (claimed,) = (event.at for event in store.events(job) if event.kind == "claimed")
        took.append(1000 * (claimed.timestamp() - began))
        service.cancel(job)
        wait_for(lambda job=job: store.job(job), lambda found: found.state.final, f"{job} does not end")
        gone(ground)
        time.sleep(1)
    store.close()
    queue.close()
    tenths = statistics.quantiles(took, n=20) if len(took) > 1 else took
    return {"ms to claimed, p50": statistics.median(took), "p95": tenths[-1]}


def started(process: int) -> float:
    """When a process began. psutil adds to the time of the boot, which the kernel tells in whole seconds."""
    after_boot = psutil.Process(process).create_time() - psutil.boot_time()
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot)


def full(ground: Bench) -> dict[str, float]:
    """The same as `idle`, with many jobs recorded, of which none can start."""
    store, queue = Store(ground.settings.database_url), Queue(ground.settings.redis_url)
    record(store, ground.config, 100_000, JobState.SUCCEEDED)
    record(store, ground.config, QUEUED, JobState.QUEUED, cpus=1000.0)
    Service(store, queue).reconcile_queue()
    # It has half a million events to take in, at once and not over months. When it has, it tells of the jobs.
    wait_for(lambda: _told_unfit(store), lambda told: told == QUEUED, "not all jobs are known as too large")
    seen = idle(ground)
    assert not store.running()
    store.close()
    queue.close()
    return seen


def _told_unfit(store: Store) -> int:
    time.sleep(2)  # else those who ask would take its core
    return sum(event.kind == "unfit" for event in store.events(newest=True, limit=QUEUED))


def since(began: float, stages: Mapping[str, float]) -> dict[str, float]:
    """The stages in the order in which they were reached, in seconds from `began`."""
    return {stage: at - began for stage, at in sorted(stages.items(), key=lambda pair: pair[1])}


def heard(log: Path) -> dict[str, float]:
    """When the attempt's log says what, and its process, as far as it has got."""
    found: dict[str, float] = {}
    if not log.exists():
        return found
    for line in log.read_text(encoding="utf-8").splitlines():
        moment, _, text = line.split(" ", 2)
        for stage, pattern in _SAID:
            if stage not in found and (match := re.fullmatch(pattern, text)):
                found[stage] = datetime.fromisoformat(moment).timestamp()
                if "pid" in match.groupdict():
                    found["process"] = float(match["pid"])
    return found


def ray_train(sessions: Path, began: float) -> dict[str, float]:
    """When Ray Train's controller, the one that came up after `began`, says what."""
    found: dict[str, float] = {}
    for file in sessions.glob("session_latest/logs/train/ray-train-app-controller*.log"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            record = json.loads(line)
            at = float(record["timestamp_ns"]) / 1e9
            for stage, pattern in _RAY_TRAIN:
                if at > began and re.fullmatch(pattern, record["message"], re.DOTALL):
                    found.setdefault(stage, at)
    return found


def wait_for(ask: Callable[[], Any], enough: Callable[[Any], bool], otherwise: str) -> Any:
    """The answer, once it is enough."""
    deadline = time.monotonic() + _PATIENCE
    while not enough(answer := ask()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{otherwise} after {_PATIENCE:.0f} s; it said: {answer}")
        time.sleep(0.05)
    return answer


def gone(ground: Bench) -> None:
    """Wait until no process of a training is left on the stack's Ray."""
    wait_for(
        lambda: [name for name in names(ground.head) if _TRAINS.match(name)],
        lambda left: not left,
        "ranks do not end",
    )


def names(head: int) -> list[str]:
    """What the processes that come of the head call themselves."""
    found = []
    for process in psutil.Process(head).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return found


@contextlib.contextmanager
def bench(ranks: int) -> Iterator[Bench]:
    """A stack that is up, and a config to start on it."""
    with tempfile.TemporaryDirectory(prefix="tvlat") as name:
        folder = Path(name)
        home = folder / "home"
        made_up_sentences(folder / "reviews.jsonl", _SENTENCES)
        changes = [
            f"data={json.dumps({'source': 'files', 'train': [str(folder / 'reviews.jsonl')]})}",
            f"resources.ranks={ranks}",
        ]
        config = load("quickstart", changes)
        environment = {**os.environ, "TEXTVAE_HOME": str(home), "PYTHONPATH": str(_ROOT)}
        for variable in ("TEXTVAE_DATABASE_URL", "TEXTVAE_REDIS_URL", "TEXTVAE_STORAGE", "RAY_ADDRESS"):
            environment[variable] = ""
        ports = [parts.free_port(), parts.free_port()]
        up = stacks.up(
            home,
            dispatcher=[sys.executable, "-m", "jobs.dispatcher"],
            environment=environment,
            cpus=2,
            dashboard_port=ports[0],
            serve_port=ports[1],
        )
        try:
            driver = {**os.environ, **parts.driver_environment(home, up), "RAY_USAGE_STATS_ENABLED": "0"}
            settings = Settings.from_environment({"TEXTVAE_HOME": str(home)}).connected()
            head, dispatcher = up.process("ray"), up.process("dispatcher")
            assert up.temporary is not None and head is not None and dispatcher is not None
            sessions = parts.ray_sessions(up.temporary)
            yield Bench(folder, settings, driver, sessions, head.pid, dispatcher.pid, config, ranks)
        finally:
            stacks.down(home)


if __name__ == "__main__":
    main()
