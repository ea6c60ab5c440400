"""Processes that the stack starts, and how they are ended without ever ending another's.

A process is recorded by its pid and its birth, so that a pid that was given to someone else in the meantime
is never signalled. Every process of a stack also carries the stack's mark and the name of its part in its
environment: by them the orphans of a killed parent are found again, and what was started but not recorded.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "TEXTVAE_STACK"
_PART = "TEXTVAE_STACK_PART"

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """One part's first process: the leader of its own session."""

    name: str
    pid: int
    birth: str  # see `_birth`

    @classmethod
    def of_older_record(cls, name: str, pid: int, started: float) -> Process:
        """What was recorded before births were: `started`, in seconds since 1970, moves with the clock."""
        try:
            if abs(psutil.Process(pid).create_time() - started) <= 2:
                return cls(name, pid, _birth(pid))
        except psutil.NoSuchProcess:
            pass
        return cls(name, pid, "")

    def alive(self) -> bool:
        """Whether that very process still runs (a zombie does not)."""
        return self._handle() is not None

    def _handle(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            if _birth(self.pid) != self.birth or not _runs(process):
                return None
        except psutil.NoSuchProcess:
            return None
        return process


def start(name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start `argv` in a session of its own, its output appended to `log`.

    The new process survives the terminal and the process that started it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, _PART: name},
            start_new_session=True,
        )
    return Process(name, child.pid, _birth(child.pid))


def _birth(pid: int) -> str:
    """What no two processes with one pid share: the boot, and the kernel's ticks from it to the start.

    Unlike psutil's create_time it does not move when the clock is set. Raises psutil.NoSuchProcess.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    boot = _BOOT.read_text(encoding="ascii").strip() if _BOOT.exists() else ""  # some sandboxes have none
    # The 22nd field; the second is a name in parentheses, which may hold anything.
    return f"{boot}/{int(stat.rpartition(b')')[2].split()[19])}"


def family(
    processes: Iterable[Process],
    mark: str | None = None,
    *,
    part: str | None = None,
    keep: int | None = None,
) -> list[psutil.Process]:
    """The recorded processes that still run, all their descendants, and all that carry `mark`.

    With `part`, only those of the marked ones that belong to that part. Ray's processes rename themselves and
    thereby lose sight of their environment; those are found by the session that they share with a marked one.
    The calling process, its own ancestors and the session of the pid `keep` are never among them.
    """
    found: dict[int, psutil.Process] = {}
    for process in processes:
        handle = process._handle()
        if handle is not None:
            found[handle.pid] = handle
    if mark is not None:
        found.update((process.pid, process) for process in _marked(mark, part))
    for handle in list(found.values()):
        try:
            found.update((child.pid, child) for child in handle.children(recursive=True))
        except psutil.NoSuchProcess:
            continue  # it ended while we looked; its children are found by the mark
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for pid, process in found.items()
        if pid not in own and _runs(process) and (keep is None or _session(pid) != keep)
    ]


def end(
    processes: Iterable[Process],
    mark: str | None = None,
    *,
    part: str | None = None,
    grace: float = 10.0,
    keep: int | None = None,
) -> int:
    """End the processes with their whole families: first asked, after `grace` seconds killed.

    Returns how many processes ended. The families are collected before the first signal, since a process
    whose parent is gone is not to be found through it any more.
    """
    processes = list(processes)
    members = family(processes, mark, part=part, keep=keep)
    _signal(members, signal.SIGTERM)
    return _finish(members, lambda: family(processes, mark, part=part, keep=keep), grace)


def end_leader_first(process: Process, *, grace: float) -> int:
    """As `end`, but asks only the first process to end, which then ends its own family in order."""
    members = family([process])
    leader = [member for member in members if member.pid == process.pid]
    _signal(leader, signal.SIGTERM)
    psutil.wait_procs(leader, timeout=grace)
    return _finish(members, lambda: family([process]), 1.0)


def _finish(members: list[psutil.Process], again: Callable[[], list[psutil.Process]], grace: float) -> int:
    """Wait `grace` seconds for the members, then kill them, and whatever of the family was born meanwhile."""
    _, left = psutil.wait_procs(members, timeout=grace)
    ended = len(members)
    # What was born between the look and the signal is caught by looking again, until nothing is left.
    for _ in range(10):
        late = [process for process in again() if process not in members]
        ended += len(late)
        left = [process for process in left if _runs(process)] + late
        if not left:
            break
        _signal(left, signal.SIGKILL)
        _, left = psutil.wait_procs(left, timeout=5)
        members += late
    return ended


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log; empty if there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])


def _marked(mark: str, part: str | None) -> list[psutil.Process]:
    everyone = [(process, _session(process.pid)) for process in psutil.process_iter()]
    marked = []
    for process, session in everyone:
        try:
            environment = process.environ()
            if environment.get(MARK) == mark and part in (None, environment.get(_PART)):
                marked.append((process, session))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone, or another user's: not ours either way
    # A session whose leader we started is ours whole. A marked process in a foreign session (a command that
    # a part's child runs under a terminal, say) brings nothing but itself.
    own = {session for process, session in marked if session == process.pid or _leader_gone(session)}
    found = {process.pid: process for process, _ in marked}
    found.update((process.pid, process) for process, session in everyone if session in own)
    return list(found.values())


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _leader_gone(session: int | None) -> bool:
    return session is not None and not psutil.pid_exists(session)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # psutil checks again, before it signals, that it is still the same
        except psutil.NoSuchProcess:
            continue  # it ended by itself
