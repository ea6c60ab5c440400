"""Where the service keeps its things and finds its parts, from the environment and the local stack's file.

| variable | default | meaning |
|---|---|---|
| TEXTVAE_HOME | ~/.textvae | the home folder: database, data, logs, the local stack's files |
| TEXTVAE_DATABASE_URL | sqlite:///<home>/textvae.db | the database, as an SQLAlchemy URL |
| TEXTVAE_REDIS_URL | the local stack's | Redis, with its password |
| TEXTVAE_STORAGE | <home>/storage | the artifact store: a folder or an s3:// or gs:// URI |
| RAY_ADDRESS | the local stack's | the Ray cluster |
| TEXTVAE_MAX_CPUS, TEXTVAE_MAX_GPUS | what Ray has now | what an auto-scaled cluster can grow to |
| TEXTVAE_SCHEDULING | <home>/scheduling.yaml | the scheduler's rules: shares, quotas, preemption |
| TEXTVAE_START_TIMEOUT | 120 | seconds in which the ranks of an attempt must have started |
| TEXTVAE_LOG_FORMAT | text | how the dispatcher logs: text, or json, one object a line |

Nothing else in the service reads the environment: whoever needs a setting is handed a Settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from textvae.urls import masked

Value = TypeVar("Value")

_STACK_KEYS = ("redis_url", "ray_address", "dashboard_url", "serve_url", "token_path")


class SettingsError(ValueError):
    """A setting holds something that cannot be used; the message names the variable or the file."""


@dataclass(frozen=True)
class Setting:
    """One line of `doctor`: a setting, its value with passwords masked, and where it comes from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Settings:
    """Everything that differs from one installation to the next."""

    home: Path
    database_url: str
    storage: str
    redis_url: str | None = None
    ray_address: str | None = None
    dashboard_url: str | None = None
    serve_url: str | None = None
    token_path: Path | None = None
    max_cpus: float | None = None
    max_gpus: float | None = None
    start_timeout: float = 120.0
    stall_timeout: float = 3600.0
    log_format: str = "text"
    scheduling: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings that `environment` (usually os.environ) asks for.

        A variable set to nothing counts as not set. Raises SettingsError.
        """
        given = {name: text for name, text in environment.items() if text.strip()}
        origins: dict[str, str] = {}

        def take(name: str, variable: str, otherwise: Value, read: Callable[[str], Value]) -> Value:
            origins[name] = variable if variable in given else "default"
            return read(given[variable]) if variable in given else otherwise

        home = take("home", "TEXTVAE_HOME", Path("~/.textvae"), Path)
        home = Path(_expand(str(home), given)).absolute()

        def folder_or_uri(text: str) -> str:
            return text if "://" in text else str(Path(_expand(text, given)).absolute())

        def path(text: str) -> Path:
            return Path(_expand(text, given)).absolute()

        def number(variable: str) -> Callable[[str], float]:
            return lambda text: _number(variable, text)

        return cls(
            home=home,
            database_url=take("database_url", "TEXTVAE_DATABASE_URL", sqlite_url(home / "textvae.db"), str),
            storage=take("storage", "TEXTVAE_STORAGE", str(home / "storage"), folder_or_uri),
            redis_url=take("redis_url", "TEXTVAE_REDIS_URL", None, _redis_url),
            ray_address=take("ray_address", "RAY_ADDRESS", None, str),
            token_path=take("token_path", "RAY_AUTH_TOKEN_PATH", None, Path),
            max_cpus=take("max_cpus", "TEXTVAE_MAX_CPUS", None, number("TEXTVAE_MAX_CPUS")),
            max_gpus=take("max_gpus", "TEXTVAE_MAX_GPUS", None, number("TEXTVAE_MAX_GPUS")),
            start_timeout=take(
                "start_timeout", "TEXTVAE_START_TIMEOUT", 120.0, number("TEXTVAE_START_TIMEOUT")
            ),
            stall_timeout=take(
                "stall_timeout", "TEXTVAE_STALL_TIMEOUT", 3600.0, number("TEXTVAE_STALL_TIMEOUT")
            ),
            log_format=take("log_format", "TEXTVAE_LOG_FORMAT", "text", _log_format),
            scheduling=take("scheduling", "TEXTVAE_SCHEDULING", home / "scheduling.yaml", path),
            origins=origins,
        )

    @property
    def scheduling_file(self) -> Path:
        """The scheduler's rules; need not exist."""
        return self.scheduling or self.home / "scheduling.yaml"

    @property
    def data(self) -> Path:
        """Prepared reviews, one folder a source."""
        return self.home / "data"

    @property
    def logs(self) -> Path:
        """Logs: one folder a job, and one for the stack's parts."""
        return self.home / "logs"

    @property
    def run_folder(self) -> Path:
        """Files of the running local stack."""
        return self.home / "run"

    @property
    def stack_file(self) -> Path:
        """What the local stack writes about itself: addresses and processes."""
        return self.run_folder / "stack.json"

    @property
    def ready_file(self) -> Path:
        """Where the dispatcher writes its process id once it works; `up` waits for that."""
        return self.run_folder / "dispatcher.ready"

    @property
    def ray_results(self) -> str:
        """Where Ray Train keeps its own notes: beside the artifacts if all nodes can reach those."""
        return f"{self.storage.rstrip('/')}/ray" if "://" in self.storage else str(self.home / "ray")

    @property
    def cache(self) -> Path:
        """Local copies of artifacts that live elsewhere."""
        return self.home / "cache"

    def attempt_log(self, job: str, number: int) -> Path:
        """The log file of one attempt."""
        return self.logs / job / f"attempt-{number}.log"

    def create_home(self) -> None:
        """Make the home folder if it is missing, closed to other users: it holds passwords and tokens."""
        if not self.home.is_dir():
            try:
                self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(
                    f"TEXTVAE_HOME: {self.home} cannot be made: {error.strerror or error}"
                ) from error
            self.home.chmod(0o700)

    def connected(self) -> Settings:
        """These settings with the running local stack's addresses where the environment names none."""
        try:
            stack = dict(json.loads(self.stack_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return self
        except (OSError, TypeError, ValueError) as error:
            raise SettingsError(
                f"{self.stack_file} cannot be read ({error}): it is no record of a running service; "
                "remove it, then `textvae-jobs up`"
            ) from error
        changes: dict[str, Any] = {}
        origins = dict(self.origins)
        for name in _STACK_KEYS:
            given = getattr(self, name) is not None
            if name == "token_path":
                # A token belongs to one cluster: the environment's is for the RAY_ADDRESS beside it.
                given = given and self.ray_address is not None
            if not given and stack.get(name):
                changes[name] = Path(stack[name]) if name == "token_path" else stack[name]
                origins[name] = str(self.stack_file)
        return replace(self, **changes, origins=origins)

    def describe(self) -> list[Setting]:
        """Every setting for a person to read, passwords masked."""
        return [
            Setting(f.name, _shown(getattr(self, f.name)), self.origins.get(f.name, "default"))
            for f in fields(self)
            if f.name != "origins"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that from_dict reads back in another process."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["origins"] = dict(self.origins)
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Settings:
        """The Settings that to_dict wrote."""
        paths = {
            name: Path(plain[name]) if plain.get(name) else None for name in ("token_path", "scheduling")
        }
        return cls(**{**plain, "home": Path(plain["home"]), **paths})


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return masked(value) if isinstance(value, str) and "://" in value else str(value)


def _expand(path: str, environment: Mapping[str, str]) -> str:
    if path == "~" or path.startswith("~/"):
        return environment.get("HOME", str(Path.home())) + path[1:]
    return path


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file, in whose path ? and % mean themselves."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLAlchemy URL of SQLite; None for another database."""
    if not url.startswith("sqlite"):
        return None
    return Path(unquote(url.partition(":///")[2].partition("?")[0]))


def _number(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{variable}: {text!r} is not a number that is at least 0")
    return value


def _log_format(text: str) -> str:
    if text not in ("text", "json"):
        raise SettingsError(f"TEXTVAE_LOG_FORMAT: {text!r} must be text or json")
    return text


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise SettingsError(
            f"TEXTVAE_REDIS_URL: {masked(text)!r} must begin with redis://, rediss:// or unix://"
        )
    return text
