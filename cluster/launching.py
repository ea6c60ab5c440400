"""Attempts as detached, named Ray actors: start one, ask whether it is alive, stop it.

An attempt must outlive the dispatcher that started it, so it is a detached actor that takes no CPU and
works on a thread of its own; its name exists for as long as it does. What it achieved is not asked
of Ray: the function that it runs records that elsewhere. Of Ray Jobs, detached actors and drivers inside
the dispatcher only this one starts in a blink, survives its submitter and can be asked about without
guessing.

Every call to Ray has a time-out here, and *unreachable is not dead*: when Ray does not answer, the state of
an attempt is unknown.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "textvae"

Handler = Callable[[dict[str, Any]], dict[str, Any]]
State = Literal["alive", "dead", "unknown"]
Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class ClusterError(RuntimeError):
    """Ray cannot do what was asked, or does not answer; the message says which and for how long."""


def connect(address: str, *, token_path: str | Path | None = None, timeout: float = 30.0) -> None:
    """Make this process a driver of the Ray cluster at `address` (host:port); nothing happens if it is one.

    Ray reads its token only from the environment, so this is the one place that puts it there. Ray's output
    of other processes is not copied here. Raises ClusterError within about `timeout` seconds if Ray does
    not answer.
    """
    if ray.is_initialized():
        return
    if token_path is not None:
        _use_token(token_path)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address != "auto":
        # ray.init takes a minute to find out that nobody listens.
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=min(timeout, 5.0)).close()
        except (OSError, ValueError) as error:
            raise ClusterError(f"no Ray cluster answers at {address}: {error}") from error
    _within(
        timeout,
        f"connecting to Ray at {address}",
        lambda: ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        ),
    )


def _use_token(path: str | Path) -> None:
    wanted = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    if wanted.items() <= os.environ.items():
        return
    os.environ.update(wanted)
    # Ray read the variables when it was imported; without this it would send no token.
    import ray._raylet as raylet

    raylet.Config.initialize("")  # type: ignore[attr-defined]
    raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def disconnect() -> None:
    """End this process's connection; attempts go on."""
    if ray.is_initialized():
        ray.shutdown()


def start(
    name: str,
    function: Callable[[dict[str, Any]], object],
    arguments: Mapping[str, Any],
    *,
    here: bool = True,
    environment: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> bool:
    """Start `function(arguments)` in a detached actor called `name`; False if that name runs already.

    `function` must be importable by its module and name, `arguments` plain values. It runs on this driver's
    node unless `here` is False (then on any), with `environment` added to its variables. Returns once the
    actor answers. Raises ClusterError if it does not within `timeout` seconds; then it may still come up,
    and starting it again finds it.
    """
    entry = f"{function.__module__}:{function.__qualname__}"
    if "<" in entry or function.__module__ == "__main__":
        raise ValueError(f"{entry}: an attempt's function must be importable by its module and name")
    token = os.urandom(8).hex()  # tells our own actor from one that had the name before

    def launch() -> bool:
        options: dict[str, Any] = {}
        if here:
            node = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        if environment:
            options["runtime_env"] = {"env_vars": dict(environment)}
        # Made an actor here: a class decorated by ray.remote would travel by value, with copies of this
        # module's variables, and the inbox that it reads would not be the one that the attempt registers.
        factory: Any = ray.remote(_Attempt)
        actor = factory.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=0,
            max_concurrency=16,  # messages of ranks and questions of others are answered side by side
            **options,
        ).remote(name, entry, dict(arguments), token)
        try:
            return bool(ray.get(actor.token.remote()) == token)
        except ray.exceptions.ActorDiedError as error:
            if error.actor_init_failed:
                raise
            return True  # it was done before it could answer

    return _within(timeout, f"starting {name}", launch)


def state(name: str, *, timeout: float = 5.0) -> State:
    """Whether the attempt called `name` is there; "unknown" when Ray does not answer in time."""
    try:
        return "alive" if name in names(timeout=timeout) else "dead"
    except ClusterError:
        return "unknown"


def names(*, timeout: float = 5.0) -> set[str]:
    """The names of all attempts that are there. Raises ClusterError when Ray does not answer in time."""
    return set(_within(timeout, "listing attempts", ray.util.list_named_actors))


def resources(*, timeout: float = 5.0) -> tuple[dict[str, float], dict[str, float]]:
    """What the whole cluster has, and what of it is free, by Ray's names (CPU, GPU). Or ClusterError."""
    every = nodes(timeout=timeout).values()
    return _sum(has for has, _ in every), _sum(left for _, left in every)


