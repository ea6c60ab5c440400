"""How much of a device's arithmetic a step uses: its matrix products, against one that is large."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speed.ours import Ours
from speed.turns import Portion
from textvae.batches import Batch
from textvae.config import Config


def matrix_flops(config: Config, vocabulary: int, work: Sequence[Portion]) -> list[float]:
    """Floating-point operations of the matrix products of each portion's steps.

    Two for each weight and position, three times that with the backward pass. Those of single vectors a
    review are left out, as is what is computed twice to save memory.
    """
    sizes = config.model
    hidden, per_position = sizes.decoder_hidden, 0
    if sizes.encoder == "lstm" and sizes.latent:
        width = sizes.embedding
        for _ in range(sizes.encoder_layers):
            per_position += 2 * 4 * sizes.encoder_hidden * (width + sizes.encoder_hidden)
            width = 2 * sizes.encoder_hidden
    if sizes.decoder == "mingru":
        per_position += 3 * sizes.embedding * hidden + sizes.decoder_layers * 4 * hidden * hidden
    else:
        width = sizes.latent + (sizes.embedding if sizes.decoder == "autoregressive" else 0)
        for _ in range(sizes.decoder_layers):
            per_position += 4 * hidden * (width + hidden)
            width = hidden
    counted = []
    for portion in work:
        flops = 0.0
        for batch in portion:
            positions = batch.tokens.numel()
            scored: float = positions
            if config.objective.kind == "elbo":
                scored = int(batch.lengths.sum()) * config.objective.scored_share
            flops += 6.0 * (positions * per_position + scored * hidden * vocabulary)
        counted.append(flops)
    return counted


def measured(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product in that precision: the best of a few."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def lstm_kernels(ours: Ours, batch: Batch) -> set[str]:
    """The operators that compute LSTMs in a step: _cudnn_rnn is cuDNN's, mkldnn_rnn_layer oneDNN's."""
    with _Seen() as seen:
        ours.step(batch)
        ours.wait()
    return {name for name in seen.names if "rnn" in name or "lstm" in name}


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
