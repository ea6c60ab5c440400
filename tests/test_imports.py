"""The arrows between the packages: imports run downward only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HEAVY = ("torch", "ray", "pyarrow", "numpy", "matplotlib", "tokenizers", "textvae.model", "textvae.sources")


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the project by its dotted name."""
    for package in ("textvae", "cluster", "jobs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path, module: str) -> set[str]:
    """The dotted names that a module imports anywhere, inside functions too."""
    is_package = path.name == "__init__.py"
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            up = node.level - (1 if is_package else 0)
            prefix = base[: len(base) - up] if node.level else []
            source = ".".join([*prefix, *([node.module] if node.module else [])])
            # `from jobs import store` imports jobs.store: both names count.
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found


def below(name: str, package: str) -> bool:
    """Whether a dotted name is that package or lies in it."""
    return name == package or name.startswith(package + ".")


def breaches(where: str, what: str, except_in: tuple[str, ...] = ()) -> list[str]:
    """`module imports name` for each import of `what` in `where`, outside `except_in`."""
    return [
        f"{module} imports {name}"
        for module, path in modules()
        if below(module, where) and not any(below(module, allowed) for allowed in except_in)
        for name in sorted(imported(path, module))
        if below(name, what)
    ]


@pytest.mark.parametrize(
    ("where", "what", "except_in"),
    [
        ("textvae", "ray", ()),
        ("textvae", "cluster", ()),
        ("textvae", "jobs", ()),
        ("cluster", "jobs", ()),
        ("jobs.queue", "jobs.store", ()),
        ("jobs.store", "jobs.queue", ()),
        ("jobs", "ray", ()),
        ("jobs", "sqlalchemy", ("jobs.store", "jobs.migrations")),
        ("jobs", "alembic", ("jobs.store", "jobs.migrations")),
        ("textvae", "sqlalchemy", ()),
        ("cluster", "sqlalchemy", ()),
        ("jobs", "redis", ("jobs.queue",)),
        ("textvae", "redis", ()),
        ("cluster", "redis", ("cluster.stack",)),  # which starts it and asks whether it answers
        ("textvae", "click", ()),
        ("cluster", "click", ()),
    ],
)
def test_imports_run_downward_only(where: str, what: str, except_in: tuple[str, ...]) -> None:
    assert breaches(where, what, except_in) == []


def test_the_walk_sees_imports_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import ray.train\ndef f():\n    from . import store\n    from ..textvae.model import TextVAE\n"
    )
    assert {"ray.train", "jobs.cli.store", "jobs.textvae.model"} <= imported(path, "jobs.cli.x")
    assert len(list(modules())) > 20


def loaded_by(code: str, home: Path) -> set[str]:
    """The names in sys.modules after `code` ran in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={"TEXTVAE_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def heavy(names: set[str]) -> list[str]:
    return sorted(name for name in names if any(below(name, package) for package in HEAVY))


def test_the_command_line_starts_without_heavy_imports(tmp_path: Path) -> None:
    run = "from jobs.cli import main\nmain(['--help'], standalone_mode=False)"
    names = loaded_by(run, tmp_path)
    assert "jobs.cli" in names
    assert heavy(names) == []
    assert not names & {"rich", "sqlalchemy", "redis", "pydantic", "yaml", "httpx", "jobs.cli.demo"}


@pytest.mark.parametrize("words", [["list"], ["list", "--state", "queued", "--owner", "ada", "--json"]])
def test_list_imports_nothing_that_takes_longer_than_reading_the_jobs(
    tmp_path: Path, words: list[str]
) -> None:
    loaded_by(f"from jobs.store import Store\nStore('sqlite:///{tmp_path}/textvae.db').close()", tmp_path)
    names = loaded_by(f"from jobs.cli import main\nmain({words}, standalone_mode=False)", tmp_path)
    assert "jobs.store.glance" in names
    assert heavy(names) == []
    slow = {"sqlalchemy", "alembic", "redis", "pydantic", "yaml", "rich", "httpx", "asyncio", "filelock"}
    assert not names & slow
    assert not names & {
        "jobs.store.tables",
        "jobs.config",
        "jobs.queue",
        "jobs.service",
        "textvae.config",
        "textvae.parsing",
    }


def test_list_of_a_home_without_a_database_makes_one(tmp_path: Path) -> None:
    names = loaded_by("from jobs.cli import main\nmain(['list'], standalone_mode=False)", tmp_path)
    assert "jobs.store.verbs" in names
    assert heavy(names) == []
    assert (tmp_path / "textvae.db").exists()


def test_a_config_is_checked_for_errors_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "from jobs.cli import main\n"
        "try: main(['config', 'check', 'quickstart', '--set', 'training.epoch=2'])\n"
        "except SystemExit as end: assert end.code == 2"
    )
    assert heavy(loaded_by(code, tmp_path)) == []
