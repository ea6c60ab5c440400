"""The Keras model's weights, in Keras' own layout, into a TextVAE with a repeat decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from textvae.config import Config
from textvae.model import TextVAE
from textvae.recurrent import LSTM


def from_keras_weights(config: Config, arrays: Sequence[np.ndarray]) -> TextVAE:
    """The model of `config` with the weights of the Keras model, on CPU, in eval mode.

    `arrays` are in Keras' layout, kernels (in, out), LSTM gates in the order i, f, c, o, one bias, and in
    this order: embedding; each encoder LSTM forward, then backward (kernel, recurrent kernel, bias each);
    dense, z_mean, z_log_var (kernel, bias each); each decoder LSTM; output dense; sentiment dense; sentiment
    output.
    A layer that the config leaves out is left out here too. ValueError names the array that does not fit.
    """
    if config.model.decoder != "repeat":
        raise ValueError("model.decoder must be repeat: the Keras model has no other")
    model = TextVAE(config)
    copy_weights(model, arrays)
    return model.eval()


def copy_weights(model: TextVAE, arrays: Sequence[np.ndarray]) -> None:
    """Set the weights of `model` to `arrays`, in the order that `from_keras_weights` documents.

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
