"""`python -m textvae.evaluate CHECKPOINT`: every metric of a checkpoint, without the service."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from textvae.devices import DeviceError, choose, threads
from textvae.evaluate.arguments import OPTIONS, PARTS, parts

FINISHED, FAILED, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 0 done, 1 failed, 2 a wrong argument."""
    given = _parser().parse_args(arguments)
    # Only now, so that --help answers at once.
    import torch

    from textvae.checkpoint import CheckpointError
    from textvae.evaluate import EvaluationError, Options, records, showing
    from textvae.sources import SourceError

    if given.threads is not None:
        torch.set_num_threads(given.threads)
    home = Path(os.environ.get("TEXTVAE_HOME", "~/.textvae")).expanduser()
    try:
        record = records.of_checkpoint(
            given.checkpoint,
            data_folder=given.data_folder or home / "data",
            part=given.data,
            options=Options(parts=parts(given.parts), **{name: getattr(given, name) for name, *_ in OPTIONS}),
            device=choose(given.device),
            progress=_progress(),
        )
        if given.preset is not None:
            record = records.with_provenance(record, given.preset, hardware=given.hardware)
        if given.output is not None:
            records.write(given.output, record)
    except (EvaluationError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except (CheckpointError, SourceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if given.json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return FINISHED
    measured = record["evaluation"] if given.preset is not None else record
    for group, metric, value, remark in showing.rows(measured):
        shown = "-" if value is None else f"{value:.4g}"
        print(f"{group:<11} {metric:<26} {shown:>10}  {remark}".rstrip())
    for line in showing.left_out(measured):
        print(line, file=sys.stderr)
    return FINISHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m textvae.evaluate", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint's folder")
    parser.add_argument(
        "--data",
        choices=("train", "validation", "test"),
        default="validation",
        help="which of its config's reviews (validation)",
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), metavar="NAMES", help=f"some of {','.join(PARTS)}"
    )
    for name, default, text in OPTIONS:
        kind = float if isinstance(default, float) else int
        shown = "all" if default is None else default
        parser.add_argument(
            "--" + name.replace("_", "-"), type=kind, default=default, metavar="N", help=f"{text} ({shown})"
        )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record there as JSON")
    parser.add_argument(
        "--preset", metavar="NAME", help="make it a record for docs/results: with git revision and hardware"
    )
    parser.add_argument(
        "--hardware", metavar="TEXT", help="what it was trained on, for --preset (this machine)"
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument(
        "--data-folder", type=Path, metavar="DIR", help="where prepared reviews are kept (~/.textvae/data)"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1; the first GPU if there is one")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads")
    return parser


def _progress() -> Callable[[str, int, int | None], None]:
    """Live on a terminal; in a pipe, each thing once."""
    said: set[str] = set()

    def tell(what: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            far = f"{done:,}" if total is None else f"{done:,} of {total:,}"
            end = "\n" if done == total else ""
            print(f"\r\x1b[K{what}: {far}", end=end, file=sys.stderr, flush=True)
        elif what not in said:
            said.add(what)
            print(what, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
