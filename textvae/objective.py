"""The losses, from integer targets: the seed's as it was, and an evidence lower bound.

Everything here is in float32 and a sum over reviews, so that ranks with unequal numbers of reviews can add up
their parts and divide once by the reviews of the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from textvae.config import Config

KERAS_EPSILON = 1e-7  # Keras clips probabilities to [epsilon, 1 - epsilon] before it takes logarithms


@dataclass(frozen=True)
class Losses:
    """What one batch says: sums over its reviews, as scalars on the model's device.

    `loss` is the one to differentiate. Divided by the reviews of the step over all ranks (and, as DDP
    averages gradients, multiplied by the ranks), it is the exact loss of the step, however they are spread.
    A review without a label has no sentiment loss, but counts among the reviews.
    """

    loss: Tensor  # reconstruction + weights * (kl over its free bits, sentiment, entropy, in training more)
    reconstruction: Tensor  # nats
    kl: Tensor  # nats
    sentiment: Tensor  # nats, over the labelled reviews
    labelled: Tensor  # reviews with a label
    sentiment_correct: Tensor  # labelled reviews on whose label the head is right
    tokens: Tensor  # real tokens, padding left out
    tokens_correct: Tensor  # real tokens that are the likeliest at their position
    positions: Tensor  # positions of full-length reviews, padding counted
    positions_correct: Tensor
    means: Tensor  # (batch, latent) the posterior means, detached
    reviews: int


def seed_reconstruction(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over the vocabulary of the binary cross-entropy between one-hot target and softmax: (rows,).

    `logits` (rows, vocabulary), `targets` (rows,). The one-hot target is never made: every word costs
    -log(1 - p), but for the target, which costs -log(p). Probabilities are clipped as Keras clips them.
    """
    p = logits.float().softmax(dim=-1).clamp(KERAS_EPSILON, 1.0 - KERAS_EPSILON)  # (rows, vocabulary)
    target = p.gather(-1, targets[:, None])[:, 0]  # (rows,)
    absent = torch.log1p(-p).sum(dim=-1)  # (rows,)
    return -absent + torch.log1p(-target) - target.log()


def seed_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """-0.5 * mean over the latent of (1 + log_var - mean^2 - exp(log_var)): (batch,), of two (batch, latent).

    A mean where a KL divergence has a sum, and blind to the noise's scale: the original's, kept.
    """
    return -0.5 * (1.0 + log_var - mean.square() - log_var.exp()).mean(dim=-1)


def kl_terms(mean: Tensor, log_var: Tensor, noise_std: float) -> Tensor:
    """KL(N(mean, noise_std^2 exp(log_var)) || N(0, 1)) of each dimension: (batch, latent).

    Kingma & Welling 2013, appendix B; noise_std enters because z = mean + exp(log_var / 2) * noise_std * n.
    """
    log_variance = log_var + 2.0 * math.log(noise_std)
    return -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp())


def kl(mean: Tensor, log_var: Tensor, noise_std: float) -> Tensor:
    """`kl_terms`, summed over the latent: (batch,)."""
    return kl_terms(mean, log_var, noise_std).sum(dim=-1)


def over_free_bits(
    terms: Tensor,
    free_bits: float,
    reviews: int,
    over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The KL that is charged: sum over dimensions of max(free_bits, mean over reviews), times reviews: ().

    Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016), appendix C.8: the
    mean is over the step's reviews, so a dimension may be silent for one review and speak for another.
    `terms` are `kl_terms` of this rank's (batch, latent), `reviews` the step's on all ranks, over which
    `over_ranks` sums; so the gradient is that of the whole step, however it is spread.
    """
    total = terms.sum(dim=0)  # (latent,)
    if free_bits == 0:
        return total.sum()
    of_step = total.detach().clone()
    of_step = of_step if over_ranks is None else over_ranks(of_step)
    return torch.where(of_step > free_bits * reviews, total, free_bits * len(terms)).sum()


def correlation(
    means: Tensor, scale: float, reviews: int, over_ranks: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Squared correlations of the posterior means, summed over pairs of dimensions, times reviews: ().

    Kumar et al., "Variational Inference of Disentangled Latent Concepts" (ICLR 2018), eq. 6 (DIP-VAE-I): the
    aggregated posterior's covariance is held to the prior's. `means` (batch, latent) are this rank's, with
    mean 0 and standard deviation `scale` over the step's `reviews`, over whose ranks `over_ranks` sums. The
    value is this rank's share; its gradient, that of the whole step with respect to this rank's means.
    """
    own = means.T @ means / scale**2  # (latent, latent)
    whole = own.detach().clone()
    whole = whole if over_ranks is None else over_ranks(whole)
    whole = whole / reviews
    whole.fill_diagonal_(0.0)
    share = len(means) * whole.square().sum()
    slope = 2.0 * (whole * own).sum()  # whole is a constant here: the gradient is right, the value is not
    return slope + (share - slope.detach())


