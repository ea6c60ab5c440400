"""How likely reviews are to a model: reconstruction, KL, ELBO, importance-weighted likelihood.

All in nats, one number a review, float64; `per_unit` makes them nats per token and word, and bits per byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textvae.evaluate.reading import POSITIONS, Progress, Texts
from textvae.model import TextVAE
from textvae.sources.permutation import key_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """q(z | x) of each review: the diagonal Gaussian N(mean, variance), both float64 (reviews, latent)."""

    mean: Floats
    variance: Floats

    def __len__(self) -> int:
        return len(self.mean)

    def first(self, n: int) -> Posterior:
        """That of the first `n` reviews, or of all there are."""
        return Posterior(self.mean[:n], self.variance[:n])

    def sample(self, seed: int, name: str = "posterior") -> Floats:
        """One draw of z for each review: (reviews, latent); the same one for the same seed and place."""
        noise = _noise(len(self.mean) * self.mean.shape[1], key_of(seed, name)).reshape(self.mean.shape)
        return self.mean + np.sqrt(self.variance) * noise


@dataclass(frozen=True)
class Explained:
    """How well given latents explain the reviews, each token before it being known (teacher forcing).

    loss: float64 (reviews,), -log p(x | z) in nats. tokens, correct: int64 (reviews,), tokens counted (real
    ones and END) and those of them that were the likeliest.
    """

    loss: Floats
    tokens: NDArray[np.int64]
    correct: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Teacher-forced token accuracy: sum_n sum_t [argmax_v p(v | x_n,<t, z_n) = x_nt] / sum_n |x_n|.

        t over the tokens counted, each foreseen from the true ones before it: teacher forcing (Williams &
        Zipser, A Learning Algorithm for Continually Running Fully Recurrent Neural Networks, 1989). A decoder
        that does not use z at all may have much of it. 0 if there is no token.
        """
        return float(self.correct.sum() / max(1, self.tokens.sum()))


@torch.no_grad()
def posterior(model: TextVAE, texts: Texts, progress: Progress | None = None) -> Posterior:
    """q(z | x) of each review: N(mean, exp(log_var) * noise_std^2)."""
    latent = model.config.model.latent
    mean, variance = np.zeros((len(texts), latent)), np.ones((len(texts), latent))
    done = 0
    for rows, tokens, lengths in texts.batches(_device(model)) if latent else ():
        m, log_var = model.encode(tokens, lengths)
        mean[rows] = m.double().cpu().numpy()
        variance[rows] = log_var.double().exp().cpu().numpy() * model.config.model.noise_std**2
        done += len(rows)
        if progress is not None:
            progress("encoding", done, len(texts))
    return Posterior(mean, variance)


@torch.no_grad()
def explain(
    model: TextVAE, texts: Texts, z: Floats, progress: Progress | None = None, what: str = "decoding"
) -> Explained:
    """Reconstruction: -sum_t log p(x_t | x_<t, z) over real tokens and END, of each review with its z.

    Kingma & Welling, Auto-Encoding Variational Bayes (ICLR 2014), eq. 3, second term. `z` (reviews, latent).
    A model without END (objective seed) has its real words scored alone; START and padding never count. With
    objective seed p is the softmax of its logits, as the field has it, whatever loss it was trained with.
    """
    loss = np.zeros(len(texts))
    counted, correct = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
    done = 0
    for rows, tokens, _ in texts.batches(_device(model)):
        losses, hits, real = model.token_losses(_tensor(z[rows], model), tokens)
        loss[rows] = losses.double().sum(dim=1).cpu().numpy()
        counted[rows] = real.sum(dim=1).cpu().numpy()
        correct[rows] = hits.sum(dim=1).cpu().numpy()
        done += len(rows)
        if progress is not None:
            progress(what, done, len(texts))
    return Explained(loss, counted, correct)


def kl(q: Posterior) -> Floats:
    """KL(q(z | x) || N(0, 1)) = 1/2 sum_d (mu_d^2 + s_d^2 - 1 - ln s_d^2), nats: (reviews,).

    Kingma & Welling (ICLR 2014), appendix B: the closed form.
    """
    return kl_per_dimension(q).sum(axis=1)


def kl_per_dimension(q: Posterior) -> Floats:
    """The terms of `kl`: (reviews, latent)."""
    return 0.5 * (np.square(q.mean) + q.variance - 1.0 - np.log(q.variance))


