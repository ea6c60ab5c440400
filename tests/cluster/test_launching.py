"""Attempts as detached actors, on a real Ray."""

from __future__ import annotations

import importlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from cluster import launching

# What the attempts of these tests do. They tell of themselves through files.
WORK = """
import json, os, time
from pathlib import Path
from cluster import launching

def tell(folder, **what):
    path = Path(folder) / f"{launching.own_name()}.json"
    path.with_suffix(".new").write_text(json.dumps({"pid": os.getpid(), **what}))
    path.with_suffix(".new").rename(path)

def until_told(arguments):
    tell(arguments["folder"], variable=os.environ.get("SPECIAL"))
    while not (Path(arguments["folder"]) / "go").exists():
        time.sleep(0.02)
    tell(arguments["folder"], done=True)

def fail(arguments):
    tell(arguments["folder"])
    raise RuntimeError("as it should")

def with_a_rank(arguments):
    import ray
    class Rank:
        def pid(self):
            return os.getpid()
    rank = ray.remote(Rank).options(num_cpus=1).remote()
    tell(arguments["folder"], rank=ray.get(rank.pid.remote()))
    time.sleep(600)

def with_what_stays(arguments):
    import ray
    class Stays:  # as what Ray Train makes once for all
        def pid(self):
            return os.getpid()
    options = dict(name="stays", namespace="all", lifetime="detached", num_cpus=0)
    stays = ray.remote(Stays).options(**options).remote()
    tell(arguments["folder"], stays=ray.get(stays.pid.remote()))
    time.sleep(600)

def with_a_group(arguments):
    reserve()
    tell(arguments["folder"])
    time.sleep(600)

def with_a_group_later(arguments):
    tell(arguments["folder"])
    while not (Path(arguments["folder"]) / "go").exists():
        time.sleep(0.02)
    reserve()
    time.sleep(600)

def reserve():
    import ray
    from ray.util.placement_group import placement_group
    class Controller:  # as Ray Train has one
        def reserve(self, name):
            ray.get(placement_group([{"CPU": 1}], name=name).ready())
    global controller
    controller = ray.remote(Controller).options(num_cpus=0).remote()
    ray.get(controller.reserve.remote(launching.own_name()))

def with_an_inbox(arguments):
    def answer(message):
        if message.get("fenced"):
            raise PermissionError("a newer attempt works on this")
        return {"stop": message["n"] > 1}
    launching.inbox(answer)
    tell(arguments["folder"])
    time.sleep(600)
"""


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The condition's first true value; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "attempt_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "attempt_work", raising=False)
    return importlib.import_module("attempt_work")


