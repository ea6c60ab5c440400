"""YAML -> JobConfig: what a job trains (textvae.config) and what the service needs to know to run it."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

import textvae
from jobs.durations import LENGTH, seconds
from jobs.sweeps.config import Parameter, Sweep
from jobs.sweeps.space import axes
from textvae.config import Config, Metric
from textvae.parsing import ConfigError, Section, apply_override, parse, read_yaml

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")

_MOST_ATTEMPTS = 100
_PARAMETERS = "sweep.parameters."


def _time_limit_schema(schema: dict[str, Any]) -> None:
    """Editors take a length of time too."""
    schema["anyOf"].append({"type": "string", "pattern": rf"^\s*({LENGTH}|\d+(\.\d+)?)\s*$"})


def _short_forms(schema: dict[str, Any]) -> None:
    """Editors take plain `max_attempts` too."""
    description = "short for retry.max_attempts"
    most = {"type": "integer", "minimum": 1, "maximum": _MOST_ATTEMPTS, "description": description}
    schema["properties"]["max_attempts"] = most


_MOST_RANKS = 1024


class Ranks(Section):
    """How many ranks a job may have."""

    min: int = Field(1, ge=1, le=_MOST_RANKS, description="without so many it waits")
    max: int = Field(ge=1, le=_MOST_RANKS, description="more than so many it never has")

    @model_validator(mode="after")
    def _in_order(self) -> Ranks:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) must be at least min ({self.min})")
        return self


class Resources(Section):
    """What an attempt takes from the cluster, whole or not at all."""

    ranks: Annotated[
        Annotated[int, Field(ge=1, le=_MOST_RANKS), Tag("number")] | Annotated[Ranks, Tag("range")],
        Discriminator(lambda value: "range" if isinstance(value, Mapping | Ranks) else "number"),
    ] = Field(
        1,
        description="training processes, 1 to 1,024: a number, or `{min: 1, max: 8}` for as many of them as "
        "there is room for when an attempt starts",
    )
    cpus_per_rank: float = Field(1, gt=0, description="CPUs of each rank")
    gpus_per_rank: float = Field(0, ge=0, description="GPUs of each rank; 0 trains on CPU")

    @property
    def min_ranks(self) -> int:
        """The ranks without which it does not start."""
        return self.ranks.min if isinstance(self.ranks, Ranks) else self.ranks

    @property
    def max_ranks(self) -> int | None:
        """The most ranks that it may have; none if their number is fixed."""
        return self.ranks.max if isinstance(self.ranks, Ranks) else None

    @property
    def cpus(self) -> float:
        """CPUs of all ranks without which it does not start."""
        return self.min_ranks * self.cpus_per_rank

    @property
    def gpus(self) -> float:
        """GPUs of all ranks without which it does not start."""
        return self.min_ranks * self.gpus_per_rank


class Select(Section):
    """Which checkpoint is the best: by a metric of the validation reviews."""

    metric: Metric = Field("sentiment_accuracy", description="a metric of the validation reviews")
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`."""
        return a > b if self.mode == "max" else a < b


class Retry(Section):
    """When a job is tried again after an attempt that ended badly."""

    max_attempts: int = Field(
        3,
        ge=1,
        le=_MOST_ATTEMPTS,
        description="attempts that may end by an error of training, or at the time limit, before the job "
        "counts as failed; failures of infrastructure are not among them. Plain `max_attempts` at the top of "
        "the file means the same",
    )
    on: tuple[Literal["infrastructure", "error", "timeout"], ...] = Field(
        ("infrastructure", "error"),
        description="what is tried again: infrastructure (a lost node or process, a host out of memory or "
        "disk, ranks that did not start), error (training raised), timeout (the time limit); a preempted "
        "job always goes on",
    )
    backoff: float = Field(
        10,
        ge=0,
        le=86400,
        description="seconds before the second retry in a row; the first is at once, and each further one "
        "waits twice as long, up to an hour",
    )
    max_infrastructure: int = Field(
        10,
        ge=1,
        le=1000,
        description="retries in a row after failures of infrastructure, without a new checkpoint in between, "
        "before the job counts as failed",
    )


