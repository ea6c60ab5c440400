"""Adam over a model's parameters, with a step size that may differ from layer to layer."""

from __future__ import annotations

import re

import torch
from torch import nn

from textvae import objective
from textvae.config import Config


def build(config: Config, model: nn.Module) -> torch.optim.Adam:
    """Adam as the config's training section has it; with a layer_decay, one group of parameters a depth."""
    settings = config.training
    groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    if settings.layer_decay < 1:
        named = list(model.named_parameters())
        depths = {name: depth(name, config) for name, _ in named}
        groups = [
            {"params": [value for name, value in named if depths[name] == each], "depth": each}
            for each in sorted(set(depths.values()))
        ]
    return torch.optim.Adam(
        groups,
        lr=settings.learning_rate,
        eps=settings.adam_epsilon,
        fused=True,  # one pass over the memory instead of ten
    )


def depth(name: str, config: Config) -> int:
    """How many layers the parameter of this name lies below the latent; 0 for all that is not below it.

    A tied embedding is as much the decoder's last layer as the encoder's first, and goes with the former.
    """
    sizes = config.model
    if name.startswith("encoder."):
        # As nn.LSTM names them, and as a stack of minimal GRUs does; the lowest is 0.
        layer = re.search(r"_l(\d+)(_reverse)?$", name) or re.search(r"\.layers\.(\d+)\.", name)
        lowest = ".enter." in name
        return sizes.encoder_layers - int(layer[1]) if layer else sizes.encoder_layers if lowest else 1
    if name.startswith("embedding.") and sizes.encoder != "ngrams" and not sizes.tied:
        return sizes.encoder_layers + 1
    return 0


def set_rate(optimizer: torch.optim.Optimizer, config: Config, epoch: float) -> None:
    """Give each group its step size at `epoch`, counted from 0 in fractions.

    A layer's is training.layer_decay of the one's above it (Howard & Ruder, "Universal Language Model
    Fine-tuning for Text Classification", ACL 2018), but for the pretraining, which has nothing to forget.
    """
    rate = objective.learning_rate(config, epoch)
    decays = not objective.pretraining(config, int(epoch))
    for group in optimizer.param_groups:
        group["lr"] = rate * (config.training.layer_decay ** group.get("depth", 0) if decays else 1.0)
