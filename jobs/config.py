"""YAML -> JobConfig: what a job trains (textvae.config) and what the service needs to know to run it."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

import textvae
from textvae.config import Config, Metric, Section, apply_override, parse, read_yaml

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


class Resources(Section):
    """What an attempt takes from the cluster, whole or not at all."""

    ranks: int = Field(1, ge=1, le=1024, description="training processes")
    cpus_per_rank: float = Field(1, gt=0, description="CPUs of each rank")
    gpus_per_rank: float = Field(0, ge=0, description="GPUs of each rank; 0 trains on CPU")

    @property
    def cpus(self) -> float:
        """CPUs of all ranks."""
        return self.ranks * self.cpus_per_rank

    @property
    def gpus(self) -> float:
        """GPUs of all ranks."""
        return self.ranks * self.gpus_per_rank


class Select(Section):
    """Which checkpoint is the best: by a metric of the validation reviews."""

    metric: Metric = Field("sentiment_accuracy", description="a metric of the validation reviews")
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`."""
        return a > b if self.mode == "max" else a < b


class JobConfig(Config):
    """One job's config, whole."""

    name: str = Field("model", description="the model name whose best version is served")
    resources: Resources = Field(default_factory=Resources)
    select: Select = Field(default_factory=Select)
    max_attempts: int = Field(3, ge=1, le=100, description="attempts before the job counts as failed")

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
        if self.training.batch_size < self.resources.ranks:
            raise ValueError(
                f"training.batch_size ({self.training.batch_size}) must be at least "
                f"resources.ranks ({self.resources.ranks}): it counts the reviews of all ranks"
            )
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
        apply_override(mapping, override)
    return parse(JobConfig, mapping, str(path))


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
    """The name of the user who runs this process."""
    return getpass.getuser()
