"""The same models in plain PyTorch, trained as one trains without thinking about speed.

Stock layers (nn.LSTM has two biases), logits at every position, padding included, Adam as it comes. With our
weights they give our loss; a test compares the two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textvae.batches import Batch
from textvae.config import Config
from textvae.normal import MeanNorm
from textvae.objective import KERAS_EPSILON
from textvae.scan import doubling
from textvae.vocabulary import PAD, START

Recurrence = Callable[[Tensor, Tensor, Tensor], Tensor]  # as textvae.scan.scan


class Seed(nn.Module):
    """The 2017 tutorial's model. With `one_hot` its loss, too, is computed as the tutorial did."""

    def __init__(self, config: Config, vocabulary: int, *, one_hot: bool = False):
        super().__init__()
        sizes = config.model
        assert sizes.dense is not None and sizes.sentiment_hidden is not None
        self.vocabulary, self.one_hot, self.noise_std = vocabulary, one_hot, sizes.noise_std
        self.embedding = nn.Embedding(vocabulary, sizes.embedding)
        self.encoder = nn.LSTM(
            sizes.embedding, sizes.encoder_hidden, sizes.encoder_layers, batch_first=True, bidirectional=True
        )
        self.dense = nn.Linear(2 * sizes.encoder_hidden, sizes.dense)
        self.mean = nn.Linear(sizes.dense, sizes.latent)
        self.log_var = nn.Linear(sizes.dense, sizes.latent)
        self.decoder = nn.LSTM(sizes.latent, sizes.decoder_hidden, sizes.decoder_layers, batch_first=True)
        self.output = nn.Linear(sizes.decoder_hidden, vocabulary)
        self.sentiment_dense = nn.Linear(sizes.latent, sizes.sentiment_hidden)
        self.sentiment_output = nn.Linear(sizes.sentiment_hidden, 1)

    def loss(self, batch: Batch) -> Tensor:
        """() of a batch, the mean over its reviews."""
        tokens = batch.tokens  # (batch, length)
        last = self.encoder(self.embedding(tokens))[1][0]  # (2 * layers, batch, hidden)
        h = self.dense(torch.cat((last[-2], last[-1]), dim=-1)).relu()  # (batch, dense)
        mean, log_var = self.mean(h), self.log_var(h)  # (batch, latent) each
        z = mean + torch.exp(log_var / 2) * (torch.randn_like(mean) * self.noise_std)
        repeated = z[:, None].repeat(1, tokens.shape[1], 1)  # (batch, length, latent)
        p = self.output(self.decoder(repeated)[0]).softmax(dim=-1)  # (batch, length, vocabulary)
        if self.one_hot:
            words = F.one_hot(tokens, self.vocabulary).float()  # (batch, length, vocabulary)
            reconstruction = tokens.shape[1] * F.binary_cross_entropy(p, words)
        else:
            p = p.clamp(KERAS_EPSILON, 1 - KERAS_EPSILON)
            of_target = p.gather(-1, tokens[..., None])[..., 0]  # (batch, length)
            absent = torch.log1p(-p).sum(dim=-1)
            terms = absent - torch.log1p(-of_target) + of_target.log()
            reconstruction = -terms.sum() / (len(tokens) * self.vocabulary)
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).mean()
        positive = self.sentiment_output(self.sentiment_dense(z))[:, 0].sigmoid()
        return reconstruction + kl + F.binary_cross_entropy(positive, batch.labels.float())


