"""An attempt's training: textvae.train on every rank of a TorchTrainer.

`fit` runs inside an attempt (cluster.launching). Ranks talk to it through the attempt's inbox and not
through Ray Train, whose reports wait for the controller's next look: progress is sent and forgotten, a
checkpoint is put into the artifact store by rank 0 and training goes on once its message has been answered.
Ray Train is told the metrics of each epoch as well, for its tab of the dashboard. Nothing is retried here:
that is the service's to decide.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from cluster import faults, launching, scratch
from cluster.faults import Fault
from cluster.ranklog import logging_to
from textvae import heap
from textvae.artifacts import ArtifactError, Artifacts
from textvae.checkpoint import CheckpointError, Position
from textvae.config import Config
from textvae.parsing import ConfigError, parse
from textvae.sources import SourceError
from textvae.train import Progress, Report, TrainingError, run

# Set in the attempt's process, from where Ray Train hands them on.
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # by default a dead rank and the end are noticed 2 s late
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # by default a frozen rank is waited for 30 s more
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less to start; a lost node is noticed anyway
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a config's relative paths stay what they were
}
# What another attempt would run into again: these come of the config or the data, not of the cluster.
_PERMANENT = (TrainingError, SourceError, ConfigError)
_ANSWER_SECONDS = 600  # until the attempt must have recorded a checkpoint
_FAREWELL_SECONDS = 10

OnMessage = Callable[[dict[str, Any]], dict[str, Any]]

logger = logging.getLogger(__name__)


class RankError(TrainingError):
    """A rank failed and took the others along.

    `permanent` says that trying again would fail alike; `fault` how the cluster, not training, is to blame.
    """

    def __init__(self, message: str, *, permanent: bool = False, fault: Fault | None = None):
        super().__init__(message)
        self.permanent = permanent
        self.fault = fault


@dataclass(frozen=True)
class FitResult:
    """How an attempt's training ended, and where."""

    status: Literal["finished", "stopped"]
    position: Position


def fit(
    config: dict[str, Any],
    *,
    ranks: int,
    cpus_per_rank: float,
    gpus_per_rank: float,
    data_folder: Path | str,
    storage: str,
    prefix: str,
    resume: tuple[str, str] | None,
    ray_storage: str,
    name: str,
    on_message: OnMessage,
    start_timeout: float = 300.0,
    max_ranks: int | None = None,
    silence: float = 60.0,
) -> FitResult:
    """Train the textvae.config.Config that `config` dumps to, on `ranks` processes; blocks until it ended.

    With `max_ranks`, other parts of the same training may have other numbers of them, up to that.
    Each rank prepares its data in `data_folder` of its node. Checkpoints become artifacts of `storage`
    named `<prefix>/epoch-01` and so on; `resume` is the name and digest of the one to go on from.
    `ray_storage` and `name` are where Ray Train keeps its own notes.

    `on_message` is called, one message at a time, with

        {"kind": "progress", and the fields of textvae.train.Progress}
        {"kind": "checkpoint", "name", "digest", "position": {...}, "report": {...} or None}
        {"kind": "log", "text"}

    and answers {"stop": bool}; a stop ends training with a checkpoint of the step it is at. If it raises,
    training ends and `fit` raises the same. Raises RankError, which names the rank and its error, when a
    rank fails, its process has not answered for `silence` seconds (it is frozen, or its node out of reach),
    or the ranks have not started within `start_timeout` seconds.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from cluster.trainer import Trainer  # slow to import, as it brings all of Ray Train

    parse(Config, config)  # a wrong config fails here, before any rank starts
    os.environ.update(
        _RAY_TRAIN,
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=str(start_timeout),
        RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S=str(silence),
    )
    desk = _Desk(on_message)
    trainer = Trainer(
        _rank,
        train_loop_config={
            "attempt": launching.own_name(),
            "config": config,
            "data_folder": str(data_folder),
            "storage": storage,
            "prefix": prefix,
            "resume": resume,
            "max_ranks": max_ranks,
            "threads": max(1, int(cpus_per_rank)),
            "gpus": gpus_per_rank > 0,
        },
        # gloo brings the ranks together everywhere; those that have GPUs then agree on nccl.
        torch_config=TorchConfig(backend="gloo", timeout_s=7200),
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=gpus_per_rank > 0,
            resources_per_worker={"CPU": cpus_per_rank} | ({"GPU": gpus_per_rank} if gpus_per_rank else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=ray_storage,
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )
    launching.inbox(desk.take)
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:  # or the controller died
        if not desk.complete:
            raise desk.reason(error) from None
        # A head that does not answer cannot take the ranks' places back; they go with this attempt.
        desk.log(f"Ray could not clear away after training: {_line(_root(error))}")
    finally:
        launching.inbox(None)
    if desk.result is None:
        raise RankError("the ranks ended without saying how")
    return desk.result


class _Desk:
    """Takes the ranks' messages: hands the service's on, keeps how training ended to itself."""

    def __init__(self, on_message: OnMessage):
        self.on_message = on_message
        self.result: FitResult | None = None
        self.refusal: BaseException | None = None
        self.failures: list[dict[str, Any]] = []

    def take(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["kind"] == "end":
            self.result = FitResult(message["status"], Position(**message["position"]))
            return {}
        if message["kind"] == "failure":
            self.failures.append(message)
            return {}
        if self.refusal is not None:
            raise self.refusal
        try:
            return self.on_message(message)
        except Exception as error:
            self.refusal = error  # fit raises it when the ranks have gone
            raise

    @property
    def complete(self) -> bool:
        """Whether training had ended, and all of it was recorded, whatever Ray says later."""
        return self.result is not None and self.refusal is None and not self.failures

    def log(self, text: str) -> None:
        """A line for the attempt's log."""
        with contextlib.suppress(Exception):  # it must not hide how training ended
            self.on_message({"kind": "log", "text": text})

    def reason(self, error: Any) -> BaseException:
        """Why training failed: what the inbox refused, else the first rank's own error, else how one died."""
        if self.refusal is not None:
            return self.refusal
        # When a rank fails, the others fail at their next exchange with it. That is not the reason.
        primary = [failure for failure in self.failures if not failure["secondary"]]
        if primary:
            first = primary[0]
            self.log(f"rank {first['rank']} failed:\n{first['traceback']}")
            return RankError(
                f"rank {first['rank']}: {first['error']}",
                permanent=first["permanent"],
                fault=first["fault"],
            )
        died = {
            rank: failure
            for rank, failure in sorted(getattr(error, "worker_failures", {}).items())
            if _lost(_root(failure)) and not isinstance(failure, ray.exceptions.RayTaskError)
        }
        if died:
            return RankError(
                "; ".join(f"rank {rank} died: {_line(_root(failure))}" for rank, failure in died.items()),
                fault=_fault([_root(failure) for failure in died.values()]),
            )
        if self.failures:
            # Each of them only lost another: that one went without a word.
            first = self.failures[0]
            return RankError(f"rank {first['rank']}: {first['error']}", fault="rank-lost")
        return RankError(_line(_root(error)), fault=_fault([_root(error)]))


