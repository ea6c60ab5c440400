"""The dispatcher's real parts: the attempts and resources of a Ray cluster, and Serve's REST interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster import launching, serving
from jobs.dispatcher import Capacity
from jobs.keeper import Keeper
from jobs.scheduling import Node
from jobs.settings import Settings
from jobs.store import Store


class RayLauncher:
    """Attempts on the Ray cluster of the settings; it connects when it is first asked."""

    def __init__(self, settings: Settings):
        self._settings = settings
        # An SQLite file is on this node's disk, so whatever writes to it must be here too.
        self._here = settings.database_url.startswith("sqlite")

    def start(
        self, name: str, function: Callable[[dict[str, Any]], object], arguments: Mapping[str, Any]
    ) -> object:
        """See `cluster.launching.start`."""
        self.connect()
        return launching.start(name, function, arguments, here=self._here)

    def stop(self, name: str) -> None:
        """See `cluster.launching.stop`."""
        self.connect()
        launching.stop(name)

    def names(self) -> set[str]:
        """See `cluster.launching.names`."""
        self.connect()
        return launching.names()

    def leftovers(self) -> dict[str, bool]:
        """See `cluster.launching.leftovers`."""
        self.connect()
        return launching.leftovers()

    def give_back(self) -> None:
        """See `cluster.launching.give_back`."""
        self.connect()
        launching.give_back()

    def capacity(self) -> Capacity:
        """What the cluster has and what is free; an auto-scaled one counts as what it can grow to."""
        self.connect()
        nodes = launching.nodes()
        machines = tuple(
            Node(left.get("CPU", 0.0), left.get("GPU", 0.0), has.get("CPU", 0.0), has.get("GPU", 0.0), name)
            for name, (has, left) in nodes.items()
        )
        cpus, gpus = (
            sum(node.total_cpus or 0 for node in machines),
            sum(node.total_gpus or 0 for node in machines),
        )
        all_cpus = max(cpus, self._settings.max_cpus or 0.0)
        all_gpus = max(gpus, self._settings.max_gpus or 0.0)
        grows = all_cpus > cpus or all_gpus > gpus  # then a rank may find room on a machine that is to come
        several = len(machines) > 1 and not grows
        return Capacity(
            all_cpus,
            all_gpus,
            sum(node.cpus for node in machines) + all_cpus - cpus,
            sum(node.gpus for node in machines) + all_gpus - gpus,
            machines if several else (),
            launching.placements() if several else {},
        )

    def connect(self) -> None:
        """Be a driver of the cluster. Raises ClusterError (a RuntimeError) if it does not answer."""
        if self._settings.ray_address is None:
            raise launching.ClusterError("there is no Ray cluster: run `textvae-jobs up`, or set RAY_ADDRESS")
        launching.connect(self._settings.ray_address, token_path=self._settings.token_path)


class RayServe:
    """The Serve application of the settings' cluster."""

    def __init__(self, settings: Settings, dashboard_url: str, serve_url: str):
        self._settings = settings
        self._dashboard_url = dashboard_url
        self._serve_url = serve_url

    def apply(self, desired: Mapping[str, Mapping[str, Any]]) -> None:
        """Serve exactly these versions; returns once they are. Raises ServingError."""
        token = self._token()
        serving.apply(
            desired,
            dashboard_url=self._dashboard_url,
            token=token,
            http_port=urlsplit(self._serve_url).port or 8000,
        )
        serving.wait(desired, serve_url=self._serve_url, dashboard_url=self._dashboard_url, token=token)

    def current(self) -> Mapping[str, Mapping[str, Any]]:
        """What is served now; nothing if Serve was never told to serve. Raises ServingError."""
        if not serving.exists(dashboard_url=self._dashboard_url, token=self._token()):
            return {}
        return serving.current(serve_url=self._serve_url)

    def _token(self) -> str | None:
        path = self._settings.token_path
        return path.read_text(encoding="utf-8").strip() if path is not None else None


def server(settings: Settings) -> RayServe | None:
    """What serves the models; none if the settings know of no Serve."""
    if settings.dashboard_url is None or settings.serve_url is None:
        return None
    return RayServe(settings, settings.dashboard_url, settings.serve_url)


def keeper(settings: Settings, store: Store) -> Keeper | None:
    """Keeps Serve at the promoted versions; none if the settings know of no Serve."""
    serving = server(settings)
    if serving is None:
        return None

    def location(name: str) -> str:
        from textvae.artifacts import Artifacts  # imports torch: only once there is something to serve

        return Artifacts(settings.storage).location(name)

    return Keeper(store, serving, location)