class JobConfig(Config):
    """One job's config, whole."""

    model_config = ConfigDict(json_schema_extra=_short_forms)

    name: str = Field("model", description="the model name whose best version is served")
    resources: Resources = Field(default_factory=Resources)
    select: Select = Field(default_factory=Select)
    retry: Retry = Field(default_factory=Retry)
    time_limit: float | None = Field(
        None,
        gt=0,
        le=31_536_000,
        description="seconds that an attempt may train before it is stopped, with a checkpoint, or a length "
        "of time such as 90m, 2h30m or 3d; none sets no limit",
        json_schema_extra=_time_limit_schema,
    )
    sweep: Sweep | None = Field(None, description="makes it a sweep")

    @model_validator(mode="before")
    @classmethod
    def _plain_max_attempts(cls, value: Any) -> Any:
        """`max_attempts: 3` at the top is short for `retry: {max_attempts: 3}`."""
        if not isinstance(value, Mapping) or "max_attempts" not in value:
            return value
        given = {key: inner for key, inner in value.items() if key != "max_attempts"}
        retry = given.get("retry", {})
        if not isinstance(retry, Mapping):
            return value
        if retry.get("max_attempts", value["max_attempts"]) != value["max_attempts"]:
            raise ValueError("max_attempts is short for retry.max_attempts: they cannot say different things")
        return given | {"retry": {**retry, "max_attempts": value["max_attempts"]}}

    @field_validator("time_limit", mode="before")
    @classmethod
    def _lengths_of_time(cls, value: Any) -> Any:
        return seconds(value) if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a model name: up to 63 of a-z, 0-9, '.', '_', '-', "
                "beginning and ending with a letter or digit"
            )
        return value

    @model_validator(mode="after")
    def _every_rank_gets_a_review(self) -> JobConfig:
        batch, ranks, most = self.training.batch_size, self.resources.min_ranks, self.resources.max_ranks
        if most is not None and batch < 2 * most:
            raise ValueError(
                f"training.batch_size ({batch}) must be at least twice resources.ranks.max ({most}): it "
                "counts the reviews of all ranks, however many there are"
            )
        if batch < ranks:
            raise ValueError(
                f"training.batch_size ({batch}) must be at least "
                f"resources.ranks ({ranks}): it counts the reviews of all ranks"
            )
        return self

    @model_validator(mode="after")
    def _the_sweep_is_over_known_keys(self) -> JobConfig:
        if self.sweep is not None:
            try:
                axes(JobConfig, self.sweep, self.seed)
            except ConfigError as error:
                raise ValueError("; ".join(error.problems)) from error
        return self

    def training_config(self) -> Config:
        """The part that decides the weights, without the service's sections."""
        return Config.model_validate(
            {
                name: getattr(self, name).model_dump()
                if isinstance(getattr(self, name), Section)
                else getattr(self, name)
                for name in Config.model_fields
            }
        )


def load(path: str | Path, overrides: Iterable[str] = ()) -> JobConfig:
    """The JobConfig in a YAML file, after `a.b=value` overrides.

    A config without a name is named after its file. Raises ConfigError, naming key, reason and nearest key.
    """
    path = resolve(path)
    mapping = read_yaml(path)
    mapping.setdefault("name", re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "model")
    for override in overrides:
        if override.startswith(_PARAMETERS):
            _override_parameter(mapping, override)
        else:
            apply_override(mapping, override)
    _make_absolute(mapping)
    return parse(JobConfig, mapping, str(path))


def _make_absolute(mapping: dict[str, Any]) -> None:
    """Make the paths of the data those that they are here: ranks run in another folder than who submits."""

    def absolute(given: Any) -> Any:
        if isinstance(given, str):
            return given if "://" in given else str(Path(given).expanduser().absolute())
        if isinstance(given, list):
            return [absolute(each) for each in given]
        if isinstance(given, dict):  # what a sweep says of a parameter
            return {key: absolute(value) if key == "values" else value for key, value in given.items()}
        return given

    data, sweep = mapping.get("data"), mapping.get("sweep")
    parameters = sweep.get("parameters") if isinstance(sweep, dict) else None
    for key in ("train", "validation", "test", "folder"):
        for section, name in ((data, key), (parameters, f"data.{key}")):
            if isinstance(section, dict) and name in section:
                section[name] = absolute(section[name])


def _override_parameter(mapping: dict[str, Any], override: str) -> None:
    """Set a parameter of a sweep, whose name has dots, or one key of it: `training.learning_rate.max=0.1`."""
    name, equals, text = override.removeprefix(_PARAMETERS).partition("=")
    key, _, last = name.rpartition(".")
    if not key or last not in Parameter.model_fields:
        key, last = name, ""
    given: dict[str, Any] = {}
    apply_override(given, f"value{equals}{text}")
    parameters = mapping
    for section in ("sweep", "parameters"):
        parameters = parameters.setdefault(section, {})
        if not isinstance(parameters, dict):
            raise ConfigError([f"--set {override!r}: {section} is a value, not a section"], "--set")
    if not last:
        parameters[key] = given["value"]
    elif isinstance(parameters.setdefault(key, {}), dict):
        parameters[key][last] = given["value"]
    else:
        raise ConfigError([f"--set {override!r}: {key} is a value, not a section"], "--set")


def from_mapping(mapping: Mapping[str, Any]) -> JobConfig:
    """The JobConfig that `JobConfig.model_dump(mode="json")` wrote."""
    return parse(JobConfig, mapping)


def resolve(path: str | Path) -> Path:
    """The path itself, or the shipped preset of that name (`quickstart`, `configs/quickstart.yaml`)."""
    path = Path(path)
    if path.exists():
        return path
    shipped = presets() / (path.name if path.suffix else f"{path.name}.yaml")
    if shipped.exists() and path.parent in (Path(), Path("configs")):
        return shipped
    return path


def presets() -> Path:
    """The folder of the configs that ship with the package."""
    package = Path(textvae.__file__).parent
    installed = package / "presets"  # where the wheel puts them
    return installed if installed.is_dir() else package.parent / "configs"


def default_owner() -> str:
    """The name of the user who runs this process; `uid-1000` where nobody gave that number a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
