"""Part `data`: what reading, encoding and batching take of a step."""

from __future__ import annotations

import statistics
import time
from itertools import islice
from typing import Any

import torch

from speed.ours import Ours, Say, Setting, portions
from textvae.batches import Batches, framing
from textvae.sources import prepare

WANTED = 0.05


def share(setting: Setting, device: torch.device, rounds: int, say: Say) -> dict[str, Any]:
    """For both presets: seconds that the batches of a window take, a real token, over those of a step.

    The batches come from all reviews that the preset trains on, in the order of an epoch (without IMDB, from
    snippets). Windows and steps alternate.
    """
    result: dict[str, Any] = {"wanted": f"< {WANTED:.0%}", "presets": {}}
    for preset in ("seed", "imdb-cpu"):
        say(f"data of {preset} on {device}")
        result["presets"][preset] = _share(setting, preset, device, rounds)
    return result


def _share(setting: Setting, preset: str, device: torch.device, rounds: int) -> dict[str, Any]:
    config = setting.config(preset, real=True)
    setting.settle(config)
    ours = Ours(config, setting, device)
    everything = setting.config(preset, everything=True, real=True)
    corpus = prepare(everything.data, setting.data, seed=config.seed)
    batches = Batches(
        corpus.train,
        ours.loop.vocabulary,
        framing(config),
        batch_size=config.training.batch_size,
        seed=config.seed,
    )
    window = min(50, len(batches))
    ours.step(portions(ours.window(4), 1, 1)[0][0])  # warms up
    reading, cpu, training, steps, padding = [], [], [], 0, 0.0
    for number in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        got = list(islice(batches.epoch(number), window))
        seconds, spent = time.perf_counter() - began, time.process_time() - used
        tokens = sum(int(batch.lengths.sum()) for batch in got)
        padding = 1 - tokens / sum(batch.tokens.numel() for batch in got)
        reading.append(seconds / tokens)
        cpu.append(spent / tokens)
        few = portions(got, 1, min(3, len(got)))[0]
        began, used = time.perf_counter(), time.process_time()
        for batch in few:
            ours.step(batch)
        ours.wait()
        real = sum(int(batch.lengths.sum()) for batch in few)
        training.append(((time.perf_counter() - began) / real, (time.process_time() - used) / real))
        steps += len(few)
    wall = statistics.median(r / t for r, (t, _) in zip(reading, training, strict=True))
    of_cpu = statistics.median(r / t for r, (_, t) in zip(cpu, training, strict=True))
    return {
        "reviews": len(corpus.train),
        "microseconds a real token": 1e6 * statistics.median(reading),
        "of a step": wall,
        "of a step, CPU time": of_cpu,
        "steps": steps,
        "padding": padding,
        "held": wall < WANTED,
    }
