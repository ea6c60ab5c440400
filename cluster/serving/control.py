"""Telling Ray Serve what to serve, and asking what it serves, through REST alone (no import of ray)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

APPLICATION = "textvae"
DEPLOYMENT = "TextVAE"
IMPORT_PATH = "cluster.serving.app:application"

# Seconds. A replica that has not answered three times in a row is frozen, and is replaced.
HEALTH_CHECK = {"health_check_period_s": 5, "health_check_timeout_s": 10}

_LOOPBACK = "127.0.0.1"


class ServingError(RuntimeError):
    """Serve does not answer, refuses what it is told, or cannot load a version; the message says why."""


@dataclass(frozen=True)
class Serve:
    """A running Serve: where its proxy listens, and whether the application was ever applied to it."""

    host: str
    port: int
    applied: bool

    def refused(self) -> str | None:
        """Why the application must not be applied to it; None if it may."""
        if self.host in (_LOOPBACK, "localhost"):
            return None
        return (
            f"Serve runs on this cluster already and listens on {self.host}, where whoever reaches the "
            f"machine could ask the models: start it with host {_LOOPBACK}, or end it (`serve shutdown`)"
        )


def apply(
    desired: Mapping[str, Mapping[str, Any]],
    *,
    dashboard_url: str,
    token: str | None = None,
    http_port: int = 8000,
    replicas: int = 1,
    cpus: float = 0,
    default: str | None = None,
    timeout: float = 30,
) -> None:
    """Serve exactly these versions: {model name: {"version": int, "location": folder or URI, "digest": str}}.

    Returns as soon as Serve accepted it; `wait` waits until it is done. The replicas stay the same
    processes and answer every request meanwhile, as long as `replicas` and `cpus` stay what they were.
    `cpus` is what one replica takes away from training; 0 lets both share the CPUs. `default` is the model
    that answers when a request names none and several are served. The HTTP port counts only where Serve does
    not run yet. What others have deployed to it stays as it is.

    Raises ServingError, also where Serve runs and listens on more than loopback.
    """
    for name, version in desired.items():
        missing = [key for key in ("version", "location", "digest") if key not in version]
        if missing:
            raise ServingError(f"model {name}: the version to serve lacks {', '.join(missing)}")
    models = {
        name: {key: version[key] for key in ("version", "location", "digest")}
        for name, version in sorted(desired.items())
    }
    told = _told(dashboard_url, token, timeout)
    serve = _serve(told)
    if serve is not None and (why := serve.refused()):
        raise ServingError(why)
    config = {
        # One proxy, on the head: it is bound to loopback, where one on another node would help nobody.
        "proxy_location": told.get("proxy_location") or "HeadOnly",
        "http_options": {"host": _LOOPBACK, "port": serve.port if serve else http_port},
        "applications": [
            *_of_others(told),
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "deployments": [
                    {
                        "name": DEPLOYMENT,
                        "num_replicas": replicas,
                        "ray_actor_options": {"num_cpus": cpus},
                        "user_config": {"models": models, "default": default},
                        **HEALTH_CHECK,
                    }
                ],
            },
        ],
    }
    _request("PUT", dashboard_url, token, timeout, json=config)


def exists(*, dashboard_url: str, token: str | None = None, timeout: float = 10) -> bool:
    """Whether the application was ever applied to this cluster and not deleted since."""
    return APPLICATION in _told(dashboard_url, token, timeout)["applications"]


def running(*, dashboard_url: str, token: str | None = None, timeout: float = 10) -> Serve | None:
    """The Serve that runs on this cluster, whoever started it; None if there is none. Raises ServingError."""
    return _serve(_told(dashboard_url, token, timeout))


def current(*, serve_url: str, timeout: float = 5) -> dict[str, dict[str, Any]]:
    """What is served now: {model name: {"version": int, "digest": str, ...}}. Raises ServingError."""
    return {str(model["name"]): model for model in _models(serve_url, timeout)["models"]}


def wait(
    desired: Mapping[str, Mapping[str, Any]],
    *,
    serve_url: str,
    dashboard_url: str,
    token: str | None = None,
    timeout: float = 120,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return once every replica serves exactly these versions.

    Raises ServingError when a version cannot be loaded, with the reason, or when it takes too long.
    """
    deadline = clock() + timeout
    wanted = {name: (version["version"], version["digest"]) for name, version in desired.items()}
    reason = "nothing was asked for yet"
    while True:
        try:
            reason = _not_yet(wanted, serve_url, dashboard_url, token)
        except _Refused as error:
            raise ServingError(str(error)) from error
        except ServingError as error:
            reason = str(error)
        if not reason:
            return
        if clock() >= deadline:
            raise ServingError(f"not served after {timeout:.0f} s: {reason}")
        time.sleep(0.1)


