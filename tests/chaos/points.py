"""The crash points of a process: the moments right before what changes the world outside of it.

They are found by instrumentation. `install` wraps every database commit, Redis call, launcher call, fsync,
rename and delete of the process, `watch_ray` sees its calls into Ray. The first time the points are recorded,
later the process kills itself, with -9, at one of them. A kill after a call is a kill before the next one, as
far as anybody else can see. A write to the database has a second point, before it begins and while it holds
no lock yet: there it can be frozen.

A point is known by what is done to what, and how often that was done before, not by its number in a sequence:
two threads of a process take turns as they like.
"""

from __future__ import annotations

import ast
import errno
import linecache
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

_CHANCE = re.compile(
    r"(?<=\.)[0-9a-f]{8}(?=\.(?:partial|old))|(?<=served\.)\d+(?=\.partial)"
    r"|(?<=tmp)\w{8}(?=\.scratch)|(?<=step-)\d{6}"
)
_OF_ONE = re.compile("-| at ")  # begins what in a thread's name is of one job or address
_POLLS = ("XREAD", "XREVRANGE")  # how often one waits is up to the clock
_REPEATS = 2  # of what is done again and again, by a watching thread or with Ray, so many are points
_OURS = tuple(f"{Path(__file__).parent.parent.parent / package}{os.sep}" for package in ("cluster", "jobs"))


class _Points:
    """The points of this process."""

    def __init__(
        self,
        role: str,
        record: str | None = None,
        kill: str | None = None,
        freeze: str | None = None,
        refuse: str | None = None,
        hang: str | None = None,
        reached: str = "",
    ):
        self._role = role
        self._ends = {kill: signal.SIGKILL, freeze: signal.SIGSTOP}
        self._refuse = refuse
        self._hang = hang
        self._reached = reached
        self._record = None if record is None else os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._thawed: int | None = None  # the thread that was frozen
        self.at_commit = False  # what it was frozen before

    def written(self) -> None:
        """A write is committed: if the process was frozen before it, the file REACHED.written says so."""
        self._tell("written")

    def taken_back(self) -> None:
        """A write is rolled back, or fails: if the process was frozen before it, REACHED.refused is made."""
        self._tell("refused")

    def _tell(self, what: str) -> None:
        if self._thawed == threading.get_ident():
            self._thawed = None
            os.close(os.open(f"{self._reached}.{what}", os.O_CREAT | os.O_WRONLY))

    def reach(self, kind: str, what: str) -> None:
        thread = _OF_ONE.split(threading.current_thread().name)[0]
        name = f"{self._role} {'' if thread == 'MainThread' else thread + ' '}{kind} {what}"
        with self._lock:
            self._seen[name] += 1
            count = self._seen[name]
            if count > _REPEATS and (thread == "watch" or kind == "ray" or what.startswith(_POLLS)):
                return
            point = f"{name} #{count}"
            if point in self._ends:
                os.close(os.open(self._reached, os.O_CREAT | os.O_WRONLY))
                os.kill(os.getpid(), self._ends[point])
                self._thawed, self.at_commit = threading.get_ident(), kind == "commit"
            if point == self._refuse:
                os.close(os.open(self._reached, os.O_CREAT | os.O_WRONLY))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._record is not None:
                os.write(self._record, f"{point}\n".encode())
        if point == self._hang:  # without the lock: the other threads go on
            os.close(os.open(self._reached, os.O_CREAT | os.O_WRONLY))
            threading.Event().wait()


_points: _Points | None = None


def install(order: dict[str, Any]) -> None:
    """Have points in this process if its order has any: `points` holds the arguments of `_Points`.

    They are the process's role; and a file to `record` them in, or the one at which to `kill` or `freeze` it,
    to `refuse` the call for want of space, or to have its thread `hang` in it for ever, as a disk does that
    does not answer; that the point is reached is told by making the file `reached`.
    """
    global _points
    if not order.get("points"):
        return
    _points = _Points(**order["points"])
    _watch_files()
    _watch_redis()
    _watch_database()


def reach(kind: str, what: str) -> None:
    """This process is about to do this."""
    if _points is not None:
        _points.reach(kind, what)


