"""From YAML to typed sections, and words for what is wrong on the way.

Configs are typed, frozen and closed: an unknown key is an error that names the nearest known one.
This module imports neither torch nor numpy, so that a command line can check a config in a blink.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A config says something that cannot be done; the message names every wrong key and why."""

    def __init__(self, problems: list[str], origin: str = "config"):
        self.problems = problems
        self.origin = origin
        super().__init__(origin + ": " + "; ".join(problems))


class Section(BaseModel):
    """Base of every section: frozen, closed to unknown keys, and with numbers that can be counted with."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """PyYAML's own, but for values that look like another type and are none: it raises whatever it met."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            problem = f"{node.value!r} is no {node.tag.rpartition(':')[2]} ({error}); text goes into quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


Parsed = TypeVar("Parsed", bound=BaseModel)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError, naming file and line, if it holds none."""
    path = Path(path)
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ConfigError(["no such file"], str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {error}"], str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError([f"{where}not YAML: {getattr(error, 'problem', error)}"], str(path)) from error
    if not isinstance(value, dict):
        raise ConfigError(["must be a mapping of sections such as data, model and training"], str(path))
    return value


def apply_override(mapping: dict[str, Any], override: str) -> None:
    """Set a key of a config's mapping, as `training.epochs=3` says; the value is YAML. Or ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError([f"--set {override!r}: must be KEY=VALUE, such as training.epochs=3"], "--set")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", error)
        raise ConfigError([f"--set {override!r}: the value is not YAML: {reason}"], "--set") from error
    set_key(mapping, key, value, f"--set {override!r}")


def set_key(mapping: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key of a config's mapping; ConfigError, naming `origin`, if it leads through a value."""
    section = mapping
    *path, last = key.split(".")
    for name in path:
        inner = section.get(name)
        if isinstance(inner, str) and name == "objective":
            inner = {"kind": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ConfigError([f"{origin}: {name} is a value, not a section"], "--set")
        section[name] = inner
        section = inner
    section[last] = value


def parse(model: type[Parsed], mapping: Mapping[str, Any], origin: str = "config") -> Parsed:
    """Validate `mapping` as `model`; ConfigError names each wrong key, why, and the nearest known one."""
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError([_explain(model, e) for e in error.errors()], origin) from error


def _explain(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    # A discriminated union puts its tag into the location: `objective.elbo.x` was written `objective.x`.
    if len(path) > 1 and path[0] == "objective" and path[1] in ("seed", "elbo"):
        del path[1]
    if path[:2] == ["resources", "ranks"]:
        path = [part for part in path if part not in ("number", "range")]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = list(keys(model))
        *parent, last = path
        # The same last name elsewhere ("ranks" for "resources.ranks") beats a similar one beside it.
        same_name = [k for k in known if k.rsplit(".", 1)[-1] == last]
        beside = [k for k in known if _within(k.split(".")[:-1], parent)]
        spelled = difflib.get_close_matches(key, beside, n=1, cutoff=0.0) or known
        nearest = same_name or spelled
        return f"{key}: unknown key; the nearest known one is {nearest[0]}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    given = error.get("input")
    shown = f" (got {given!r})" if not isinstance(given, Mapping | BaseModel) else ""
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


def _within(known: list[str], path: list[str]) -> bool:
    """Whether a path leads to a known section; any name stands for NAME."""
    return len(known) == len(path) and all(k in ("NAME", p) for k, p in zip(known, path, strict=True))


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config of this type may hold; NAME stands for one that the user chooses."""
    for name, field in model.model_fields.items():
        yield prefix + name
        chosen = "NAME." if get_origin(field.annotation) is dict else ""
        for section in sections(field.annotation):
            yield from keys(section, f"{prefix}{name}.{chosen}")


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The section types inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections(part)]
