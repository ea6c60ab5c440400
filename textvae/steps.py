"""What a model says of a batch: the losses of the seed objective and of the lower bound.

A batch without reviews (a rank may have none at an epoch's end) gives zeros that still reach every parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from textvae import adversarial, objective, parts
from textvae.encoders import Posterior
from textvae.heap import LOGITS_AT_ONCE
from textvae.normal import Affine
from textvae.objective import Losses
from textvae.recurrent import reversal
from textvae.vocabulary import END, OOV, PAD, START

if TYPE_CHECKING:
    from textvae.batches import Batch
    from textvae.model import TextVAE


def seed(model: TextVAE, batch: Batch, kl_weight: float, generator: torch.Generator | None) -> Losses:
    """The seed objective's losses; the batch is padded to the model's full length."""
    if len(batch.tokens) == 0:
        return _nothing(model, batch.tokens.device)
    tokens, labels = batch.tokens, batch.labels  # (batch, length), (batch,)
    if tokens.shape[1] != model.frame_length:
        raise ValueError(f"objective seed needs {model.frame_length} tokens a review, got {tokens.shape[1]}")
    mean, log_var = model.encode(tokens)
    z = model.sample_posterior(mean, log_var, generator)
    targets = tokens.flatten()
    hidden = model.hidden_states(z).flatten(0, 1)  # (batch * length, hidden)
    scores, correct = _seed_scores(model, hidden, targets)  # (batch * length,)
    # max_length * mean over length and vocabulary, which leaves a division by the vocabulary
    reconstruction = scores.sum() / model.vocabulary_size
    kl = objective.seed_kl(mean, log_var).sum()
    logits = model.sentiment_logits(z)
    sentiment = objective.seed_sentiment(logits, labels).sum()
    real = targets != PAD
    return Losses(
        loss=reconstruction + kl_weight * kl + sentiment,
        reconstruction=reconstruction.detach(),
        kl=kl.detach(),
        sentiment=sentiment.detach(),
        labelled=(labels >= 0).sum(),
        sentiment_correct=_hits(logits, labels),
        tokens=real.sum(),
        tokens_correct=(correct & real).sum(),
        positions=torch.full_like(targets[0], targets.numel()),
        positions_correct=correct.sum(),
        means=mean.detach(),
        reviews=len(tokens),
    )


def elbo(
    model: TextVAE,
    batch: Batch,
    kl_weight: float,
    pretraining: bool,
    sentiment_counts: bool,
    generator: torch.Generator | None,
    over_ranks: Callable[[Tensor], Tensor] | None,
) -> Losses:
    """The lower bound's losses; the arguments are those of TextVAE.forward."""
    settings = model.config.objective
    assert settings.kind == "elbo"
    if len(batch.tokens) == 0:
        if model.training and settings.free_bits and over_ranks:
            over_ranks(torch.zeros(model.config.model.latent, device=batch.tokens.device))
        return _nothing(model, batch.tokens.device)
    tokens = batch.tokens  # (batch, length)
    # A language model has no head to hold a label against.
    labels = batch.labels if model.encoder else torch.full_like(batch.labels, -1)  # (batch,)
    shown = shown_tokens(model, tokens, generator) if pretraining else tokens
    posterior = model.posterior(tokens, batch.lengths, over_ranks, shown)
    mean, log_var = posterior.mean, posterior.log_var
    z = model.sample_posterior(mean, log_var, generator)
    # What z is never asked for would only learn to vary less.
    unasked = pretraining and settings.pretraining == "language_model"
    if unasked:
        z = z * 0.0  # of no influence, but every parameter has a gradient: DDP waits for it
    previous = previous_tokens(model, tokens, generator)  # (batch, length)
    real = tokens != PAD
    share = settings.scored_share if model.training else 1.0
    if share < 1.0:
        draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        real = real & (draw < share)
    total, hits = _reconstruction(model, z, previous, tokens, real)
    reconstruction = total / share  # of an even draw of the tokens: the mean is that of all of them
    kl_terms = objective.kl_terms(mean, log_var, model.config.model.noise_std)  # (batch, latent)
    charged = _charged(model, kl_terms, mean, kl_weight, batch.total, over_ranks) * float(not unasked)
    logits = model.sentiment_logits(posterior.told)
    sentiment = objective.sentiment(logits, labels).sum()
    uncertainty = objective.entropy(logits, labels).sum()
    foreseen = torch.zeros_like(total)
    if pretraining and settings.encoder_lm_weight:
        foreseen = settings.encoder_lm_weight * _foreseen(model, posterior, batch, share, generator)
    counts = bool(model.encoder) and not pretraining  # whether anything but the words does
    told = settings.sentiment_weight * sentiment + settings.entropy_weight * uncertainty
    if counts and sentiment_counts and model.training and settings.adversarial_weight:
        doubts = _adversarial(model, posterior, batch.lengths, over_ranks)
        told = told + settings.adversarial_weight * doubts.sum()
    told = told * float(sentiment_counts)  # of no influence, but with a gradient: DDP waits for it
    if model.words is not None and model.training:
        bag = objective.bag_of_words(model.logits(model.words(z).tanh()), tokens, tokens != PAD)
        told = told + settings.words_weight * bag.sum()
    # Past its END a review is over: its padding counts as right if the END was foreseen.
    correct = torch.zeros_like(real).masked_scatter(real, hits)  # (batch, length)
    ended = correct.gather(1, batch.lengths[:, None] - 1)[:, 0]  # (batch,)
    padding = model.frame_length - batch.lengths  # (batch,)
    return Losses(
        loss=reconstruction + foreseen + charged + float(counts) * told,
        reconstruction=reconstruction.detach(),
        kl=kl_terms.detach().sum(),
        sentiment=sentiment.detach(),
        labelled=(labels >= 0).sum(),
        sentiment_correct=_hits(logits, labels),
        tokens=real.sum(),
        tokens_correct=hits.sum(),
        positions=torch.full_like(padding[0], len(tokens) * model.frame_length),
        positions_correct=(hits.sum() + (padding * ended).sum()) / share,
        means=mean.detach(),
        reviews=len(tokens),
    )