def _watch_files() -> None:
    def named(path: Any, folder: int | None = None) -> str:
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        elif folder is not None:
            path = Path(f"/proc/self/fd/{folder}").readlink() / path
        return _CHANCE.sub("*", "/".join(Path(path).parts[-2:]))

    def watched(name: str, kind: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(path: Any, *more: Any, **options: Any) -> Any:
            reach(kind, named(path, options.get("dir_fd")))
            return real(path, *more, **options)

        setattr(os, name, call)

    for name, kind in (("fsync", "fsync"), ("rename", "rename"), ("replace", "rename")):
        watched(name, kind)
    for name in ("unlink", "rmdir"):
        watched(name, "delete")


def _watch_redis() -> None:
    import redis
    from redis.client import Pipeline

    call = redis.Redis.execute_command
    execute = Pipeline.execute

    def execute_command(self: Any, *words: Any, **options: Any) -> Any:
        what = words[3] if words[0] == "EVAL" else next((w for w in words[1:] if isinstance(w, str)), "")
        reach("redis", f"{words[0]} {what}".strip())
        return call(self, *words, **options)

    def execute_all(self: Any, *more: Any, **options: Any) -> Any:
        reach("redis", "MULTI")
        return execute(self, *more, **options)

    redis.Redis.execute_command = execute_command  # type: ignore[method-assign]
    Pipeline.execute = execute_all  # type: ignore[method-assign]


def _watch_database() -> None:
    import traceback

    from sqlalchemy import Connection, Engine, event

    def watched(kind: str, connection: Connection) -> None:
        if connection.get_execution_options().get("textvae_writes"):
            verb = next(
                frame.name
                for frame in traceback.extract_stack()[::-1]
                if "/jobs/store/" in frame.filename and frame.name not in ("writing", "__exit__")
            )
            # First: what the process is frozen at the commit of may be refused still.
            if _points is not None and (kind == "commit" or _points.at_commit):
                _points.written()
            reach(kind, verb)

    # Listeners of the class are called before those of one engine, which take the lock.
    event.listen(Engine, "begin", lambda connection: watched("begin", connection))
    event.listen(Engine, "commit", lambda connection: watched("commit", connection))
    event.listen(Engine, "rollback", lambda _: _points is not None and _points.taken_back())
    # A commit that fails is not rolled back any more.
    event.listen(Engine, "handle_error", lambda _: _points and _points.at_commit and _points.taken_back())


def watch_ray() -> None:
    """Have a point before each call of `cluster` or `jobs` into Ray, of this thread and those to come.

    No list of functions could leave one out: the interpreter tells of every call.
    """
    import ray

    if _points is None:
        return
    rays = f"{Path(ray.__file__).parent}{os.sep}"

    def told(frame: FrameType, event: str, _: object) -> None:
        caller = frame.f_back
        if (
            event == "call"
            and caller is not None
            and caller.f_code.co_filename.startswith(_OURS)
            and frame.f_code.co_filename.startswith(rays)
            and not frame.f_code.co_name.startswith("__")  # to make a value reaches nobody
            and (called := _called(caller))
        ):
            reach("ray", f"{caller.f_code.co_name}: {called}")

    threading.setprofile(told)
    sys.setprofile(told)


def _called(caller: FrameType) -> str | None:
    """What it calls now, as `ray.util.list_named_actors`; none if that is no call, as of a property."""
    line, last, begin, end = list(caller.f_code.co_positions())[caller.f_lasti // 2]
    if line is None or last is None:
        return None
    lines = linecache.getlines(caller.f_code.co_filename)[line - 1 : last]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][begin:]
    call = ast.parse(f"({''.join(lines)})", mode="eval").body
    return _name(call.func) if isinstance(call, ast.Call) else None


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return _name(node.func) if isinstance(node, ast.Call) else ast.unparse(node)


class watched_launcher:
    """The launcher with a point before each of its calls."""

    def __init__(self, launcher: Any):
        self._launcher = launcher

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._launcher, name)

        def call(*arguments: Any) -> Any:
            reach("launcher", name)
            return real(*arguments)

        return call