def nodes(*, timeout: float = 5.0) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """What each node has, and what of it is free, by Ray's names. Raises ClusterError if Ray is silent.

    What dead attempts still hold is given back first, and free a moment later.
    """

    def ask() -> dict[str, tuple[dict[str, float], dict[str, float]]]:
        from ray._private.state import available_resources_per_node, total_resources_per_node

        _give_back()
        total, free = total_resources_per_node(), available_resources_per_node()
        return {node: (dict(has), dict(free.get(node, {}))) for node, has in total.items()}

    return _within(timeout, "asking for the resources of nodes", ask)


def _sum(every: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for each in every:
        for name, amount in each.items():
            total[name] += amount
    return dict(total)


def placements(*, timeout: float = 5.0) -> dict[str, tuple[tuple[str, int], ...]]:
    """Of each attempt whose ranks have their places: the nodes, and how many ranks are on each.

    Raises ClusterError if Ray is silent. An attempt has one placement group at a time, a bundle to a rank,
    made by an actor that it owns.
    """

    def ask() -> dict[str, tuple[tuple[str, int], ...]]:
        created = _group_table().PlacementGroupState.CREATED
        groups = [each for each in _groups() if each.state == created and each.ray_namespace == NAMESPACE]
        if not groups:
            return {}
        actors = {actor["ActorID"]: actor for actor in _actors("ALIVE")}
        in_process = {_process(actor["Address"]): actor for actor in actors.values()}
        placed = {}
        for group in groups:
            actor = actors.get(group.creator_actor_id.hex())
            while actor is not None and not actor["IsDetached"]:
                actor = in_process.get(_process(actor["OwnerAddress"]))
            if actor is not None and actor["Name"]:
                on = Counter(bundle.node_id.hex() for bundle in group.bundles)
                placed[actor["Name"]] = tuple(sorted(on.items()))
        return placed

    return _within(timeout, "asking for the places of ranks", ask)


def leftovers(*, timeout: float = 5.0) -> dict[str, bool]:
    """What attempts have made and not survived, in words, each with whether `give_back` removes it.

    Placement groups it does. Ray itself ends controllers and ranks with their attempt; one that it leaves
    nobody else can end. Raises ClusterError if Ray is silent.
    """

    def ask() -> dict[str, bool]:
        groups = {f"placement group {each.placement_group_id.hex()}": True for each in _orphaned_groups()}
        actors = {f"actor {each.actor_id.hex()} ({each.class_name})": False for each in _orphaned_actors()}
        return groups | actors

    return _within(timeout, "asking for what attempts have left", ask)


def give_back(*, timeout: float = 5.0) -> None:
    """Remove the placement groups that are left over; `nodes` does so, too. Or ClusterError."""
    _within(timeout, "giving back what attempts have left", _give_back)


def stop(name: str, *, timeout: float = 30.0) -> None:
    """Kill the attempt called `name` and wait until it and its ranks are gone; nothing happens if it is.

    Raises ClusterError if that cannot be confirmed in time; it may or may not live then.
    """
    deadline = time.monotonic() + timeout

    def kill() -> set[str]:
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return set()
        family = _family(actor._actor_id.hex())
        ray.kill(actor, no_restart=True)
        return family

    family = _within(timeout, f"stopping {name}", kill)
    while True:
        left = max(deadline - time.monotonic(), 0.1)
        if name not in names(timeout=left) and not _within(
            left, f"stopping {name}", lambda: family & _alive()
        ):
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"{name} was told to die {timeout:.0f} s ago and is not gone")
        time.sleep(0.05)


def inbox(handler: Handler | None) -> None:
    """Inside an attempt: `handler` answers the messages of its ranks, one at a time; None takes it away."""
    global _handler
    with _inbox:
        _handler = handler


def own_name() -> str:
    """Inside an attempt: its name."""
    if _own_name is None:
        raise ClusterError("this process is not an attempt")
    return _own_name


_handler: Handler | None = None
_inbox = threading.Lock()
_own_name: str | None = None
_stuck: dict[str, threading.Thread] = {}  # calls that Ray never answered


class _Attempt:
    """The actor: starts itself, answers while it works, and takes itself away at the end."""

    def __init__(self, name: str, entry: str, arguments: dict[str, Any], token: str):
        global _own_name
        _own_name = name
        self._token = token
        threading.Thread(target=self._work, args=(entry, arguments), name=name, daemon=True).start()

    def token(self) -> str:
        """Who started this actor."""
        return self._token

    def deliver(self, message: dict[str, Any]) -> dict[str, Any]:
        """Hand a rank's message to the inbox; its reply, or what it raised, goes back to the rank."""
        with _inbox:
            if _handler is None:
                raise ClusterError("this attempt takes no messages now")
            return _handler(message)

    def _work(self, entry: str, arguments: dict[str, Any]) -> None:
        module, _, qualname = entry.partition(":")
        try:
            target: Any = importlib.import_module(module)
            for part in qualname.split("."):
                target = getattr(target, part)
            target(arguments)
        except BaseException:
            # The function records its own failures; this one is for whoever reads Ray's logs.
            logger.exception("%s: %s ended with an error", _own_name, entry)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            _leave()