def cmdline(process: psutil.Process) -> list[str]:
    """None of a process that has gone."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def kill_with_controller(attempt: int) -> None:
    """Kill the attempt of that pid, and wait until its controller has gone with it."""
    family = psutil.Process(attempt).parent().children()
    controllers = [each for each in family if "Controller" in " ".join(cmdline(each))]
    assert controllers
    psutil.Process(attempt).kill()
    assert psutil.wait_procs(controllers, timeout=30)[1] == []


def reserved(name: str) -> str:
    """The state of the placement group of that name."""
    from ray.util import placement_group_table

    (group,) = (each for each in placement_group_table().values() if each["name"] == name)
    return str(group["state"])


def told(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return wait_for(lambda: path.exists() and json.loads(path.read_text()))


@pytest.mark.ray
def test_an_attempt_is_started_once_and_leaves_when_it_is_done(local_ray, work, tmp_path):
    environment = {"PYTHONPATH": str(tmp_path), "SPECIAL": "given"}
    arguments = {"folder": str(tmp_path)}
    assert launching.state("job-1") == "dead"
    assert launching.start("job-1", work.until_told, arguments, environment=environment)
    assert not launching.start("job-1", work.until_told, arguments, environment=environment)
    first = told(tmp_path, "job-1")
    assert first["variable"] == "given"
    assert launching.state("job-1") == "alive"
    assert launching.names() == {"job-1"}
    (tmp_path / "go").touch()
    wait_for(lambda: launching.state("job-1") == "dead")
    last = told(tmp_path, "job-1")
    assert last["done"] and last["pid"] == first["pid"]
    wait_for(lambda: not psutil.pid_exists(first["pid"]))
    # The name can be had again, for another process.
    assert launching.start("job-1", work.until_told, arguments, environment=environment)
    wait_for(lambda: launching.state("job-1") == "dead")


@pytest.mark.ray
def test_an_attempt_that_raises_leaves_too(local_ray, work, tmp_path):
    launching.start("job-2", work.fail, {"folder": str(tmp_path)}, environment={"PYTHONPATH": str(tmp_path)})
    wait_for(lambda: launching.state("job-2") == "dead")
    pid = told(tmp_path, "job-2")["pid"]
    wait_for(lambda: not psutil.pid_exists(pid), 5)


@pytest.mark.ray
@pytest.mark.parametrize("frozen", [None, "pid", "rank"])
def test_stop_ends_the_attempt_and_its_ranks(local_ray, work, tmp_path, frozen):
    launching.start(
        "job-3", work.with_a_rank, {"folder": str(tmp_path)}, environment={"PYTHONPATH": str(tmp_path)}
    )
    mine = told(tmp_path, "job-3")
    assert psutil.pid_exists(mine["rank"])
    if frozen:
        psutil.Process(mine[frozen]).suspend()
    launching.stop("job-3")
    assert launching.state("job-3") == "dead"
    # Ray asks a process first, and kills one that has not gone 5 s later.
    gone = 10 if frozen else 5
    wait_for(lambda: not psutil.pid_exists(mine["pid"]) and not psutil.pid_exists(mine["rank"]), gone)
    launching.stop("job-3")  # one that is gone: nothing happens


@pytest.mark.ray
def test_what_an_attempt_has_made_for_all_stays_and_does_not_hold_up_its_end(local_ray, work, tmp_path):
    import ray

    launching.start(
        "job-7", work.with_what_stays, {"folder": str(tmp_path)}, environment={"PYTHONPATH": str(tmp_path)}
    )
    made = told(tmp_path, "job-7")["stays"]
    launching.stop("job-7", timeout=10)
    assert launching.state("job-7") == "dead"
    stays = ray.get_actor("stays", namespace="all")
    assert ray.get(stays.pid.remote()) == made
    ray.kill(stays)


@pytest.mark.ray
def test_what_a_killed_attempt_had_reserved_is_given_back(local_ray, work, tmp_path):
    total = launching.resources()[0]
    wait_for(lambda: launching.resources()[1].get("CPU") == total["CPU"])  # earlier ones have gone
    launching.start(
        "job-6", work.with_a_group, {"folder": str(tmp_path)}, environment={"PYTHONPATH": str(tmp_path)}
    )
    mine = told(tmp_path, "job-6")
    wait_for(lambda: launching.resources()[1].get("CPU") == total["CPU"] - 1)
    assert reserved("job-6") == "CREATED"
    assert launching.leftovers() == {}
    kill_with_controller(mine["pid"])
    wait_for(lambda: list(launching.leftovers().values()) == [True])
    wait_for(lambda: launching.resources()[1].get("CPU") == total["CPU"])
    assert reserved("job-6") == "REMOVED"


@pytest.mark.ray
@pytest.mark.parametrize("dispatcher", ["ended", "frozen"])
def test_what_an_attempt_of_another_dispatcher_had_reserved_is_given_back(
    local_ray, work, tmp_path, dispatcher
):
    """Ray does not notice a group that is made after the end of the driver, nor that a driver is frozen."""
    total = launching.resources()[0]
    wait_for(lambda: launching.resources()[1].get("CPU") == total["CPU"])
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import attempt_work\n"
        "from cluster import launching\n"
        "launching.connect(sys.argv[2], token_path=sys.argv[3])\n"
        "launching.start(sys.argv[4], attempt_work.with_a_group_later, {'folder': sys.argv[1]},"
        " environment={'PYTHONPATH': sys.argv[1]})\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    where = (str(tmp_path), local_ray.address, str(local_ray.token_path), dispatcher)
    with subprocess.Popen(
        [sys.executable, "-c", program, *where], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as driver:
        try:
            assert driver.stdout is not None and driver.stdout.readline() == b"\n"
            mine = told(tmp_path, dispatcher)
            if dispatcher == "frozen":
                driver.send_signal(signal.SIGSTOP)
            else:
                driver.communicate(timeout=60)
            (tmp_path / "go").touch()
            wait_for(lambda: launching.resources()[1].get("CPU") == total["CPU"] - 1)
            kill_with_controller(mine["pid"])
            wait_for(lambda: launching.resources()[1].get("CPU") == total["CPU"])
            assert reserved(dispatcher) == "REMOVED"
        finally:
            driver.kill()


@pytest.mark.ray
def test_ranks_get_the_reply_of_the_inbox_or_its_error(local_ray, work, tmp_path):
    import ray

    launching.start(
        "job-4", work.with_an_inbox, {"folder": str(tmp_path)}, environment={"PYTHONPATH": str(tmp_path)}
    )
    told(tmp_path, "job-4")
    attempt = ray.get_actor("job-4", namespace=launching.NAMESPACE)
    assert ray.get(attempt.deliver.remote({"n": 1})) == {"stop": False}
    assert ray.get(attempt.deliver.remote({"n": 2})) == {"stop": True}
    with pytest.raises(PermissionError, match="a newer attempt works on this"):
        ray.get(attempt.deliver.remote({"fenced": True}))
    launching.stop("job-4")


@pytest.mark.ray
def test_an_attempt_outlives_the_process_that_started_it(local_ray, work, tmp_path):
    driver = (
        "import sys; sys.path.insert(0, sys.argv[1]); import attempt_work\n"
        "from cluster import launching\n"
        "launching.connect(sys.argv[2], token_path=sys.argv[3])\n"
        "launching.start('job-5', attempt_work.until_told, {'folder': sys.argv[1]},"
        " environment={'PYTHONPATH': sys.argv[1]})\n"
    )
    subprocess.run(
        [sys.executable, "-c", driver, str(tmp_path), local_ray.address, str(local_ray.token_path)],
        check=True,
        timeout=60,
    )
    assert launching.state("job-5") == "alive"
    (tmp_path / "go").touch()
    wait_for(lambda: launching.state("job-5") == "dead")
    assert told(tmp_path, "job-5")["done"]


def test_a_cluster_that_is_not_there_is_an_error_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        program = f"from cluster import launching\nlaunching.connect('127.0.0.1:{port}')"
        began = time.monotonic()
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in answer.stderr
    assert time.monotonic() - began < 20


def test_a_call_that_ray_does_not_answer_is_an_error_and_not_asked_again(monkeypatch):
    import threading

    answer = threading.Event()
    calls: list[int] = []

    def ask() -> list[str]:
        calls.append(1)
        answer.wait()
        return ["job-1"]

    monkeypatch.setattr("ray.util.list_named_actors", ask)
    assert launching.state("job-1", timeout=0.05) == "unknown"
    assert launching.state("job-1", timeout=0.05) == "unknown"
    assert len(calls) == 1  # no thread is added for each question
    answer.set()
    assert launching.state("job-1", timeout=5) == "alive"


def group(number: int, **more: Any) -> Any:
    """What Ray's head says of a placement group whose maker, an actor, has died."""
    made = {"creator_actor_id": bytes([number]) * 16, "creator_actor_dead": True} | more
    id = bytes([number]) * 18
    return launching._group_table()(**{"placement_group_id": id, "ray_namespace": launching.NAMESPACE} | made)


