"""What can go wrong on the command line, as one line on stderr and an exit code that scripts can use."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import IO, Any, ClassVar

import click

OK, FAILED, USAGE, NOT_FOUND, UNREACHABLE, CANCELLED, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 124, 130

EXIT_CODES: dict[int, str] = {
    OK: "done",
    FAILED: "failed: the job failed, a check or a step of the demo failed",
    USAGE: "the command line, a config or the data is wrong",
    NOT_FOUND: "no such job, model or version, or an abbreviation that fits several",
    UNREACHABLE: "the service, Redis, the database or the served model cannot be reached",
    CANCELLED: "the job was cancelled",
    TIMED_OUT: "the time given to wait ran out",
    INTERRUPTED: "interrupted by Ctrl-C",
}


class Failure(click.ClickException):
    """An expected failure: shown as `error: ...`, without a traceback."""

    exit_code: ClassVar[int] = FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        # One line; what follows it, if anything, is the end of a log.
        first, _, rest = self.format_message().partition("\n")
        click.echo(f"error: {first}", file=file, err=file is None)
        for line in rest.splitlines():
            click.echo(f"  {line}", file=file, err=file is None)


class Wrong(Failure):
    """What was asked for cannot be done as it was written."""

    exit_code = USAGE


class NotFound(Failure):
    """No such job, model or version."""

    exit_code = NOT_FOUND


class Unreachable(Failure):
    """A part of the service that is needed does not answer."""

    exit_code = UNREACHABLE


# Errors of the layers below, by module and class, so that translating one imports nothing: a class whose
# module is not loaded cannot have been raised. Matched along the base classes, first hit wins.
_EXPECTED: dict[tuple[str, str], int] = {
    ("textvae.parsing", "ConfigError"): USAGE,
    ("textvae.sources", "SourceError"): USAGE,
    ("textvae.checkpoint", "CheckpointError"): FAILED,
    ("textvae.artifacts", "ArtifactError"): FAILED,
    ("jobs.settings", "SettingsError"): USAGE,
    ("jobs.store", "NotFound"): NOT_FOUND,
    ("jobs.store", "Ambiguous"): NOT_FOUND,
    ("jobs.store", "StoreUnavailable"): UNREACHABLE,
    ("jobs.store", "StoreError"): USAGE,  # a conflict: what was asked contradicts what is recorded
    ("jobs.queue", "QueueUnavailable"): UNREACHABLE,
    ("jobs.service", "InvalidRequest"): USAGE,
    ("jobs.backup", "BackupError"): FAILED,
    ("cluster.stack", "StackError"): UNREACHABLE,
    ("cluster.serving", "ServingError"): UNREACHABLE,
    ("redis.exceptions", "RedisError"): UNREACHABLE,
    ("sqlalchemy.exc", "OperationalError"): UNREACHABLE,
    ("builtins", "ConnectionError"): UNREACHABLE,
    ("builtins", "PermissionError"): FAILED,
}


# What a disk says that takes nothing more, of whatever is written.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def translate(error: BaseException) -> Failure | None:
    """The failure that stands for an expected error of a layer below; None for one that nobody foresaw."""
    if isinstance(error, OSError) and error.errno in _FULL:
        where = error.filename or "the output"
        return Failure(f"{where} cannot be written: {error.strerror}; make room, or write elsewhere")
    if isinstance(error, OSError) and error.errno == errno.EIO:
        # Of a file that is open already, Python does not tell which, nor what was tried.
        return Failure(f"{error.filename or 'a file or the output'}: {error.strerror}; is the disk in order?")
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return Wrong(f"{error.object!a} is not UTF-8")  # an argument, as Python keeps its bytes
    for base in type(error).__mro__:
        for (module, name), code in _EXPECTED.items():
            # A module that grew into a folder keeps its name as the folder's.
            if base.__name__ == name and (base.__module__ + ".").startswith(module + "."):
                failure = {USAGE: Wrong, NOT_FOUND: NotFound, UNREACHABLE: Unreachable}.get(code, Failure)
                text = str(error) if name == "StackError" else one_line(str(error))
                return failure(text or base.__name__)
    return None


def report(error: click.ClickException) -> int:
    """Print one line (two for a mistyped command line) on stderr; returns the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError):
        click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
    elif isinstance(error, Failure):
        error.show()
    else:
        message = one_line(error.format_message())
        click.echo(f"error: {message[:1].lower()}{message[1:]}", err=True)
        context = getattr(error, "ctx", None)
        if isinstance(error, click.UsageError) and context is not None:
            click.echo(f"help:  {context.command_path} -h", err=True)
    return error.exit_code


def one_line(text: str) -> str:
    """The text with its line breaks turned into spaces, so that an error stays one line."""
    return " ".join(text.split())


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'list'?)`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