def _fault(errors: list[BaseException]) -> Fault | None:
    """How the cluster is to blame for ranks that ended with these errors of Ray; none if it is not."""
    if any(isinstance(error, ray.exceptions.OutOfMemoryError) for error in errors):
        return "out-of-memory"
    if any(isinstance(error, ray.exceptions.OutOfDiskError) for error in errors):
        return "disk"
    if any(type(error).__name__ == "WorkerGroupStartupTimeoutError" for error in errors):
        return "start-timeout"
    if any(_lost(error) and not isinstance(error, ray.exceptions.RayTaskError) for error in errors):
        return "rank-lost"
    return None


# Ray Train's own errors, which it does not export.
_LOSSES = ("WorkerHealthCheckTimeoutError", "WorkerGroupStartupFailedError")


def _lost(error: BaseException) -> bool:
    """Whether Ray says so of a rank: it cannot reach it, hears nothing of it, or saw it die as it started."""
    return type(error).__name__ in _LOSSES or isinstance(error, ray.exceptions.RayError)


def _root(error: BaseException) -> BaseException:
    for name in ("controller_failure", "health_check_failure", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _root(inner)
    return error


def _line(error: BaseException) -> str:
    """The error's class and the first lines of what it says, as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}" if lines else type(error).__name__


def _rank(arguments: dict[str, Any]) -> None:
    """What every rank runs, in a process of its own."""
    import torch

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    attempt = ray.get_actor(arguments["attempt"], namespace=launching.NAMESPACE)
    torch.set_num_threads(arguments["threads"])
    try:
        with scratch.folder() as folder, logging_to(attempt, rank):
            # The attempt counts as running from its ranks' first word on; preparing data can take long.
            node = ray.get_runtime_context().get_node_id()
            logger.info(
                "started, one of %d, on node %s (%s)", world_size, node, ray.util.get_node_ip_address()
            )
            config = parse(Config, arguments["config"])
            heap.settle(config)
            store = Artifacts(arguments["storage"])
            device, group = _device(arguments["gpus"], world_size)
            resume: Path | None = None
            digest: str | None = None
            if arguments["resume"] is not None:
                resumed, digest = arguments["resume"]
                resume = store.fetch(resumed, folder / "fetched")
                logger.info("resuming from %s", resumed)
            outcome = run(
                config,
                data_folder=Path(arguments["data_folder"]),
                scratch=folder,
                hooks=_Messages(attempt, store, arguments["prefix"]),
                rank=rank,
                world_size=world_size,
                max_ranks=arguments["max_ranks"],
                device=device,
                resume=resume,
                digest=digest,
                group=group,
            )
        if rank == 0:
            status = "finished" if outcome.finished else "stopped"
            message = {"kind": "end", "status": status, "position": asdict(outcome.position)}
            ray.get(attempt.deliver.remote(message), timeout=_ANSWER_SECONDS)
    except Exception as error:
        _say_goodbye(attempt, rank, error)
        raise


def _device(wanted: bool, world_size: int) -> tuple[Any, Any]:
    """This rank's device, and the group for exchanges between GPUs (None: the gloo group that there is).

    Asked of the ranks themselves, as the node of the attempt may have no GPU, nor a PyTorch that knows them.
    """
    import torch
    import torch.distributed as dist

    usable = wanted and torch.cuda.is_available()
    if world_size > 1:
        on_all = torch.tensor(int(usable), dtype=torch.int32)
        dist.all_reduce(on_all, dist.ReduceOp.MIN)
        usable = bool(on_all.item())
    if not usable:
        if wanted:
            logger.warning(
                "a GPU was asked for, but PyTorch %s can use none here: training on CPU", torch.__version__
            )
        return torch.device("cpu"), None
    device = ray.train.torch.get_device()
    return device, dist.new_group(backend="nccl") if world_size > 1 else None


def _say_goodbye(attempt: Any, rank: int, error: BaseException) -> None:
    """Tell the attempt why this rank fails."""
    with contextlib.suppress(ray.exceptions.RayError):  # the attempt is gone, nobody is there to be told
        ray.get(attempt.deliver.remote(_farewell(rank, error)), timeout=_FAREWELL_SECONDS)


def _farewell(rank: int, error: BaseException) -> dict[str, Any]:
    if isinstance(error, ray.exceptions.RayTaskError):
        error = getattr(error, "cause", error)
    text, fault = str(error), faults.of_host(error)
    unusable = isinstance(error, _PERMANENT) and not isinstance(error, CheckpointError | ArtifactError)
    return {
        "kind": "failure",
        "rank": rank,
        "error": f"{type(error).__name__}: {text}",
        "traceback": "".join(traceback.format_exception(error)).rstrip(),
        "fault": fault,
        "permanent": unusable and fault is None,  # the source that a full disk could not prepare is none
        "secondary": _of_another(error),
    }


def _of_another(error: BaseException) -> bool:
    """Whether all that failed is what another rank was needed for: PyTorch says so in RuntimeErrors alone."""
    if not isinstance(error, RuntimeError) or isinstance(error, _PERMANENT):
        return False
    said = ("Connection closed by peer", "Connection reset by peer", "gloo")
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or any(
        each in str(error) for each in said
    )


class _Messages:
    """textvae.train.Hooks that send messages to the attempt."""

    def __init__(self, attempt: Any, store: Artifacts, prefix: str):
        self.attempt = attempt
        self.store = store
        self.prefix = prefix
        self.stopping = False
        self.pending: Future[dict[str, Any]] | None = None  # the progress message under way

    def progress(self, progress: Progress) -> None:
        self._collect()
        if self.pending is None:  # the attempt is busy otherwise; the next one will say more
            self.pending = self.attempt.deliver.remote({"kind": "progress", **asdict(progress)}).future()

    def stop(self) -> bool:
        self._collect()
        return self.stopping

    def checkpoint(self, folder: Path, digest: str, position: Position, report: Report | None) -> None:
        name = f"{self.prefix}/{folder.name}"
        self.store.put(folder, name)
        shutil.rmtree(folder)
        message = {
            "kind": "checkpoint",
            "name": name,
            "digest": digest,
            "position": asdict(position),
            "report": asdict(report) if report else None,
        }
        answer = ray.get(self.attempt.deliver.remote(message), timeout=_ANSWER_SECONDS)
        self.stopping = self.stopping or bool(answer.get("stop"))

    def epoch(self, report: Report) -> None:
        ray.train.report(
            {f"validation_{name}": value for name, value in report.validation.items()}
            | {f"train_{name}": value for name, value in report.train.items()}
            | {"epoch": report.epoch, "step": report.step}
        )

    def _collect(self) -> None:
        """Take the answer to the last progress message, if it has come; raises what the attempt raised."""
        if self.pending is not None and self.pending.done():
            pending, self.pending = self.pending, None
            self.stopping = self.stopping or bool(pending.result().get("stop"))
