"""Bringing the stack up, taking it down, and asking how it is."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from cluster.serving import control
from cluster.stack import parts, processes
from cluster.stack.parts import LOOPBACK
from cluster.stack.processes import MARK, Process
from cluster.stack.state import PartStatus, Paths, Stack, StackError, read, secret, write

DASHBOARD_PORT = 8265
SERVE_PORT = 8000

OnPart = Callable[[str, str], None]


def _silent(part: str, detail: str) -> None:
    """Says nothing."""


def up(
    home: Path,
    *,
    dispatcher: Sequence[str] | None,
    redis_url: str | None = None,
    ray_address: str | None = None,
    environment: Mapping[str, str] | None = None,
    cpus: float | None = None,
    dashboard_port: int | None = None,
    serve_port: int | None = None,
    on_part: OnPart = _silent,
    timeout: float = 120,
) -> Stack:
    """Bring up what is missing of the stack of `home`, and return it when every part answers.

    `dispatcher` is the command to start it by (see `parts.start_dispatcher`); None leaves it out. A part
    whose address is given (`redis_url`, `ray_address`) is not started, only asked. `environment` is added to
    that of every part. `on_part(part, detail)` hears of each part when it answers. For the default ports
    (8265, 8000; also None) the next free one does too, which `Stack.notes` then tells; any other port is used
    or refused.

    Raises StackError, naming the part and showing the end of its log, when one does not come up; what this
    call started is then ended again.
    """
    home = Path(home).expanduser().resolve()
    paths = Paths(home)
    paths.make()
    with _locked(paths, timeout):
        attempt = _Start(
            paths, {**os.environ, **(environment or {})}, on_part=on_part, timeout=timeout, old=read(home)
        )
        try:
            attempt.redis(redis_url)
            attempt.ray(ray_address, cpus, dashboard_port)
            attempt.serve_and_dispatcher(serve_port, list(dispatcher) if dispatcher else None)
        except BaseException:
            attempt.undo()
            raise
        return attempt.stack


class _Start:
    """One call of `up`: knows what is there already, and what it started itself."""

    def __init__(
        self,
        paths: Paths,
        environment: dict[str, str],
        *,
        on_part: OnPart,
        timeout: float,
        old: Stack | None,
    ) -> None:
        self.paths = paths
        self.on_part = on_part
        self.timeout = timeout
        alive = tuple(process for process in old.processes if process.alive()) if old else ()
        # A mark outlives a part that died: its orphans carry it still, and `down` finds them by it.
        self.old = old
        self.mark = old.mark if old else secrets.token_hex(8)
        self.environment = {**environment, MARK: self.mark, "TEXTVAE_HOME": str(paths.home)}
        self.stack = Stack("", "", "", "", None, mark=self.mark, processes=alive)
        if old is not None:
            self.stack = replace(old, processes=alive, notes=())
        self.begun: list[str] = []  # the parts that this call set out to start

    def redis(self, url: str | None) -> None:
        running = self.stack.process("redis")
        if url is None and running is None:
            self._begin("redis")
            port = urlsplit(self.old.redis_url).port if self.old else None
            process, url = parts.start_redis(
                self.paths, self.environment, port if port and parts.is_free(port) else parts.free_port()
            )
            self._record(process, redis_url=url, own_redis=True)
        elif url is not None:
            if running is not None:
                raise StackError(
                    "redis: this home's own Redis runs; take the stack down before using another"
                )
            self._wait_for_redis(url)
            self._record(None, redis_url=url, own_redis=False)
            return
        self._wait_for_redis(self.stack.redis_url)

    def _wait_for_redis(self, url: str) -> None:
        self._wait("redis", lambda: parts.redis_answers(url), min(30, self.timeout))

    def ray(self, address: str | None, cpus: float | None, dashboard_port: int | None) -> None:
        running = self.stack.process("ray")
        if address is not None:
            if running is not None:
                raise StackError("ray: this home's own Ray runs; take the stack down before using another")
            # Where Ray itself looks for a token.
            place = Path(self.environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
            token = place.resolve() if place.exists() else None
            environment = {**self.environment, **parts.ray_environment(token)}
            found, dashboard_url = parts.find_ray(address, environment)
            given: dict[str, Any] = {
                "ray_address": found,
                "dashboard_url": dashboard_url,
                "token_path": token,
            }
            self._wait_for_ray(replace(self.stack, **given))
            self._record(None, **given, temporary=None)
            return
        if running is not None:
            try:
                self._wait_for_ray(self.stack)
                return
            except StackError:
                if running.alive():
                    raise
            # It was about to end when this call began: a head follows its raylet, some seconds later.
        self._start_ray(cpus, dashboard_port)
        self._wait_for_ray(self.stack)

    def _wait_for_ray(self, stack: Stack) -> None:
        self._wait("ray", lambda: parts.ray_answers(stack.dashboard_url, stack.token()), self.timeout)

    def _start_ray(self, cpus: float | None, dashboard_port: int | None) -> None:
        # A head that died leaves a raylet and ranks behind, and a dispatcher that waits for it in vain.
        dispatcher = self.stack.process("dispatcher")
        if self.old is not None:
            keep = self.stack.process("redis")
            processes.end([dispatcher] if dispatcher else [])
            _end_marked(self.mark, keep=keep)
            self.stack = replace(self.stack, processes=(keep,) if keep else ())
        temporary = parts.ray_temporary(self.paths)
        self.stack = replace(self.stack, temporary=temporary)
        _empty(temporary)
        secret(self.paths.token)
        port = parts.free_port()
        chosen, note = parts.choose_port("ray dashboard", dashboard_port, DASHBOARD_PORT)
        self._note(note)
        self._begin("ray")
        process = parts.start_ray(
            self.paths,
            {**self.environment, **parts.ray_environment(self.paths.token)},
            port=port,
            dashboard_port=chosen,
            cpus=cpus,
            temporary=temporary,
        )
        self._record(
            process,
            ray_address=f"{LOOPBACK}:{port}",
            dashboard_url=f"http://{LOOPBACK}:{chosen}",
            token_path=self.paths.token,
        )

    def serve_and_dispatcher(self, serve_port: int | None, dispatcher: list[str] | None) -> None:
        """Both start side by side: the first replica takes longer than all the rest."""
        # Serve may run already: since an earlier `up`, or on a cluster that was given to us.
        serve = self._running_serve()
        if serve is None:
            port, note = parts.choose_port("serve", serve_port, SERVE_PORT)
            self._note(note)
        elif why := serve.refused():
            raise StackError(f"serve: {why}")
        else:
            port = serve.port
        if serve is None or not serve.applied:
            self._wait("serve", lambda: self._apply_nothing(port), self.timeout, tell=False)
        self._record(None, serve_url=f"http://{LOOPBACK}:{port}")
        process = self.stack.process("dispatcher")
        if dispatcher is not None and process is None:
            self._begin("dispatcher")
            process = parts.start_dispatcher(self.paths, dispatcher, self.environment, self.stack)
            self._record(process)
        self._wait("serve", lambda: parts.serve_answers(self.stack.serve_url), self.timeout)
        if process is not None:
            self._wait("dispatcher", lambda: parts.dispatcher_answers(self.paths, process), self.timeout)

    def _running_serve(self) -> control.Serve | None:
        found: list[control.Serve | None] = []

        def ask() -> str:
            try:
                found.append(
                    control.running(dashboard_url=self.stack.dashboard_url, token=self.stack.token())
                )
            except control.ServingError as error:
                raise StackError(f"serve: {error}") from error
            return "asked"

        # The dashboard answers before its Serve module does.
        self._wait("serve", ask, self.timeout, tell=False)
        return found[-1]

    def _apply_nothing(self, port: int) -> str:
        try:
            control.apply(
                {},
                dashboard_url=self.stack.dashboard_url,
                token=self.stack.token(),
                http_port=port,
                timeout=60,
            )
        except control.ServingError as error:
            raise StackError(f"serve: {error}") from error
        return "asked for"

    def undo(self) -> None:
        """End what this call started; what ran before stays as it was."""
        for part in reversed(self.begun):
            _end_part(self.stack, part)
        before = self.old.temporary if self.old else None
        if self.stack.temporary is not None and self.stack.temporary != before:
            shutil.rmtree(self.stack.temporary, ignore_errors=True)
        if self.old is None:
            self.paths.stack.unlink(missing_ok=True)
            return
        kept = tuple(process for process in self.stack.processes if process.name not in self.begun)
        write(self.paths.home, replace(self.stack, processes=kept, temporary=before))

    def _begin(self, part: str) -> None:
        """Called right before a part is started: ends what is left of it.

        The mark is on record before anything carries it: whenever this process is killed, the next `up` or
        `down` finds what it started.
        """
        write(self.paths.home, self.stack)
        _end_part(self.stack, part)
        self.begun.append(part)

    def _record(self, process: Process | None, **changes: object) -> None:
        stack = replace(self.stack, **changes)  # type: ignore[arg-type]
        dispatcher = stack.process("dispatcher")
        if dispatcher is not None and stack.addresses != self.stack.addresses:
            # It would keep those that it was started with; a new one adopts the attempts that run.
            _end_part(stack, "dispatcher")
            stack = replace(stack, processes=tuple(each for each in stack.processes if each != dispatcher))
        if process is not None:
            stack = replace(stack, processes=(*stack.processes, process))
        self.stack = stack
        write(self.paths.home, self.stack)

    def _note(self, note: str | None) -> None:
        if note is not None:
            self.stack = replace(self.stack, notes=(*self.stack.notes, note))

    def _wait(self, part: str, answers: Callable[[], str], timeout: float, *, tell: bool = True) -> None:
        log = self.paths.log("ray" if part == "serve" else part)
        process = self.stack.process("ray" if part == "serve" else part)
        detail = parts.wait_for(part, answers, process=process, log=log, timeout=timeout)
        if tell:
            self.on_part(part, detail)


def down(home: Path, *, timeout: float = 60) -> list[str]:
    """End what `up` started for `home`: the dispatcher, then Ray (with Serve), then Redis.

    Returns the names of the parts that ended. Nothing else of the machine is touched; an attempt that was
    running is ended with Ray, and its job goes on from its newest checkpoint when the stack is up again.
    """
    home = Path(home).expanduser().resolve()
    paths = Paths(home)
    if not paths.run.is_dir():
        return []
    with _locked(paths, timeout):
        stack = read(home)
        if stack is None:
            return []
        ended = [part for part in ("dispatcher", "ray", "redis") if _end_part(stack, part)]
        processes.end([], stack.mark, grace=2)  # orphans of a part that had died before
        if stack.temporary is not None:
            shutil.rmtree(stack.temporary, ignore_errors=True)
        paths.stack.unlink(missing_ok=True)
        return ended


def status(home: Path) -> list[PartStatus]:
    """How each part is, asked of all at once; answers within a few seconds whatever hangs."""
    home = Path(home).expanduser().resolve()
    stack = read(home)
    if stack is None:
        return [PartStatus(part, "stopped", "not started") for part in parts.PARTS]
    questions: dict[str, tuple[str, Callable[[], str]]] = {
        "redis": (stack.redis_url, lambda: parts.redis_answers(stack.redis_url)),
        "ray": (stack.dashboard_url, lambda: parts.ray_answers(stack.dashboard_url, stack.token())),
        "serve": (stack.serve_url, lambda: parts.serve_answers(stack.serve_url)),
    }

    def ask(part: str) -> PartStatus:
        process = stack.process("ray" if part == "serve" else part)
        ours = _ours(stack, "ray" if part == "serve" else part)
        if part == "dispatcher":
            if process is None or not process.alive():
                return PartStatus(
                    part, "stopped", f"see {Paths(home).log(part)}" if process else "not started"
                )
            return PartStatus(part, "running", f"pid {process.pid}")
        address, question = questions[part]
        if not address:  # `up` was killed before
            return PartStatus(part, "stopped", "not started")
        if ours and (process is None or not process.alive()):
            return PartStatus(part, "stopped", f"see {Paths(home).log('ray' if part == 'serve' else part)}")
        try:
            detail = question()
        except StackError as error:
            return PartStatus(part, "unreachable", str(error).removeprefix(f"{part}: "))
        return PartStatus(
            part, "running", f"{detail}, pid {process.pid}" if process and part != "serve" else detail
        )

    with ThreadPoolExecutor(len(parts.PARTS)) as pool:
        return list(pool.map(ask, parts.PARTS))


def _end_part(stack: Stack, part: str) -> int:
    """End a part, recorded or not, and return how many processes ended.

    Ray's head is asked alone: it ends its own children in order, in seconds. Asked all at once, they wait for
    each other until they are killed.
    """
    process = stack.process(part)
    ended = 0
    if process is not None and part == "ray":
        ended += processes.end_leader_first(process, grace=20)
    elif process is not None:
        ended += processes.end([process], grace=10)
    # Orphans of one that died, and one that was killed before it was recorded.
    return ended + processes.end([], stack.mark, part=part, grace=2 if part == "ray" else 10)


def _end_marked(mark: str, *, keep: Process | None) -> None:
    """End whatever carries the mark except one process."""
    processes.end([], mark, grace=2, keep=keep.pid if keep else None)


def _ours(stack: Stack, part: str) -> bool:
    """Whether this part was started by the stack, rather than given by its address."""
    return stack.temporary is not None if part == "ray" else stack.own_redis


def _empty(folder: Path) -> None:
    """Remove what an earlier Ray left in its folder."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


@contextmanager
def _locked(paths: Paths, timeout: float) -> Iterator[None]:
    """One `up` or `down` at a time for a home."""
    lock = FileLock(paths.lock)
    try:
        with lock.acquire(timeout=timeout):
            yield
    except Timeout as error:
        raise StackError(
            f"stack: another up or down of {paths.home} has not ended after {timeout:.0f} s"
        ) from error