def negative_elbo(explained: Explained, q: Posterior) -> Floats:
    """-ELBO = E_q(z | x)[-log p(x | z)] + KL(q(z | x) || p(z)) >= -log p(x), nats: (reviews,).

    The evidence lower bound: Jordan et al., An Introduction to Variational Methods for Graphical Models
    (1999); Kingma & Welling (ICLR 2014), eq. 3. The KL is the closed form of `kl`, the expectation estimated
    by the one draw of z ~ q(z | x) a review that `explained` is of. A language model has no KL: its bound is
    -log p(x) itself.
    """
    return explained.loss + kl(q)


@torch.no_grad()
def importance_weighted(
    model: TextVAE,
    texts: Texts,
    q: Posterior,
    samples: int = 500,
    *,
    seed: int = 0,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> Floats:
    """-log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x), z_k ~ q(z | x), K = `samples`; nats: (reviews,).

    Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders (ICLR 2016), eq. 8; He et al., Lagging
    Inference Networks (ICLR 2019), take K = 500. An upper bound of -log p(x) in expectation, which K lowers;
    with K = 1 it is a draw of minus the ELBO. The noise of a review depends on `seed` and its place alone,
    and at most `positions` tokens are decoded at once, so K is bounded by time and not by memory. A language
    model (latent 0) has nothing to sample: the result is -log p(x), exact. ValueError if samples < 1.
    """
    if samples < 1:
        raise ValueError(f"the samples of importance weighting (K) must be at least 1, got {samples}")
    latent = q.mean.shape[1]
    if latent == 0:
        return explain(model, texts, q.mean, progress, "likelihood").loss
    result = np.zeros(len(texts))
    # One review's samples fill a batch: all rows are equally long, and nothing is padding.
    for done, (rows, tokens, _) in enumerate(texts.batches(_device(model), positions=1), 1):
        row = int(rows[0])
        noise = _noise(samples * latent, key_of(seed, "importance", row)).reshape(samples, latent)
        z = q.mean[row] + np.sqrt(q.variance[row]) * noise  # (samples, latent)
        # log p(z) - log q(z | x): the constants of the two Gaussians cancel.
        prior = -0.5 * np.square(z).sum(axis=1)
        proposal = -0.5 * (np.square(noise) + np.log(q.variance[row])).sum(axis=1)
        at_once = max(1, positions // tokens.shape[1])
        likelihood = np.concatenate(
            [
                model.log_likelihood(_tensor(some, model), tokens.expand(len(some), -1))
                .double()
                .cpu()
                .numpy()
                for some in np.split(z, range(at_once, samples, at_once))
            ]
        )
        result[row] = math.log(samples) - np.logaddexp.reduce(likelihood + prior - proposal)
        if progress is not None:
            progress("importance sampling", done, len(texts))
    return result


def per_unit(nats: Floats, texts: Texts, tokens: NDArray[np.int64]) -> dict[str, float]:
    """Totals as rates: nats per review, per token and per word, perplexity per word, bits per byte.

    review: the mean. token: all nats over all counted tokens (END included). word: over the white-space words
    of the text that was scored (`str.split`), a count that no vocabulary changes; END's cost is in, END is no
    word. byte: in bits, over the UTF-8 bytes of that text (bits per byte; Gao et al., The Pile, 2020).
    standard_error: of the mean over reviews. A vocabulary of words is paid for an unknown word as for any
    token, and for case and punctuation not at all: its figures per word and byte are of less than the text.
    """
    total = float(nats.sum())
    word = total / max(1, int(texts.words.sum()))
    return {
        "review": float(nats.mean()),
        "standard_error": float(nats.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else math.nan,
        "token": total / max(1, int(tokens.sum())),
        "word": word,
        "word_perplexity": math.exp(word) if word < 700 else math.inf,
        "bits_per_byte": total / math.log(2) / max(1, int(texts.bytes.sum())),
    }


def _noise(n: int, key: int) -> Floats:
    # Drawn on CPU by a generator of its own: the same on every device, and no global state is touched.
    generator = torch.Generator().manual_seed(key % 2**63)
    return torch.randn(n, generator=generator, dtype=torch.float64).numpy()


def _tensor(z: Floats, model: TextVAE) -> Tensor:
    return torch.from_numpy(z).to(_device(model), torch.float32)


def _device(model: TextVAE) -> torch.device:
    return model.embedding.weight.device
