"""What a model's parameters and a training's tensors come to, before any of them is made."""

from __future__ import annotations

import math

import torch

from textvae.config import Config
from textvae.heap import LOGITS_AT_ONCE
from textvae.model import TextVAE, frame_length
from textvae.parts import tokens_at_once
from textvae.softmax import BLOCK_LOGITS


def parameter_count(config: Config) -> int:
    """The trainable numbers of the model of `config`; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in TextVAE(config).parameters())


def expected_memory(config: Config, ranks: int = 1, device: str = "cpu") -> int:
    """An estimate, in bytes, of the largest memory that the tensors of one rank take in training.

    Parameters, gradients and Adam's two moments, 4 bytes each, once more the gradients when ranks share them,
    and the parameters when they are averaged; plus the activations of a batch whose every review is as long
    as can be: embeddings, six numbers per LSTM unit and position (four gates, cell, output), fifteen per
    minimal GRU's, twenty per Transformer's, two per n-gram, as much again for their gradients, and two to
    four copies of the logits computed at once. Of an autoregressive decoder only the part of the batch counts
    that is decoded at once. The process itself, torch loaded, takes some 0.3 GB beside this.
    """
    sizes = config.model
    copies = 4 + (ranks > 1) + (config.training.averaging is not None)
    weights = parameter_count(config) * copies
    positions = math.ceil(config.training.batch_size / ranks) * frame_length(config)
    encoder = sizes.embedding if sizes.latent else 0
    units = {"mingru": 15, "transformer": 20}
    if sizes.latent and sizes.encoder != "ngrams":
        encoder += units.get(sizes.encoder, 6) * 2 * sizes.encoder_hidden * sizes.encoder_layers
    elif sizes.latent:
        encoder += 2 * sizes.ngram_order
    encoder += 2 * sizes.naive_bayes_order
    fed = sizes.latent + (0 if sizes.decoder == "repeat" else sizes.embedding)
    decoder = fed + (units.get(sizes.decoder, 6) * sizes.decoder_layers + 1) * sizes.decoder_hidden
    seed = config.objective.kind == "seed"
    if config.objective.kind == "elbo" and config.objective.adversarial_weight and sizes.encoder != "ngrams":
        encoder *= 2  # each review is read as it is and perturbed
    part = max(tokens_at_once(torch.device(device)), frame_length(config))
    decoded = positions if seed else min(positions, part)
    at_once = LOGITS_AT_ONCE if seed else BLOCK_LOGITS
    logits = min(decoded * config.vocabulary.size, max(at_once, config.vocabulary.size))
    activations = 2 * (positions * encoder + decoded * decoder)
    return 4 * (weights + activations + (4 if seed else 2) * logits)