def _reconstruction(
    model: TextVAE, z: Tensor, previous: Tensor, tokens: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of the `real` tokens (), and whether each of them is the likeliest; part by part."""

    def score(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        hidden = model.hidden_states(z, previous[rows])[real[rows]]
        total, _, hits = model.cross_entropy(hidden, tokens[rows][real[rows]])
        return total, hits

    # Tied or not, the embedding comes once.
    used = [*model.decoder.parameters(), *model.output.parameters(), model.embedding.weight]
    at_once = parts.tokens_at_once(tokens.device)
    return parts.scored(score, z, tokens.shape[1], used, at_once)


def _foreseen(
    model: TextVAE, seen: Posterior, batch: Batch, share: float, generator: torch.Generator | None
) -> Tensor:
    """-log p of each next token, and of each one before, by what the encoder has seen until there: ().

    An encoder that begins as two language models (Dai & Le, "Semi-supervised Sequence Learning", 2015;
    one each way: Peters et al., NAACL 2018). Of a `share` of the tokens, scaled up to all.
    """
    assert seen.read is not None and seen.read.states is not None
    tokens = batch.tokens  # (batch, length)
    back = tokens.gather(1, reversal(batch.lengths, tokens.shape[1]))
    totals = []
    for states, sequence in zip(seen.read.states, (tokens, back), strict=True):
        following = sequence[:, 1:]
        scored = following != PAD
        if share < 1.0:
            draw = torch.rand(scored.shape, generator=generator, device=tokens.device)
            scored = scored & (draw < share)
        hidden = model.dropped_out(states[:, :-1])[scored]
        totals.append(model.cross_entropy(hidden, following[scored])[0])
    return torch.stack(totals).sum() / share


def _adversarial(
    model: TextVAE, seen: Posterior, lengths: Tensor, over_ranks: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """What the worst small step of a review's inputs does to its sentiment, in nats: (batch,)."""
    settings = model.config.objective
    assert settings.kind == "elbo" and seen.read is not None
    # A norm by the step's reviews has each review's sentiment depend on all others' inputs: of no use to find
    # the worst step. But trained as if it stood still, it would be run after for ever: whatever offset is
    # learned to mend the sentiment of perturbed reviews, the norm takes away again.
    still = seen.norm and Affine(seen.norm.center.detach(), seen.norm.factor.detach())

    def log_odds(features: Tensor, norm: Affine | None) -> Tensor:
        mean, _ = model.mean_of(features)
        return model.sentiment_logits(norm(mean) if norm else mean)

    return adversarial.loss(
        seen.read,
        partial(log_odds, norm=still),
        partial(log_odds, norm=seen.norm),
        lengths,
        settings.adversarial_norm,
        over_ranks,
    )


def _charged(
    model: TextVAE,
    kl_terms: Tensor,
    mean: Tensor,
    kl_weight: float,
    reviews: int,
    over_ranks: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """What the latent (batch, latent) costs: its KL over the free bits, its correlations."""
    settings, scale = model.config.objective, model.config.model.mean_scale
    assert settings.kind == "elbo"
    free_bits = settings.free_bits if model.training else 0.0
    charged = kl_weight * objective.over_free_bits(kl_terms, free_bits, reviews, over_ranks)
    if model.training and model.mean_norm is not None and scale and settings.decorrelation_weight:
        correlation = objective.correlation(mean, scale, reviews, over_ranks)
        charged = charged + settings.decorrelation_weight * correlation
    return charged


def _nothing(model: TextVAE, device: torch.device) -> Losses:
    loss = torch.stack([parameter.flatten()[0] for parameter in model.parameters()]).sum() * 0.0
    zero, none = loss.detach(), torch.zeros((), dtype=torch.long, device=device)
    means = torch.zeros(0, model.config.model.latent, device=device)
    return Losses(loss, zero, zero, zero, none, none, none, none, none, none, means, 0)


def shown_tokens(model: TextVAE, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
    """What the encoder reads of a review in pretraining: some of its tokens are out of vocabulary to it.

    Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders" (ICML 2008), whose
    noise blanks inputs and leaves the targets whole. END and padding are no words, and stay.
    """
    assert model.config.objective.kind == "elbo"
    dropped = model.config.objective.pretraining_token_drop
    if not model.training or dropped == 0:
        return tokens
    draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    return tokens.masked_fill((draw < dropped) & (tokens != PAD) & (tokens != END), OOV)


def previous_tokens(model: TextVAE, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
    """What the decoder is fed: START and all tokens but the last, words dropped in training."""
    assert model.config.objective.kind == "elbo"
    previous = F.pad(tokens[:, :-1], (1, 0), value=START)  # (batch, length)
    dropped = model.config.objective.word_dropout
    if not model.training or dropped == 0:
        return previous
    draw = torch.rand(previous.shape, generator=generator, device=tokens.device)
    return previous.masked_fill((draw < dropped) & (previous != START), OOV)


def _seed_scores(model: TextVAE, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each position's seed loss and whether its target is the likeliest: (rows,), (rows,).

    In chunks of rows whose logits are forgotten and computed again in the backward pass.
    """
    rows = max(1, LOGITS_AT_ONCE // model.vocabulary_size)
    if len(targets) <= rows:
        return _seed_score(model, hidden, targets)
    chunks = [
        checkpoint(_seed_score, model, h, t, use_reentrant=False, preserve_rng_state=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([scores for scores, _ in chunks]), torch.cat([correct for _, correct in chunks])


def _seed_score(model: TextVAE, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.output(hidden)  # (rows, vocabulary)
    scores = objective.seed_reconstruction(logits, targets)
    return scores, logits.detach().argmax(dim=-1) == targets


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (((logits.detach() > 0) == (labels > 0)) & (labels >= 0)).sum()
