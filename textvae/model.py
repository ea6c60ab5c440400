"""TextVAE: a review -> a latent vector -> the review again, and its sentiment off the same vector.

Two models of one shape. With objective `seed` it is the Keras model of a 2017 tutorial, to the letter:
every position is processed, padding too, and the decoder sees the same z at each position. With objective
`elbo` the decoder is fed z and the previous token, and padding has no influence on anything.

Keras' LSTM of 2017 had hard_sigmoid gates by default; since Keras 2.3 they are sigmoid, and ours are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textvae import decoders, encoders, keras, steps
from textvae.config import Config
from textvae.decoders import Decoder, LSTMDecoder
from textvae.dropout import dropout, without_tokens
from textvae.encoders import MinGRUEncoder, NgramEncoder, Posterior, Read
from textvae.ngrams import NaiveBayes
from textvae.normal import Affine, MeanNorm
from textvae.objective import Losses
from textvae.recurrent import LSTM
from textvae.softmax import linear_cross_entropy
from textvae.vocabulary import END, OOV, PAD, START

if TYPE_CHECKING:
    from textvae.batches import Batch

COLDEST = 1e-6  # below this temperature the likeliest token is taken: float32 overflows not far from there


class TextVAE(nn.Module):
    """A sentiment text VAE of the sizes that `config` gives; `vocabulary_size` overrides the config's.

    Only training should call it as a function: see `forward`. Its parts can be used alone; call eval() first,
    or dropout applies. Weights are drawn from PyTorch's global generator, as Keras draws them.
    """

    def __init__(self, config: Config, vocabulary_size: int | None = None):
        super().__init__()
        sizes = config.model
        self.config = config
        self.vocabulary_size = config.vocabulary.size if vocabulary_size is None else vocabulary_size
        self.autoregressive = sizes.decoder != "repeat"
        # The tokens of the longest review: of the seed's with START, of the other's with END.
        self.frame_length = frame_length(config)

        self.embedding = nn.Embedding.from_pretrained(
            torch.empty(self.vocabulary_size, sizes.embedding), freeze=False
        )
        self.encoder = encoders.build(sizes, self.vocabulary_size)
        width = self.encoder.width if self.encoder else 0
        self.naive_bayes: NaiveBayes | None = None
        if self.encoder and sizes.naive_bayes_order:
            self.naive_bayes = NaiveBayes(
                self.vocabulary_size,
                order=sizes.naive_bayes_order,
                buckets=sizes.naive_bayes_buckets,
                dropout=sizes.ngram_dropout,
                # No vector of an n-gram encoder learns the sentiment beside it: see `_read`.
                folds=0 if sizes.encoder == "ngrams" else 4,
            )
            width += 1
        self.dense = nn.Linear(width, sizes.dense) if self.encoder and sizes.dense else None
        self.mean = nn.Linear(sizes.dense or width, sizes.latent) if self.encoder else None
        learned = self.encoder and sizes.variance == "learned"
        self.log_var = nn.Linear(sizes.dense or width, sizes.latent) if learned else None
        normed = self.encoder and sizes.mean_scale
        self.mean_norm = MeanNorm(sizes.latent, sizes.mean_scale) if normed and sizes.mean_scale else None

        self.decoder: LSTM | Decoder
        if self.autoregressive:
            self.decoder = decoders.build(sizes)
        else:
            self.decoder = LSTM(sizes.latent, sizes.decoder_hidden, sizes.decoder_layers)
        self.output = nn.Linear(sizes.decoder_hidden, self.vocabulary_size)
        if sizes.tied:
            self.output.register_parameter("weight", None)

        hidden = sizes.sentiment_hidden if self.encoder else None
        self.sentiment_dense = nn.Linear(sizes.latent, hidden) if hidden else None
        self.sentiment_output = nn.Linear(hidden or sizes.latent, 1) if self.encoder else None
        bag = config.objective.kind == "elbo" and config.objective.words_weight > 0
        self.words = nn.Linear(sizes.latent, sizes.decoder_hidden) if bag else None

        # Keras' initial weights; an LSTM sets its own.
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if module.weight is not None:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.decoder, Decoder) and not isinstance(self.decoder, LSTMDecoder):
            self.decoder.begin()
        if isinstance(self.encoder, MinGRUEncoder):
            self.encoder.begin()

    # Training

    def forward(
        self,
        batch: Batch,
        *,
        kl_weight: float = 1.0,
        pretraining: bool = False,
        sentiment_counts: bool = True,
        generator: torch.Generator | None = None,
        over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> Losses:
        """Encode, sample, decode, score: all of a step but the division, in one call, as DDP's hooks want it.

        z is sampled in validation too, as the original did. Words are dropped, tokens left unscored and bits
        given for free only in training. While `pretraining`, the reconstruction is all that counts, of the
        decoder alone if the objective says so; without `sentiment_counts` it is the bound that counts alone.
        `over_ranks` sums a tensor over all ranks of the step. A batch without reviews (a rank may have none
        at an epoch's end) gives zeros that still reach every parameter.
        """
        if self.autoregressive:
            return steps.elbo(self, batch, kl_weight, pretraining, sentiment_counts, generator, over_ranks)
        return steps.seed(self, batch, kl_weight, generator)

    def cross_entropy(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of hidden (rows, width): the summed loss (), each row's, whether its target is the likeliest."""
        weight = self.embedding.weight if self.output.weight is None else self.output.weight
        return linear_cross_entropy(hidden, weight, self.output.bias, targets)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary) of hidden (..., width)."""
        weight = self.embedding.weight if self.output.weight is None else self.output.weight
        return F.linear(hidden, weight, self.output.bias)

    # The parts

    def encode(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, (batch, latent) each, of tokens (batch, length).

        `lengths` (batch,) are the real tokens; without them, every token but PAD at the end is real. With
        objective seed padding is processed like any token and `lengths` is not looked at. `over_ranks` sums a
        tensor over the ranks of a training step.
        """
        posterior = self.posterior(tokens, lengths, over_ranks)
        return posterior.mean, posterior.log_var

    def posterior(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        over_ranks: Callable[[Tensor], Tensor] | None = None,
        shown: Tensor | None = None,
    ) -> Posterior:
        """What `encode` says, and the mean that the sentiment is read off.

        `shown` (batch, length) are what the encoder reads in the place of `tokens`, in pretraining.

        In training that is the mean of what dropout leaves of a review's n-grams, if any are looked at:
        without it a linear classifier of n-grams overfits, while a decoder that is told less than it could
        be only learns to listen less.
        """
        if self.autoregressive and lengths is None:
            lengths = (tokens != PAD).sum(dim=1)
        if self.encoder is None:
            nothing = torch.zeros(len(tokens), 0, device=tokens.device)
            return Posterior(nothing, nothing, nothing)
        read = self._read(tokens, lengths, shown)
        mean, h = self.mean_of(read.features)
        norm: Affine | None = self.mean_norm(mean, over_ranks) if self.mean_norm is not None else None
        mean = told = norm(mean) if norm else mean
        if read.told is not read.features:
            told, _ = self.mean_of(read.told)
            told = norm(told) if norm else told
        if self.log_var is not None:
            return Posterior(mean, self.log_var(h).float(), told, norm, read)
        assert self.mean_norm is not None
        log_var = torch.full_like(mean, math.log1p(-(self.mean_norm.scale**2)))
        return Posterior(mean, log_var, told, norm, read)

    def mean_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of features (batch, width): the mean (batch, latent) before its norm, and what it is read off."""
        assert self.mean is not None
        h = features if self.dense is None else self.dense(features).relu()  # (batch, dense)
        # Not in bf16: before their norm means may lie far from 0, next to how little they differ.
        with torch.autocast(h.device.type, enabled=False):
            return self.mean(h.float()), h

    def raw_means(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The posterior means before their norm: (batch, latent)."""
        assert self.encoder is not None
        return self.mean_of(self._read(tokens, lengths).features)[0]

    def _read(self, tokens: Tensor, lengths: Tensor | None, shown: Tensor | None = None) -> Read:
        """What the encoder makes of a batch, with one more feature if naive Bayes has a word in it.

        That one is of the `tokens` even where the encoder is `shown` others: by them it knows which of its
        folds a review is of.
        """
        assert self.encoder is not None
        shown = tokens if shown is None else shown
        embedded = self._embed(shown)  # (batch, length, embedding)
        read = self.encoder.read(shown, embedded, lengths if self.autoregressive else None)
        if self.naive_bayes is None:
            return read
        assert lengths is not None
        if self.training and isinstance(self.encoder, NgramEncoder):
            # Vectors that the sentiment trains come to know its reviews by heart; the feature knows better.
            unmoved = read.told.detach().requires_grad_()
            read = read._replace(told=unmoved, inputs=unmoved)
        known = told = self.naive_bayes(tokens, lengths)  # (batch, 1)
        if self.training and self.naive_bayes.dropout:
            told = self.naive_bayes(tokens, lengths, dropout=self.naive_bayes.dropout)

        def beside(features: Tensor, feature: Tensor) -> Tensor:
            return torch.cat((features, feature.to(features.dtype)), dim=-1)

        features = beside(read.features, known)
        same = read.told is read.features and told is known
        return read._replace(
            features=features,
            told=features if same else beside(read.told, told),
            onward=lambda inputs: beside(read.onward(inputs), told),
        )

    def sample_posterior(
        self, mean: Tensor, log_var: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """z = mean + exp(log_var / 2) * eps, eps ~ N(0, noise_std^2): (batch, latent)."""
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + torch.exp(log_var / 2) * (noise * self.config.model.noise_std)

    def decode(self, z: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits (batch, length, vocabulary) of z (batch, latent).

        The repeat decoder ignores `tokens`. The autoregressive one is fed START and tokens[:, :-1], whatever
        they are; to write without being fed, see `generate`.
        """
        if not self.autoregressive:
            return self.logits(self.hidden_states(z))
        if tokens is None:
            raise ValueError(
                "the autoregressive decoder needs the tokens that it is fed; generate() needs none"
            )
        return self.logits(self.hidden_states(z, F.pad(tokens[:, :-1], (1, 0), value=START)))

    def token_losses(self, z: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How well z (batch, latent) explains tokens (batch, length), each token before it being known.

        Three tensors (batch, length): -log p(token | tokens before it, z) in nats, whether the token is the
        likeliest at its position, and whether it counts. Real tokens and END count, PAD and START do not;
        where a token does not count, its loss is 0 and it is not the likeliest.
        """
        counted = (tokens != PAD) & (tokens != START)
        previous = F.pad(tokens[:, :-1], (1, 0), value=START) if self.autoregressive else None
        hidden = self.hidden_states(z, previous)[:, : tokens.shape[1]]  # (batch, length, hidden)
        _, scores, hits = self.cross_entropy(hidden[counted], tokens[counted])
        losses = torch.zeros(tokens.shape, device=tokens.device).masked_scatter(counted, scores)
        correct = torch.zeros_like(counted).masked_scatter(counted, hits)
        return losses, correct, counted

    def log_likelihood(self, z: Tensor, tokens: Tensor) -> Tensor:
        """log p(x | z) in nats, (batch,): of tokens (batch, length), END counted, PAD and START not."""
        return -self.token_losses(z, tokens)[0].sum(dim=1)

    def hidden_states(self, z: Tensor, previous: Tensor | None = None) -> Tensor:
        """The decoder's last layer: (batch, length, hidden)."""
        if isinstance(self.decoder, Decoder):
            assert previous is not None
            embedded = self._embed(previous)  # (batch, length, embedding)
            return self.dropped_out(self.decoder.advance(embedded, z, self.decoder.start(z))[0])
        return self.dropped_out(self.decoder(z[:, None].expand(-1, self.frame_length, -1))[0])

    def _embed(self, tokens: Tensor) -> Tensor:
        """(batch, length, embedding) of tokens (batch, length), thinned out in training."""
        embedded, without = self.embedding(tokens), self.config.model.embedding_dropout
        if self.training and without:
            embedded = without_tokens(embedded, tokens, without, self.vocabulary_size)
        return self.dropped_out(embedded)

    def dropped_out(self, x: Tensor) -> Tensor:
        sizes = self.config.model
        return dropout(x, sizes.dropout, self.training, locked=sizes.dropout_mask == "review")

    def sentiment_logits(self, z: Tensor) -> Tensor:
        """The log-odds (batch,) that the review of z (batch, latent) is positive; 0 without a head."""
        if self.sentiment_output is None:
            return torch.zeros(len(z), device=z.device)
        h = z if self.sentiment_dense is None else self.sentiment_dense(z)
        return self.sentiment_output(h)[:, 0].float()

    def predict_sentiment(self, z: Tensor) -> Tensor:
        """The probability (batch,) that the review of z (batch, latent) is positive."""
        return self.sentiment_logits(z).sigmoid()

    def sentiment_direction(self) -> tuple[Tensor, Tensor]:
        """The head, which is linear, as weight (latent,) and bias (): log-odds = z @ weight + bias."""
        if self.sentiment_output is None:
            raise ValueError("a language model (model.latent none) has no sentiment head")
        weight, bias = self.sentiment_output.weight[0], self.sentiment_output.bias[0]
        if self.sentiment_dense is not None:
            weight, bias = weight @ self.sentiment_dense.weight, bias + weight @ self.sentiment_dense.bias
        return weight.detach(), bias.detach()

    # Writing

    @torch.no_grad()
    def generate(
        self,
        z: Tensor,
        max_length: int | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Token ids (batch, length) written from z (batch, latent), PAD after each END.

        Temperature 0, as any below COLDEST, takes the likeliest token, more of it draws from
        softmax(logits / temperature). PAD,
        START and OOV are never written, nor is an END at the beginning. At most `max_length` tokens are
        written, by default as many as the longest review may have. The repeat decoder has no END and its
        positions know nothing of each other: it writes the likeliest token at each, PAD too, whatever the
        temperature.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        limit = self.frame_length if max_length is None else max_length
        if limit < 1:
            raise ValueError(f"max_length must be at least 1, got {limit}")
        if len(z) == 0:
            return torch.zeros(0, 0, dtype=torch.long, device=z.device)
        if not isinstance(self.decoder, Decoder):
            return self.decode(z).argmax(dim=-1)[:, :limit]
        previous = torch.full((len(z), 1), START, dtype=torch.long, device=z.device)
        over = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        state = self.decoder.start(z)
        written = []
        for position in range(limit):
            embedded = self._embed(previous)  # (batch, 1, embedding)
            hidden, state = self.decoder.advance(embedded, z, state)
            logits = self.logits(self.dropped_out(hidden[:, 0])).float()  # (batch, vocabulary)
            logits[:, [PAD, START, OOV, END] if position == 0 else [PAD, START, OOV]] = -math.inf
            if temperature < COLDEST:
                token = logits.argmax(dim=-1)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            token = token.masked_fill(over, PAD)
            written.append(token)
            over = over | (token == END)
            if bool(over.all()):
                break
            previous = token[:, None]
        return torch.stack(written, dim=1)

    @torch.no_grad()
    def reconstruct(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Token ids (batch, length) of each review, written again from its mean at temperature 0."""
        return self.generate(self.encode(tokens, lengths)[0])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Token ids (n, length) written from draws of the prior N(0, 1)."""
        device = self.embedding.weight.device
        z = torch.randn(n, self.config.model.latent, generator=generator, device=device)
        return self.generate(z, temperature=temperature, generator=generator)

    @torch.no_grad()
    def interpolate(self, tokens_a: Tensor, tokens_b: Tensor, steps: int) -> Tensor:
        """Token ids (steps, length) written on the way from review a (length,) to review b, both included.

        The way is the straight line between their means. It is straight because the sentiment head is linear:
        its log-odds change evenly along it.
        """
        a, b = self.encode(tokens_a[None])[0], self.encode(tokens_b[None])[0]
        return self.generate(line(a[0], b[0], steps))


def line(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points (steps, latent), evenly spaced on the straight line from a to b (latent,), both included."""
    if steps < 2:
        raise ValueError(f"steps must be at least 2, the two ends, got {steps}")
    share = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)[:, None]
    return torch.lerp(a, b, share)


def frame_length(config: Config) -> int:
    """The tokens of the longest review that the model sees: with an END behind it under objective elbo."""
    return config.vocabulary.max_length + (1 if config.objective.kind == "elbo" else 0)


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
    keras.copy_weights(model, arrays)
    return model.eval()