def seed_sentiment(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(logits), clipped as Keras clips it; 0 for a label of -1: (batch,)."""
    p = logits.float().sigmoid().clamp(KERAS_EPSILON, 1.0 - KERAS_EPSILON)
    losses = -torch.where(labels > 0, p.log(), torch.log1p(-p))
    return losses * (labels >= 0)


def sentiment(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(logits) (batch,); 0, with a gradient of 0, for a label of -1."""
    # A product, not a selection: a rank without labels must still give the head a gradient: DDP waits for it.
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.clamp(min=0).float(), reduction="none")
    return losses * (labels >= 0)


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Entropy, in nats, of the sentiment of reviews without a label; 0 for others: (batch,), of two (batch,).

    Grandvalet & Bengio, "Semi-supervised Learning by Entropy Minimization" (2004).
    """
    logits = logits.float()
    p = logits.sigmoid()
    # H = -p log p - (1 - p) log(1 - p), and log p - log(1 - p) is the log-odds.
    return (F.softplus(logits) - p * logits) * (labels < 0)


def bag_of_words(logits: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
    """-log p of each review's tokens, each drawn from one softmax whatever its place: (batch,).

    logits (batch, vocabulary), tokens and real (batch, length). Zhao et al., "Learning Discourse-level
    Diversity for Neural Dialog Models" (ACL 2017), eq. 6: what an autoregressive decoder could do without, z
    is asked for here.
    """
    logits = logits.float()
    chosen = logits.gather(1, tokens) - logits.logsumexp(dim=1, keepdim=True)  # (batch, length)
    return -(chosen * real).sum(dim=1)


def pretraining(config: Config, epoch: int) -> bool:
    """Whether `epoch`, counted from 0, is one of those before the KL term and the sentiment count."""
    return config.objective.kind == "elbo" and epoch < config.objective.pretraining_epochs


def sentiment_counts(config: Config, epoch: int) -> bool:
    """Whether the sentiment is trained in `epoch`, counted from 0, with all that is asked of it."""
    objective = config.objective
    if objective.kind == "seed":
        return True
    return epoch >= objective.pretraining_epochs + objective.sentiment_after_epochs


def begins_stage(config: Config, epoch: int) -> bool:
    """Whether another loss is trained from `epoch`, counted from 0, than in the epoch before it."""
    return epoch > 0 and any(
        asked(config, epoch) != asked(config, epoch - 1) for asked in (pretraining, sentiment_counts)
    )


def reset_decoder(config: Config, epoch: int) -> bool:
    """Whether the decoder begins `epoch`, counted from 0, with new weights."""
    objective = config.objective
    return objective.kind == "elbo" and objective.reset_decoder and epoch == objective.pretraining_epochs > 0


def kl_weight(config: Config, epoch: float) -> float:
    """The KL term's weight at `epoch`, counted from 0 in fractions: it grows from 0 over the warm-up.

    The warm-up begins after the pretraining (Bowman et al. 2016), and again in each cycle (Fu et al.,
    "Cyclical Annealing Schedule", NAACL 2019).
    """
    objective = config.objective
    if objective.kind == "seed":
        return 1.0
    epoch -= objective.pretraining_epochs
    if epoch < 0:
        return 0.0
    if objective.kl_warmup_epochs == 0 or math.isinf(epoch):
        return objective.kl_weight
    if objective.kl_cycle_epochs is not None:
        epoch %= objective.kl_cycle_epochs
    return objective.kl_weight * min(1.0, epoch / objective.kl_warmup_epochs)


def learning_rate(config: Config, epoch: float) -> float:
    """The optimizer's step size at `epoch`, counted from 0 in fractions."""
    training = config.training
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * max(0.0, 1.0 - epoch / training.epochs)
