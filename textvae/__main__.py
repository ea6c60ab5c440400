"""`python -m textvae CONFIG`: one rank without the service, from the same config to the same weights."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, cast

from textvae.config import METRICS, Config, without_service
from textvae.devices import DeviceError, choose, threads
from textvae.parsing import ConfigError, apply_override, read_yaml

if TYPE_CHECKING:
    from textvae.checkpoint import Saved

FINISHED, FAILED, USAGE, STOPPED = 0, 1, 2, 130
_SHOWN = ("loss", "reconstruction", "kl", "sentiment_accuracy", "token_accuracy", "active_units")


@dataclass(frozen=True)
class _Settings:
    """What a config's service sections say that matters here."""

    threads: int
    metric: str
    mode: Literal["max", "min"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit status: 0 finished, 1 failed, 2 a wrong config or argument, 130 stopped."""
    options = _parser().parse_args(arguments)
    try:
        config, settings = _read(options.config, options.set)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    output: Path = options.output or Path("trained") / Path(options.config).stem
    return _train(config, settings, options, output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m textvae", description=__doc__)
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML config; sections of the service may be in it"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a key, such as training.epochs=3",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where checkpoints go (trained/<config's name>)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where prepared reviews are kept (~/.textvae/data)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest whole checkpoint in the output"
    )
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:1; the first GPU if there is one"
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="CPU threads (resources.cpus_per_rank); they decide the last bits",
    )
    return parser


def _read(path: str, overrides: Sequence[str]) -> tuple[Config, _Settings]:
    mapping = read_yaml(path)
    for override in overrides:
        apply_override(mapping, override)
    config = without_service(mapping, path)
    resources, select = mapping.get("resources") or {}, mapping.get("select") or {}
    if not isinstance(resources, Mapping) or not isinstance(select, Mapping):
        raise ConfigError(["resources and select must be sections"], path)
    cpus = resources.get("cpus_per_rank", 1)
    metric, mode = select.get("metric", "sentiment_accuracy"), select.get("mode", "max")
    if not isinstance(cpus, int | float) or cpus <= 0:
        raise ConfigError([f"resources.cpus_per_rank: must be a number above 0 (got {cpus!r})"], path)
    if metric not in METRICS:
        raise ConfigError([f"select.metric: must be one of {', '.join(METRICS)} (got {metric!r})"], path)
    if mode not in ("max", "min"):
        raise ConfigError([f"select.mode: must be max or min (got {mode!r})"], path)
    return config, _Settings(max(1, int(cpus)), metric, cast(Literal["max", "min"], mode))


def _train(config: Config, settings: _Settings, options: argparse.Namespace, output: Path) -> int:
    # Only now, so that --help and a wrong config answer at once.
    import torch

    from textvae import checkpoint, heap, train
    from textvae.sources import SourceError

    try:
        device = choose(options.device)
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    torch.set_num_threads(options.threads or settings.threads)
    heap.settle(config)
    home = Path(os.environ.get("TEXTVAE_HOME", "~/.textvae")).expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
        checkpoint.sweep(output)
    except OSError as error:
        print(f"error: --output {output}: {error.strerror or error}", file=sys.stderr)
        return USAGE
    saved = checkpoint.saved_in(output)
    if saved and not options.resume:
        print(
            f"error: {output} holds checkpoints already: --resume goes on from {saved[-1].name}, "
            "or choose another --output",
            file=sys.stderr,
        )
        return USAGE
    try:
        whole, damaged = _newest_whole(output, saved)
        hooks = _Console(output, config.training.epochs, config.training.keep_last, settings, damaged)
        with _Signals(hooks):
            outcome = train.run(
                config,
                data_folder=options.data or home / "data",
                scratch=output,
                hooks=hooks,
                device=device,
                resume=whole,
            )
    except (train.TrainingError, SourceError, checkpoint.CheckpointError, OSError, ValueError) as error:
        _end_line()
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    _end_line()
    newest = hooks.saved()[-1].name
    if not outcome.finished:
        print(f"stopped at step {outcome.position.step}; --resume goes on from {output / newest}")
        return STOPPED
    print(f"finished: {output / newest}")
    return FINISHED


def _end_line() -> None:
    """End the line that live progress was written to."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _newest_whole(output: Path, saved: Sequence[Saved]) -> tuple[Path | None, set[str]]:
    """The newest checkpoint that is whole, and the names of damaged ones, which are said and passed over."""
    from textvae import checkpoint

    damaged = set()
    # First those that do not say how new they are, or nobody would hear of them.
    for each in sorted(saved, key=lambda one: (one.step < 0, one.step), reverse=True):
        try:
            checkpoint.verify(output / each.name)
        except checkpoint.CheckpointError as error:
            print(f"warning: passed over: {error}", file=sys.stderr)
            damaged.add(each.name)
        else:
            return output / each.name, damaged
    return None, damaged


class _Console:
    """Hooks that print epochs, write reports.jsonl, and keep the best and the last checkpoints."""

    def __init__(self, output: Path, epochs: int, keep_last: int, settings: _Settings, damaged: set[str]):
        self.output, self.epochs, self.keep_last, self.settings = output, epochs, keep_last, settings
        self.damaged = damaged  # names that count for nothing, and are left where they are
        self.stopping = False

    def saved(self) -> list[Saved]:
        """The checkpoints that are there, but for the damaged ones, oldest first."""
        from textvae import checkpoint

        return [each for each in checkpoint.saved_in(self.output) if each.name not in self.damaged]

    def progress(self, progress: Any) -> None:
        if sys.stderr.isatty():
            print(
                f"\r\x1b[Kepoch {progress.epoch}/{progress.epochs}  step {progress.step}/{progress.steps}  "
                f"loss {progress.loss:.4g}  {progress.tokens_per_second:,.0f} tokens/s",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def stop(self) -> bool:
        return self.stopping

    def checkpoint(self, folder: Path, digest: str, position: Any, report: Any) -> None:
        from textvae import checkpoint

        if report is not None:
            with (self.output / "reports.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(report)) + "\n")
            _end_line()
            print(
                f"epoch {report.epoch}/{self.epochs}  {report.seconds:.1f} s  "
                f"{report.tokens_per_second:,.0f} tokens/s  "
                f"training: {_metrics(report.train)}  validation: {_metrics(report.validation)}",
                flush=True,
            )
        self.damaged.discard(folder.name)  # written anew
        saved = self.saved()
        keep = checkpoint.to_keep(saved, self.keep_last, self.settings.metric, self.settings.mode)
        for each in saved:
            if each.name not in keep:
                shutil.rmtree(self.output / each.name)

    def epoch(self, report: Any) -> None:
        """Nothing: it was said with its checkpoint."""


def _metrics(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN)


class _Signals:
    """While it lasts, Ctrl-C and SIGTERM ask for a stop with a checkpoint; a second Ctrl-C ends at once."""

    def __init__(self, hooks: _Console):
        self.hooks = hooks
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.hooks.stopping:
            raise KeyboardInterrupt
        self.hooks.stopping = True
        print(
            "stopping after this step, with a checkpoint; once more to stop at once",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
