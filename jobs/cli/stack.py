"""`up`, `down`, `status`: the local stack."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from jobs.cli import arguments, errors, output, service

if TYPE_CHECKING:
    from cluster.stack import Stack

_POLL = 0.5

DASHBOARD_PORT = 8265
SERVE_PORT = 8000


@click.command()
@click.option("--detach", "-d", is_flag=True, help="Return once everything is up, and leave it running.")
@click.option(
    "--dashboard-port",
    default=DASHBOARD_PORT,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="The port of Ray's dashboard.",
)
@click.option(
    "--serve-port",
    default=SERVE_PORT,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="The port of the served model.",
)
@click.option("--cpus", type=arguments.count(), help="CPUs to offer to jobs; all of this machine by default.")
@click.option(
    "--timeout",
    default=120.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds that each part may take; a busy machine needs more.",
)
def up(detach: bool, dashboard_port: int, serve_port: int, cpus: int | None, timeout: float) -> None:
    """Bring the service up on this machine.

    Redis, a Ray head with its dashboard, the dispatcher and the HTTP server; Redis and Ray only where
    TEXTVAE_REDIS_URL and RAY_ADDRESS name no others. Everything listens on 127.0.0.1. Without --detach it
    stays and shows the dispatcher's log until Ctrl-C (or SIGTERM, or the end of its terminal), then takes
    everything down.
    """
    home = service.settings().home
    with signals_as_exit():
        describe(bring_up(cpus=cpus, dashboard_port=dashboard_port, serve_port=serve_port, timeout=timeout))
        if detach:
            output.talk("up; take it down with: textvae-jobs down")
            return
        try:
            output.talk("up until Ctrl-C; here is the dispatcher's log:")
            _follow(log_of(home, "dispatcher"), _Look(home))
        except KeyboardInterrupt:
            output.talk("")
        finally:
            end()


def bring_up(*, cpus: int | None, dashboard_port: int, serve_port: int, timeout: float = 120.0) -> Stack:
    """Start whatever of the stack is not up yet, and wait until all of it answers."""
    from cluster import stack

    settings = service.settings()
    settings.create_home()
    started = stack.up(
        settings.home,
        redis_url=_given("redis_url"),
        ray_address=_given("ray_address"),
        dispatcher=[sys.executable, "-m", "jobs.dispatcher"],
        environment=service.environment(),
        cpus=cpus,
        dashboard_port=dashboard_port,
        serve_port=serve_port,
        on_part=lambda part, detail: output.talk(f"{part}: {detail}"),
        timeout=timeout,
    )
    service.forget()
    return started


def take_down() -> list[str]:
    """End every part that this home's stack started; returns what ended."""
    from cluster import stack

    output.talk("taking the service down ...")
    ended = stack.down(service.settings().home)
    service.forget()
    return ended


def end() -> None:
    """Take the service down; signals wait for that, so that nothing is left behind."""
    waiting = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        take_down()
    finally:
        for number, handler in waiting.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: through its clean-up."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    # One that is ignored stays so: nohup asks for that.
    heard = [number for number in _SIGNALS[1:] if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(stack: Stack) -> None:
    """Print where the parts of a running stack are."""
    output.fields(
        [
            ("dashboard", stack.dashboard_url),
            ("served model", f"{stack.serve_url}/docs"),
            ("home", service.settings().home),
            ("token", f"in {stack.token_path}; the dashboard asks for it" if stack.token_path else None),
        ]
    )
    for note in stack.notes:
        output.talk(f"note: {note}")


def log_of(home: Path, part: str) -> Path:
    """The log of a part of the stack."""
    return home / "logs" / f"{part}.log"


def _given(name: str) -> Any:
    """A setting only if the environment names it: what a running stack says of itself is not asked for."""
    from jobs.settings import Settings

    return getattr(Settings.from_environment(service.environment()), name)


class _Look:
    """Looks at the parts of a home's stack, and says once of each that it has stopped."""

    def __init__(self, home: Path):
        self._home = home
        self._known: set[str] = set()

    def __call__(self) -> bool:
        """Whether all parts have stopped."""
        from cluster.stack import PARTS, status

        stopped = {part.name for part in status(self._home) if part.state == "stopped"}
        if len(stopped) == len(PARTS):
            return True
        for part in sorted(stopped - self._known):
            output.talk(f"{part} is stopped; start it again from another terminal with: textvae-jobs up -d")
        self._known = stopped
        return False


def _follow(log: Path, ended: Callable[[], bool]) -> None:
    """Print what is added to a log until `ended()`."""
    with log.open(encoding="utf-8", errors="replace") as file:
        look = time.monotonic()
        while True:
            text = file.read()
            if text:
                click.echo(text, nl=False)
            time.sleep(_POLL)
            if time.monotonic() - look > 10 * _POLL:
                look = time.monotonic()
                if ended():
                    output.talk("the service was taken down from elsewhere")
                    return


@click.command()
def down() -> None:
    """Take the service down.

    Running jobs go on from their newest checkpoint once it is up again; queued ones wait.
    """
    from cluster.stack import read

    if read(service.settings().home) is None:
        output.talk(f"nothing is up in {service.settings().home}")
        return
    for name in take_down():
        click.echo(f"{name}  ended")


@click.command()
@output.json_option
def status(as_json: bool) -> None:
    """Show the parts of the service and what they do.

    The exit code is 4 unless every part is running.
    """
    from cluster import stack
    from jobs.store import JobState

    settings, store = service.settings(), service.store()
    parts = stack.status(settings.home)
    states = {str(s): store.count([s]) for s in (JobState.RUNNING, JobState.QUEUED)}
    served = store.served()
    cluster = service.cluster()
    all_up = all(part.state == "running" for part in parts)
    if as_json:
        output.emit_json(
            {
                "up": all_up,
                "parts": parts,
                "jobs": states,
                "cluster": cluster,
                "models": [{"name": v.model, "version": v.version} for v in served],
                "home": settings.home,
                "dashboard_url": settings.dashboard_url,
                "serve_url": settings.serve_url,
            }
        )
    else:
        output.table(("part", "state", "detail"), [(p.name, p.state, p.detail) for p in parts], wrap="detail")
        click.echo()
        output.fields(
            [
                ("jobs", ", ".join(f"{n} {state}" for state, n in states.items())),
                ("models", ", ".join(f"{v.model} version {v.version}" for v in served)),
                ("cluster", _cluster(cluster)),
                ("home", settings.home),
                ("dashboard", settings.dashboard_url),
                ("served model", settings.serve_url),
            ]
        )
        if not all_up:
            output.talk("not everything is running; bring it up with: textvae-jobs up")
    raise click.exceptions.Exit(errors.OK if all_up else errors.UNREACHABLE)


def _cluster(cluster: dict[str, float] | None) -> str | None:
    if not cluster:
        return None
    return ", ".join(f"{name.replace('_', ' ')} {amount:g}" for name, amount in cluster.items())
