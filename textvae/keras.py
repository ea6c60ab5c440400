"""The Keras model's weights, in Keras' own layout, into a TextVAE with a repeat decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from textvae.recurrent import LSTM

if TYPE_CHECKING:
    from textvae.model import TextVAE


def copy_weights(model: TextVAE, arrays: Sequence[np.ndarray]) -> None:
    """Set the weights of `model` to `arrays`, in the order that textvae.model.from_keras_weights documents.

    Nothing is set unless all of them fit. Raises ValueError naming the position, the expected and the given
    shape of the first one that does not.
    """
    layout = _layout(model)
    if len(arrays) != len(layout):
        raise ValueError(f"the Keras model of this config has {len(layout)} arrays, got {len(arrays)}")
    values = []
    for number, ((name, weight), given) in enumerate(zip(layout, arrays, strict=True), start=1):
        # Keras keeps kernels (in, out), PyTorch (out, in); the embedding is (words, width) in both.
        transposed = weight.dim() == 2 and name != "embedding"
        expected = tuple(reversed(weight.shape)) if transposed else tuple(weight.shape)
        if np.shape(given) != expected:
            raise ValueError(
                f"array {number} of {len(layout)}, {name}: must have shape {expected}, got {np.shape(given)}"
            )
        value = torch.from_numpy(np.array(given, dtype=np.float32))
        values.append(value.T if transposed else value)
    with torch.no_grad():
        for (_, weight), value in zip(layout, values, strict=True):
            weight.copy_(value)


def _layout(model: TextVAE) -> list[tuple[str, Tensor]]:
    """Every parameter in Keras' order, named for people. Keras' gates i, f, c, o are PyTorch's i, f, g, o."""
    return [
        ("embedding", model.embedding.weight),
        *_lstm("encoder", cast(LSTM, model.encoder)),
        *_dense("dense", model.dense),
        *_dense("z_mean", model.mean),
        *_dense("z_log_var", model.log_var),
        *_lstm("decoder", cast(LSTM, model.decoder)),
        *_dense("output", model.output),
        *_dense("sentiment dense", model.sentiment_dense),
        *_dense("sentiment output", model.sentiment_output),
    ]


def _lstm(name: str, module: LSTM) -> list[tuple[str, Tensor]]:
    directions = [("", " forward"), ("_reverse", " backward")] if module.bidirectional else [("", "")]
    parts = (("weight_ih", "kernel"), ("weight_hh", "recurrent kernel"), ("bias_ih", "bias"))
    return [
        (f"{name} LSTM {layer + 1}{direction}, {part}", getattr(module, f"{weight}_l{layer}{suffix}"))
        for layer in range(module.num_layers)
        for suffix, direction in directions
        for weight, part in parts
    ]


def _dense(name: str, module: nn.Linear | None) -> list[tuple[str, Tensor]]:
    return [] if module is None else [(f"{name} kernel", module.weight), (f"{name} bias", module.bias)]