def actor(number: int, owner: int, **more: Any) -> Any:
    """What Ray's head says of an actor that is the process of that number."""
    values = {"actor_id": bytes([number]) * 16, "class_name": "Rank", "ray_namespace": launching.NAMESPACE}
    row = launching._tables()["ActorTableData"](**values | more)
    row.address.port, row.owner_address.port = number, owner
    return row


def test_what_attempts_that_are_gone_have_left_is_told_and_given_back(monkeypatch):
    groups = [
        group(1),
        group(2, creator_actor_dead=False),
        group(3, state=launching._group_table().PlacementGroupState.REMOVED),
        group(4, ray_namespace="somebody's"),
        group(5, creator_actor_id=b"\xff" * 16),  # of a driver
        group(6, is_detached=True),
    ]
    actors = [
        actor(1, 99, is_detached=True, name="job-1"),
        actor(2, 1, class_name="Controller"),
        actor(3, 2),
        actor(0, 2),  # it is coming up, and has no process yet
        actor(4, 98),
        actor(5, 4),
        actor(6, 98, ray_namespace="somebody's"),
        actor(7, 98, state=launching._tables()["ActorTableData"].DEAD),
    ]
    given: list[bytes] = []
    monkeypatch.setattr(launching, "_groups", lambda: groups)
    monkeypatch.setattr(launching, "_actor_rows", lambda: actors)
    module = importlib.import_module("ray.util.placement_group")  # a function has that name, too
    monkeypatch.setattr(module, "remove_placement_group", lambda group: given.append(group.id.binary()))
    assert launching.leftovers() == {
        f"placement group {'01' * 18}": True,
        f"actor {'04' * 16} (Rank)": False,
        f"actor {'05' * 16} (Rank)": False,
    }
    launching.give_back()
    assert given == [b"\x01" * 18]


def test_an_attempt_needs_a_function_that_can_be_imported():
    with pytest.raises(ValueError, match="importable"):
        launching.start("job-6", lambda arguments: None, {})
