"""What runs inside an attempt's actor: the lease, training, the records, the log.

The store decides whether this attempt still counts. Every write carries its number and is refused once
another attempt is the job's active one, or the job has ended; then everything here stops at once, ranks
included. Losing Redis, or the database for a while, stops nothing.
"""

from __future__ import annotations

import os
import traceback
from typing import Any, NoReturn

from jobs.attempt.log import AttemptLog
from jobs.attempt.parts import Fit, FitResult, Timings, Tools
from jobs.attempt.records import Records
from jobs.attempt.work import Work
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import Cause, Store
from textvae.parsing import ConfigError

__all__ = ["AttemptLog", "Fit", "FitResult", "Records", "Timings", "Tools", "Work", "main", "real_tools"]


def main(arguments: dict[str, Any]) -> None:
    """The actor's function: work on attempt `number` of `job`, with `settings` (Settings.to_dict)."""
    settings = Settings.from_dict(arguments["settings"])
    job, number = str(arguments["job"]), int(arguments["number"])
    with (
        AttemptLog(settings.attempt_log(job, number), label=f"{job}-{number}") as log,
        log.hearing("textvae", "cluster", "jobs"),
    ):
        try:
            store = Store(settings.database_url)
            queue = Queue(settings.redis_url)
            Work(store, queue, settings, job, number, log, real_tools(settings)).run()
        except BaseException:
            log.write(traceback.format_exc())
            raise


def real_tools(settings: Settings) -> Tools:
    """The parts that the service uses. Imports torch and ray."""
    from cluster import faults, training
    from textvae import checkpoint
    from textvae.artifacts import Artifacts
    from textvae.sources import SourceError

    def hopeless(error: BaseException) -> bool:
        if isinstance(error, training.RankError):
            return error.permanent
        return isinstance(error, ConfigError | SourceError)

    def infrastructure(error: BaseException) -> Cause | None:
        if isinstance(error, training.RankError) and error.fault is not None:
            return Cause(error.fault)
        fault = faults.of_host(error)
        return None if fault is None else Cause(fault)

    def leave() -> NoReturn:
        # Ray Train's ranks belong to this process and end with it. Nothing gentler reaches a rank that hangs.
        os._exit(0)

    return Tools(
        fit=training.fit,
        artifacts=Artifacts(settings.storage),
        verify=checkpoint.verify,
        broken=checkpoint.CheckpointError,
        hopeless=hopeless,
        leave=leave,
        infrastructure=infrastructure,
    )