class Modern(nn.Module):
    """The model of n-grams and minimal GRUs, scored on padded batches."""

    def __init__(self, config: Config, vocabulary: int, recurrence: Recurrence):
        super().__init__()
        sizes = config.model
        assert config.objective.kind == "elbo" and sizes.tied
        self.objective, self.sizes, self.vocabulary = config.objective, sizes, vocabulary
        self.embedding = nn.Embedding(vocabulary, sizes.embedding)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        table = vocabulary + (sizes.ngram_buckets if sizes.ngram_order > 1 else 0)
        self.encoder = _Ngrams(table, sizes.encoder_hidden)
        width = sizes.encoder_hidden
        if sizes.naive_bayes_order:
            self.naive_bayes = _NaiveBayes(vocabulary + sizes.naive_bayes_buckets)
            width += 1
        self.mean = nn.Linear(width, sizes.latent)
        learned = sizes.variance == "learned"
        self.log_var = nn.Linear(width, sizes.latent) if learned else None
        self.decoder = _Decoder(config, recurrence)
        self.output_bias = nn.Parameter(torch.zeros(vocabulary))
        self.sentiment_output = nn.Linear(sizes.latent, 1)

    def loss(self, batch: Batch) -> Tensor:
        """() of a batch, the mean over its reviews."""
        tokens, reviews = batch.tokens, len(batch)  # (batch, length)
        mean, log_var, told = self.posterior(batch)  # (batch, latent) each
        z = mean + torch.exp(log_var / 2) * torch.randn_like(mean)
        previous = F.pad(tokens[:, :-1], (1, 0), value=START)
        hidden = self.decoder(self.embedding(previous), z)  # (batch, length, hidden)
        logits = F.linear(hidden, self.embedding.weight, self.output_bias)  # (batch, length, vocabulary)
        reconstruction = F.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), ignore_index=PAD, reduction="sum"
        )
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).mean(dim=0)  # (latent,)
        charged = kl.clamp(min=self.objective.free_bits).sum() * reviews
        logit = self.sentiment_output(told)[:, 0]
        known = (batch.labels >= 0).float()
        target = batch.labels.clamp(min=0).float()
        sentiment = F.binary_cross_entropy_with_logits(logit, target, weight=known, reduction="sum")
        total = reconstruction + self.objective.kl_weight * charged
        if self.objective.decorrelation_weight:
            scale = self.sizes.mean_scale or 1.0
            correlations = mean.T @ mean / (reviews * scale**2)  # (latent, latent)
            off = correlations - torch.diag(torch.diag(correlations))
            total = total + self.objective.decorrelation_weight * off.square().sum() * reviews
        return (total + self.objective.sentiment_weight * sentiment) / reviews

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log variance, and the mean that the sentiment is read off: (batch, latent) each."""
        sizes, kept = self.sizes, 1.0 - (self.sizes.ngram_dropout if self.training else 0.0)
        grams, scale = self.ngrams(batch, sizes.ngram_order, sizes.ngram_buckets)
        features = self.encoder.table(grams) / scale
        told = features if kept == 1.0 else self.encoder.table(dropped(grams, kept)) / (scale * kept)
        if sizes.naive_bayes_order:
            grams, scale = self.ngrams(batch, sizes.naive_bayes_order, sizes.naive_bayes_buckets)
            odds = self.naive_bayes.coefficients[grams].sum(dim=1, keepdim=True) / scale
            features = torch.cat((features, odds), dim=1)
            if kept < 1.0:
                left = self.naive_bayes.coefficients[dropped(grams, kept)]
                odds = left.sum(dim=1, keepdim=True) / (scale * kept)
            told = torch.cat((told.detach(), odds), dim=1)
        mean, told = self.mean(features), self.mean(told)
        if sizes.mean_scale is not None:  # a timed step is one of training: statistics are the batch's
            variance, center = torch.var_mean(mean, dim=0, correction=0)
            factor = sizes.mean_scale / (variance + MeanNorm.EPSILON).sqrt()
            mean, told = (mean - center) * factor, (told - center) * factor
        if self.log_var is not None:
            return mean, self.log_var(features), told
        assert sizes.mean_scale is not None
        return mean, torch.full_like(mean, math.log(1 - sizes.mean_scale**2)), told

    def ngrams(self, batch: Batch, order: int, buckets: int) -> tuple[Tensor, Tensor]:
        """Rows of the n-grams of up to `order` tokens, PAD where there is none, and the root of their number.

        (batch, n-grams) and (batch, 1), by the hash of textvae.ngrams.
        """
        tokens, lengths = batch.tokens, batch.lengths[:, None]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        found = []
        for size in range(1, min(order, tokens.shape[1]) + 1):
            count = tokens.shape[1] - size + 1
            rows = tokens
            if size > 1:
                key = torch.zeros_like(tokens[:, :count])
                for offset in range(size):
                    key = (key + tokens[:, offset : offset + count] + offset) * -7046029254386353131
                    key = key ^ (key >> 29)
                rows = self.vocabulary + (key & (2**62 - 1)) % buckets
            found.append(rows.masked_fill(places[:count] + size > lengths, PAD))
        grams = torch.cat(found, dim=1)
        return grams, (grams != PAD).sum(dim=1, keepdim=True).sqrt()


def dropped(grams: Tensor, kept: float) -> Tensor:
    """The n-grams with PAD instead of those that a draw leaves out."""
    return grams.masked_fill(torch.rand(grams.shape, device=grams.device) >= kept, PAD)


class _NaiveBayes(nn.Module):
    coefficients: Tensor

    def __init__(self, rows: int):
        super().__init__()
        self.register_buffer("coefficients", torch.zeros(rows))


class _Ngrams(nn.Module):
    def __init__(self, rows: int, width: int):
        super().__init__()
        self.table = nn.EmbeddingBag(rows, width, mode="sum", padding_idx=PAD)
        nn.init.normal_(self.table.weight, std=0.02)


class _Decoder(nn.Module):
    def __init__(self, config: Config, recurrence: Recurrence):
        super().__init__()
        sizes = config.model
        self.enter = nn.Linear(3 * sizes.embedding, sizes.decoder_hidden)
        self.layers = nn.ModuleList(
            _Layer(sizes.latent, sizes.decoder_hidden, recurrence) for _ in range(sizes.decoder_layers)
        )
        self.norm = nn.LayerNorm(sizes.decoder_hidden)

    def forward(self, embedded: Tensor, z: Tensor) -> Tensor:
        length = embedded.shape[1]
        seen = F.pad(embedded, (0, 0, 2, 0))  # (batch, 2 + length, embedding)
        x = self.enter(torch.cat([seen[:, i : i + length] for i in range(3)], dim=-1))
        for layer in self.layers:
            x = layer(x, z)
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, latent: int, hidden: int, recurrence: Recurrence):
        super().__init__()
        self.recurrence = recurrence
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, 3 * hidden)
        self.of_latent = nn.Linear(latent, 3 * hidden, bias=False)
        self.initial = nn.Linear(latent, hidden)
        self.outer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        update, candidate, opened = (self.inner(self.norm(x)) + self.of_latent(z)[:, None]).chunk(3, dim=-1)
        gate = update.sigmoid()
        states = self.recurrence(1 - gate, gate * candidate, self.initial(z))
        return x + self.outer(states * F.silu(opened))


def stepwise(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    """The recurrence h_t = decay_t * h_(t-1) + added_t, position by position: (batch, length, width)."""
    state, states = initial, []
    for d, a in zip(decay.unbind(1), added.unbind(1), strict=True):
        state = torch.addcmul(a, d, state)
        states.append(state)
    return torch.stack(states, dim=1)


def faster_recurrence(batch: int, length: int, width: int, device: torch.device) -> Recurrence:
    """Of `stepwise` and `textvae.scan.doubling` the one that is faster there and back."""
    seconds = {}
    for recurrence in (stepwise, doubling):
        for _ in range(2):  # the first one warms up
            inputs = torch.rand(2, batch, length, width, device=device, requires_grad=True)
            start = torch.zeros(batch, width, device=device)
            _wait(device)
            began = time.perf_counter()
            recurrence(inputs[0], inputs[1], start).sum().backward()
            _wait(device)
            seconds[recurrence] = time.perf_counter() - began
    return min(seconds, key=lambda each: seconds[each])


def stepper(model: Seed | Modern, config: Config, device: torch.device) -> Callable[[Batch], Tensor]:
    """One step of the plain loop; it returns the loss."""
    model.to(device).train()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.training.learning_rate, eps=config.training.adam_epsilon
    )

    def step(batch: Batch) -> Tensor:
        loss = model.loss(batch.to(device))
        optimizer.zero_grad()
        loss.backward()
        if config.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimizer.step()
        return loss.detach()

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
