"""How fast training is, against plain PyTorch and with Ray against without.

    python benchmarks/train.py [--parts plain modern data memory ray] [--folder IMDB] [--json]

Each part lets its sides take short turns on the same reviews and compares them turn by turn:

plain   the seed's model: our loop in fp32, and in bf16 where there are units for it, against a plain one
modern  the CPU preset's model: our loop against a plain fp32 loop on padded batches in no order
data    what reading, encoding and batching take of a step
memory  what the softmax loss adds to the peak of a process at a vocabulary of 50,000
ray     a step of one rank on Ray against the same step without Ray, one thread each

FOLDER holds train.parquet, unsupervised.parquet and test.parquet of IMDB. Without it, reviews are made up,
about as long as IMDB's, and `data` looks at snippets. Where there is a GPU, plain, modern and data are
measured on it as well, together with the GPU preset's model. The figures are real tokens a second: padding
does not count. Takes some minutes; wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from speed import data, loss_memory, presets
from speed.ours import Setting
from speed.turns import Ratio

PARTS = ("plain", "modern", "data", "memory", "ray")


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    result: dict[str, Any] = {
        "machine": _machine(options.threads),
        "heap": options.heap,
        "quick": options.quick,
        "parts": {},
    }
    with tempfile.TemporaryDirectory(prefix="textvae-train-") as scratch:
        here = Path(scratch)
        kept, settled = options.data or here / "data", options.heap == "settled"
        setting = Setting(here, kept, options.folder, options.quick, settled)
        for part in PARTS:  # in this order: the allocator's settings for `modern` would stay with `plain`
            if part in options.parts:
                result["parts"][part] = measured = _measure(part, setting, options, say)
                if not options.json:
                    print("\n".join(_shown(part, measured)), flush=True)
    result["seconds"] = time.monotonic() - began
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{result['machine']}, heap {options.heap}, {result['seconds']:.0f} s in all")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--folder", type=Path, help="the three Parquet files of IMDB")
    parser.add_argument("--data", type=Path, help="where prepared reviews are kept (nowhere)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one (all that there are)")
    parser.add_argument(
        "--threads", type=int, default=_cores(), help="of PyTorch, for all but ray (all cores)"
    )
    parser.add_argument("--rounds", type=int, help="turns of each side in plain and modern (8 and 5)")
    parser.add_argument("--ray-rounds", type=int, default=40, help="turns of each side in ray (40)")
    parser.add_argument("--ray-steps", type=int, default=12, help="steps of such a turn (12)")
    parser.add_argument(
        "--positions", type=int, nargs="+", default=[2048, 8192, 32768], help="batch * length in memory"
    )
    parser.add_argument(
        "--heap",
        choices=("settled", "default"),
        default="settled",
        help="the allocator of all sides in plain, modern and data: as training sets it, or left alone",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models: shows that it works, no figures")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    # Separated by commas or by blanks.
    options.parts = [part for given in options.parts for part in given.split(",") if part]
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"--parts: {', '.join(unknown)}: must be of {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here")
    if options.rounds is not None and options.rounds < 2:
        parser.error("--rounds must be at least 2")
    return options


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _machine(threads: int) -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads{gpu}"


def _measure(part: str, setting: Setting, options: argparse.Namespace, say: Any) -> dict[str, Any]:
    if part == "memory":
        counts = [64, 256] if setting.quick else options.positions
        return loss_memory.table(counts, say)
    if part == "ray":
        from speed import on_ray  # the other parts need no Ray

        rounds, steps = (4, 3) if setting.quick else (options.ray_rounds, options.ray_steps)
        return on_ray.compare(rounds, steps, say)
    found = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    measured: dict[str, Any] = {}
    for device in found:
        if options.device not in (None, device.type):
            continue
        if part == "plain":
            measured[device.type] = presets.seed(setting, device, options.rounds or 8, say)
        elif part == "modern":
            measured[device.type] = presets.modern(setting, device, options.rounds or 5, say)
            if device.type == "cuda":
                measured["cuda, GPU preset"] = presets.large(setting, device, options.rounds or 5, say)
        else:
            measured[device.type] = data.share(setting, device, 2, say)
    return measured


def _shown(part: str, measured: dict[str, Any]) -> list[str]:
    """A part's figures as lines."""
    if part == "memory":
        return _memory_shown(measured)
    if part == "ray":
        lines = ["", f"ray: turns of {measured['steps a turn']} steps; wanted: {measured['wanted']}"]
        for name, side in measured["sides"].items():
            lines.append(f"  {name:12}" + "".join(f"  {what} {ms:.1f}" for what, ms in side.items()))
        for kind, each in measured["ratios"].items():
            lines.append(f"  on Ray / without, {kind}: {each['decided']}; {_ratio_shown(each)}")
        return lines
    lines = []
    for device, result in measured.items():
        lines += ["", f"{part} on {device}"]
        lines += _data_shown(result) if part == "data" else _sides_shown(result)
    return lines


def _sides_shown(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, side in result["sides"].items():
        extra = ""
        if "matrix GFLOP/s" in side:
            kernels = ", ".join(side["LSTM kernels"]) or "no LSTM"
            share = side["share of a large product"]
            extra = (
                f"  {side['matrix GFLOP/s']:,.0f} GFLOP/s in matrix products, "
                f"{share:.0%} of a large one; {kernels}"
            )
        lines.append(
            f"  {name:40} {side['real tokens/s, median']:10,.0f} real tokens/s"
            f" (best {side['real tokens/s, best turn']:,.0f}), "
            f"{side['ms a step, median']:,.0f} ms a step{extra}"
        )
    for name, each in result["ratios"].items():
        wanted = f"; wanted: {each['wanted']}" if each["wanted"] else ""
        lines.append(f"  {name} / {result['reference']}: {_ratio_shown(each)}{wanted}")
    lines += [f"  {name}: {value:.1%}" for name, value in result.items() if name.startswith("padding")]
    return lines


def _ratio_shown(each: dict[str, Any]) -> str:
    return Ratio(**{name: each[name] for name in Ratio.__dataclass_fields__}).shown()


def _data_shown(result: dict[str, Any]) -> list[str]:
    return [
        f"  {preset:10} {row['of a step']:.2%} of a step (of its CPU time {row['of a step, CPU time']:.2%}), "
        f"{row['microseconds a real token']:.2f} us a real token; {row['reviews']:,} reviews, "
        f"padding {row['padding']:.1%}; wanted: {result['wanted']}"
        for preset, row in result["presets"].items()
    ]


def _memory_shown(measured: dict[str, Any]) -> list[str]:
    lines = ["", f"memory: vocabulary {measured['vocabulary']:,}, width {measured['width']}, float32; MB"]
    lines.append(f"  {'positions':>10} {'ours':>8} {'plain':>8} {'one copy of the logits':>24}")
    for row in measured["rows"]:
        plain = "too much" if row["plain"] is None else f"{row['plain']:,.0f}"
        lines.append(f"  {row['positions']:10,} {row['ours']:8,.0f} {plain:>8} {row['logits MB']:24,.0f}")
    return lines


if __name__ == "__main__":
    main()
