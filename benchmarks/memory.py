"""What a rank holds in memory: `python benchmarks/memory.py --folder FOLDER [--train seed imdb]`.

FOLDER holds train.parquet, unsupervised.parquet and test.parquet of IMDB. Each figure is the peak resident
memory (VmHWM) of a fresh process that prepares the reviews, learns a vocabulary of 20,000 words and reads,
encodes and batches an epoch at length 300; once for the reviews there are, and once for several copies of
them. With --train a process also takes some steps on CPU with the model and batch size of a preset.
Promised: a rank stays under 1.5 GB, and its memory does not grow with the number of reviews.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from textvae.config import Config
from textvae.parsing import parse, read_yaml

PROMISED_MB = 1500
CONFIGS = Path(__file__).parent.parent / "configs"


def main() -> None:
    """Measure, print a table, exit with 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the three Parquet files")
    parser.add_argument(
        "--copies", type=int, default=4, help="how many times the reviews, for the second figure"
    )
    parser.add_argument("--train", nargs="+", default=[], metavar="CONFIG", help="also train these presets")
    parser.add_argument("--steps", type=int, default=8, help="steps to train")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="textvae-memory-") as scratch:
        folder = Path(scratch)
        rows = [
            _apart(_read, folder, _config(options.folder, folder, copies)) for copies in (1, options.copies)
        ]
        for name in options.train:
            config = _config(options.folder, folder, 1, name)
            rows.append({"preset": name, **_apart(_train, folder, config, options.steps)})
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    grown = rows[1]["peak MB"] / rows[0]["peak MB"]
    print(f"{options.copies} times the reviews take {grown:.2f} times the memory")
    if grown > 1.15 or any(row["peak MB"] > PROMISED_MB for row in rows):
        raise SystemExit(f"more than was promised: {PROMISED_MB} MB, whatever the number of reviews")


def _config(reviews: Path, scratch: Path, copies: int, preset: str = "imdb") -> Config:
    """A preset on `copies` times all the reviews, with 20,000 words and length 300."""
    names = scratch / f"{copies}"
    names.mkdir(exist_ok=True)
    for i in range(copies):
        for name in ("train", "unsupervised"):
            link = names / f"{name}-{i}.parquet"
            if not link.exists():
                link.symlink_to(reviews.resolve() / f"{name}.parquet")
    mapping = {
        key: value
        for key, value in read_yaml(CONFIGS / f"{preset}.yaml").items()
        if key in Config.model_fields
    }
    mapping["data"] = {"source": "files", "train": [f"{names}/*.parquet"]}
    mapping["vocabulary"] = {"kind": "words", "size": 20_000, "max_length": 300}
    return parse(Config, mapping)


def _read(scratch: Path, config: Config) -> dict[str, Any]:
    from textvae.batches import Batches, framing
    from textvae.sources import prepare
    from textvae.vocabulary import build

    bare = _peak()
    corpus = prepare(config.data, scratch / "data")
    prepared = _peak()
    vocabulary = build(config.vocabulary, corpus.train.texts())
    learned = _peak()
    batches = Batches(
        corpus.train, vocabulary, framing(config), batch_size=config.training.batch_size, seed=0
    )
    start, reviews, real, every = time.perf_counter(), 0, 0, 0
    for batch in batches.epoch(0):
        reviews += len(batch)
        real += int(batch.lengths.sum())
        every += batch.tokens.numel()
    seconds = time.perf_counter() - start
    return {
        "reviews": reviews,
        "peak MB": _peak(),
        "imports": bare,
        "after preparing": prepared,
        "after learning words": learned,
        "reviews/s": round(reviews / seconds),
        "padding": f"{1 - real / every:.1%}",
    }


def _train(scratch: Path, config: Config, steps: int) -> dict[str, Any]:
    from textvae import heap
    from textvae.train import run

    heap.settle(config)

    class Few:
        """Hooks that stop after so many steps."""

        taken = 0
        peak = 0

        def progress(self, progress: object) -> None: ...

        def stop(self) -> bool:
            self.taken += 1
            self.peak = _peak()
            return self.taken >= steps

        def checkpoint(self, *args: object) -> None: ...

        def epoch(self, report: object) -> None: ...

    hooks = Few()
    start = time.perf_counter()
    run(config, data_folder=scratch / "data", scratch=scratch / "checkpoints", hooks=hooks)
    return {
        "batch": config.training.batch_size,
        "trained steps": hooks.taken,
        "peak MB": _peak(),
        "before its checkpoint": hooks.peak,
        "seconds in all": round(time.perf_counter() - start),
    }


def _peak() -> int:
    """The largest resident set of this process so far, in MB of 10^6 bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(kibibytes) * 1024 / 1e6)


def _apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a process of its own, whose peak is that of this call alone."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return dict(ours.recv())
    except EOFError as error:
        raise SystemExit(f"{function.__name__} failed; its error is above") from error
    finally:
        process.join()


def _send(
    connection: Connection, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]
) -> None:
    connection.send(function(*arguments))


if __name__ == "__main__":
    main()