def _leave() -> None:
    """End this actor's process, and with it the name and every rank that it owns."""
    try:
        # Asked for through Ray the end counts as intended, and nobody logs a crash.
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
        time.sleep(10)
    finally:
        os._exit(0)  # Ray did not answer


def _alive() -> set[str]:
    """Hex ids of all actors that are not dead."""
    return {actor["ActorID"] for actor in _actors()}


def _actors(state: str | None = None) -> list[dict[str, Any]]:
    """All that are not dead, or those in that state: Ray remembers many dead ones."""
    # Ray's state API would need the dashboard to be up; this asks the head itself.
    from ray._private.state import actors

    found = actors(actor_state_name=state).values()
    return [actor for actor in found if actor["State"] != "DEAD"]


def _give_back() -> None:
    """Remove the placement groups that attempts, of whatever dispatcher, have made and not survived.

    Ray does so when their driver ends, too; but a dispatcher does not end, and of a group that is made after
    that Ray does not notice. What Ray Train has for it is not used: see `cluster.trainer`.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group in _orphaned_groups():
        remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def _orphaned_groups() -> list[Any]:
    from ray._raylet import ActorID

    removed = _group_table().PlacementGroupState.REMOVED

    def orphaned(group: Any) -> bool:
        by_actor = not ActorID(group.creator_actor_id).is_nil()
        return bool(by_actor and group.creator_actor_dead and not group.is_detached)

    return [
        group
        for group in _groups()
        if orphaned(group) and group.state != removed and group.ray_namespace == NAMESPACE
    ]


def _orphaned_actors() -> list[Any]:
    """Actors that attempts have made, directly or through others, and that are there without them."""
    dead = _tables()["ActorTableData"].DEAD
    living = [actor for actor in _actor_rows() if actor.state != dead]
    in_process = {
        (actor.address.node_id, actor.address.port): actor for actor in living if actor.address.port
    }

    def orphaned(actor: Any) -> bool:
        while actor is not None and not actor.is_detached:
            actor = in_process.get((actor.owner_address.node_id, actor.owner_address.port))
        return actor is None

    return [actor for actor in living if actor.ray_namespace == NAMESPACE and orphaned(actor)]


def _tables() -> Mapping[str, Any]:
    """The messages that Ray's head answers with: made at run time, no type checker knows them."""
    from ray.core.generated import gcs_pb2

    return gcs_pb2.__dict__


def _group_table() -> Any:
    return _tables()["PlacementGroupTableData"]


def _actor_rows() -> list[Any]:
    """What Ray's head knows of actors, the dead ones that it remembers included."""
    from ray._private.state import state

    table = _tables()["ActorTableData"]
    accessor = state._connect_and_get_accessor()
    return [table.FromString(raw) for raw in accessor.get_actor_table(None, None)]


def _groups() -> list[Any]:
    """What Ray's head knows of placement groups, those that are removed included."""
    from ray._private.state import state

    table = _group_table()
    return [table.FromString(raw) for raw in state._connect_and_get_accessor().get_placement_group_table()]


def _family(actor: str) -> set[str]:
    """The actor of this hex id and all that it owns, directly or through others, and takes along: its ranks.

    What is detached stays: the first attempt in a cluster makes actors that Ray Train has for all.
    """
    everyone = [each for each in _actors() if each["ActorID"] == actor or not each["IsDetached"]]
    process = {a["ActorID"]: _process(a["Address"]) for a in everyone if a["Address"]["Port"]}
    family = {actor}
    while True:
        processes = {process[member] for member in family if member in process}
        owners = {a["ActorID"]: _process(a["OwnerAddress"]) for a in everyone}
        more = {each for each, owner in owners.items() if owner in processes} - family
        if not more:
            return family
        family |= more


def _process(address: Mapping[str, Any]) -> tuple[str, int]:
    return address["NodeID"], address["Port"]


def _within(seconds: float, what: str, call: Callable[[], Value]) -> Value:
    """The call's value; ClusterError if Ray raises, or has not answered within `seconds`.

    Ray's calls wait for as long as the head is away and few take a time-out. They run on a thread that is
    left behind if it is stuck; until it comes back, the same question is not asked again.
    """
    if (stuck := _stuck.get(what)) is not None:
        stuck.join(seconds)
        if stuck.is_alive():
            raise ClusterError(f"{what}: Ray has not answered for {seconds:.0f} s")
        _stuck.pop(what, None)
    answer: list[Value] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(call())
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=work, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        error = failure[0]
        if isinstance(error, RayError | RuntimeError | ConnectionError | OSError):
            raise ClusterError(f"{what}: {_first_line(error)}") from error
        raise error
    if not answer:
        _stuck[what] = thread
        raise ClusterError(f"{what}: Ray has not answered for {seconds:.0f} s")
    return answer[0]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