class _Refused(ServingError):
    """A replica has tried to load a version and could not."""


def _not_yet(
    wanted: dict[str, tuple[Any, Any]], serve_url: str, dashboard_url: str, token: str | None
) -> str:
    answer = _models(serve_url, 5)
    served = {model["name"]: (model["version"], model["digest"]) for model in answer["models"]}
    for problem in answer["problems"]:
        if wanted.get(problem["name"]) == (problem["version"], problem["digest"]):
            raise _Refused(f"model {problem['name']} version {problem['version']}: {problem['reason']}")
    if served != wanted:
        return f"still serves {_named(served)} instead of {_named(wanted)}"
    # One replica told us; Serve tells whether all of them have taken the change.
    application = _told(dashboard_url, token, 10)["applications"].get(APPLICATION, {})
    if application.get("status") != "RUNNING":
        return f"the application is {application.get('status', 'gone')}: {application.get('message', '')}"
    return ""


def _told(dashboard_url: str, token: str | None, timeout: float) -> dict[str, Any]:
    """What Serve says of itself and of all its applications."""
    told: dict[str, Any] = _request("GET", dashboard_url, token, timeout).json()
    return told


def _serve(told: Mapping[str, Any]) -> Serve | None:
    options = told.get("http_options")
    if options is None:
        return None
    host, port = options.get("host", _LOOPBACK), int(options.get("port", 8000))
    return Serve(host, port, APPLICATION in told["applications"])


def _of_others(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configs of others' applications. Serve ends each that a request to deploy does not name."""
    found = []
    for name, application in sorted(told["applications"].items()):
        if name == APPLICATION or application.get("source") == "imperative":
            continue
        config = application.get("deployed_app_config")
        if config is not None:
            found.append(config)
        elif application.get("status") != "DELETING":
            raise ServingError(
                f"the application {name}, which is not ours, is just being deployed: try again"
            )
    return found


def _named(versions: Mapping[str, tuple[Any, Any]]) -> str:
    return (
        ", ".join(f"{name} version {version}" for name, (version, _) in sorted(versions.items())) or "nothing"
    )


def _models(serve_url: str, timeout: float) -> Any:
    try:
        answer = httpx.get(f"{serve_url.rstrip('/')}/v1/models", timeout=timeout, trust_env=False)
        answer.raise_for_status()
        return answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServingError(f"no answer from the served application at {serve_url}: {error}") from error


def _request(
    method: str, dashboard_url: str, token: str | None, timeout: float, **body: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{dashboard_url.rstrip('/')}/api/serve/applications/"
    try:
        answer = httpx.request(
            method, url, headers=headers, timeout=timeout, trust_env=_remote(dashboard_url), **body
        )
    except httpx.HTTPError as error:
        raise ServingError(f"no answer from Ray's dashboard at {dashboard_url}: {error}") from error
    if answer.status_code in (401, 403):
        raise ServingError(f"Ray's dashboard at {dashboard_url} refuses the token")
    if answer.status_code != 200:
        raise ServingError(
            f"Ray's dashboard at {dashboard_url} answers {answer.status_code}: {answer.text[:500]}"
        )
    return answer


def _remote(url: str) -> bool:
    """Whether a proxy of the environment may stand between us and this host."""
    return urlsplit(url).hostname not in (_LOOPBACK, "localhost", "::1")
