"""The crash points of a process: the moments right before what changes the world outside of it.

They are found by instrumentation. `install` wraps every database commit, Redis call, launcher call, fsync,
rename and delete of the process; the first time the points are recorded, later the process kills itself, with
-9, at one of them. A kill after a call is a kill before the next one, as far as anybody else can see. A write
to the database has a second point, before it begins and while it holds no lock yet: there it can be frozen.

A point is known by what is done to what, and how often that was done before, not by its number in a sequence:
two threads of a process take turns as they like.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANCE = re.compile(
    r"(?<=\.)[0-9a-f]{8}(?=\.(?:partial|old))|(?<=served\.)\d+(?=\.partial)"
    r"|(?<=tmp)\w{8}(?=\.scratch)|(?<=step-)\d{6}"
)
_POLLS = ("XREAD", "XREVRANGE")  # how often one waits is up to the clock
_REPEATS = 2  # of what a watching thread does again and again, so many are points


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
        thread = threading.current_thread().name.partition("-")[0]
        name = f"{self._role} {'' if thread == 'MainThread' else thread + ' '}{kind} {what}"
        with self._lock:
            self._seen[name] += 1
            count = self._seen[name]
            if count > _REPEATS and (thread == "watch" or what.startswith(_POLLS)):
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
