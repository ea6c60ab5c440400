"""Moving through the latent space: sentiment transfer along the head's direction, and interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from textvae.evaluate.likelihood import Floats, posterior
from textvae.evaluate.reading import Progress, Texts, encode
from textvae.evaluate.surface import bleu, sentence_bleu
from textvae.evaluate.writing import write
from textvae.model import TextVAE

# How far beyond even odds a review is pushed, in log-odds: 73 %, 88 %, 98 % and 99.97 % sure.
STEPS = (1.0, 2.0, 4.0, 8.0)

# Whether each text is positive, by somebody who does not know the model.
Judge = Callable[[Sequence[str]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Transferred:
    """What a push to the other sentiment does, a row for each step size; the first row is no push at all.

    step: log-odds of the other sentiment that the mean is pushed to (None: the mean as it is). flipped: the
    share of the written texts that the model itself reads as the other sentiment. judged: the same by an
    independent classifier, None without one. bleu: corpus BLEU-4 against the review's own reconstruction,
    what the model writes without a push. source_bleu: the same against the review itself, as the model reads
    it (cut at its limit, unknown words left out).
    """

    step: float | None
    flipped: float
    judged: float | None
    bleu: float
    source_bleu: float


def push(means: Floats, weight: Floats, bias: float, step: float) -> Floats:
    """Each mean moved along the head's weights to where its log-odds are `step` on the other side of 0.

    mean + w (goal - now) / |w|^2 with now = mean @ w + b and goal = -sign(now) step: the shortest way there,
    as the head is linear. ValueError if the head has no direction, or step <= 0.
    """
    if step <= 0:
        raise ValueError(f"a step of transfer must be above 0, got {step}")
    square = float(weight @ weight)
    if square == 0:
        raise ValueError("the sentiment head is all zeros: it has no direction to push along")
    now = means @ weight + bias
    goal = np.where(now > 0, -step, step)
    return means + ((goal - now) / square)[:, None] * weight


def transfer(
    model: TextVAE,
    texts: Texts,
    means: Floats,
    weight: Floats,
    bias: float,
    steps: Sequence[float] = STEPS,
    *,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> list[Transferred]:
    """Sentiment transfer: how many texts change sides, and how much of the text is left, by step size.

    Accuracy of transfer against BLEU with the source text (`source_bleu`), as Dai et al., Style Transformer
    (ACL 2019), weigh them; they call the latter self-BLEU, which `surface.self_bleu` is not. `bleu` is ours:
    with the review's own reconstruction for the source, it tells what the push costs and not what the
    decoder does. The other sentiment is the opposite of what the head says of the review's mean.
    """
    other = means @ weight + bias <= 0  # whether the other sentiment is the positive one
    _, own = write(model, texts.vocabulary, means, progress, "reconstructing for transfer")
    source = [texts.readable(row) for row in range(len(texts))]
    rows = []
    for step in (None, *steps):
        if step is None:
            written = own
        else:
            pushed = push(means, weight, bias, step)
            _, written = write(model, texts.vocabulary, pushed, progress, f"pushing to log-odds {step:g}")
        read = _means(model, texts, written) @ weight + bias > 0
        judged = None if judge is None else float((judge(written) == other).mean())
        flipped = float((read == other).mean())
        rows.append(Transferred(step, flipped, judged, bleu(written, own), bleu(written, source)))
    return rows


@dataclass(frozen=True)
class Interpolated:
    """How evenly text changes between two reviews.

    neighbour_bleu: mean sentence BLEU-4 of each text with the one before it (high: small changes). ends_bleu:
    the same between the two ends (low: there was a way to go). deviation: mean |advance - share of the way|,
    0 for a perfectly even walk. monotone: share of the steps on which the advance grows.
    """

    pairs: int
    steps: int
    neighbour_bleu: float
    ends_bleu: float
    deviation: float
    monotone: float


def interpolate(
    model: TextVAE, texts: Texts, means: Floats, steps: int = 7, *, progress: Progress | None = None
) -> Interpolated:
    """Interpolation between reviews 0 and 1, 2 and 3, ...: texts written at `steps` points, ends included.

    After Bowman et al., Generating Sentences from a Continuous Space (CoNLL 2016), in numbers: each written
    text is read again, and its mean m_k projected on the way from its line's first to its last one,

        advance_k = (m_k - m_0) . (m_S - m_0) / |m_S - m_0|^2,

    which an ideal model makes k / S. Lines whose two ends are read as the same point have no advance and are
    left out of deviation and monotone (NaN if all are). ValueError for steps < 3 or fewer than two reviews.
    """
    if steps < 3:
        raise ValueError(f"interpolation needs at least 3 points, the two ends and one between, got {steps}")
    pairs = len(texts) // 2
    if pairs == 0:
        raise ValueError("interpolation needs at least 2 reviews")
    share = np.linspace(0, 1, steps)
    a, b = means[0 : 2 * pairs : 2], means[1 : 2 * pairs : 2]  # (pairs, latent)
    z = a[:, None] + share[:, None] * (b - a)[:, None]  # (pairs, steps, latent)
    _, written = write(model, texts.vocabulary, z.reshape(pairs * steps, -1), progress, "interpolating")
    lines = [written[i * steps : (i + 1) * steps] for i in range(pairs)]
    neighbours = [sentence_bleu(line[k + 1], line[k]) for line in lines for k in range(steps - 1)]
    ends = [sentence_bleu(line[-1], line[0]) for line in lines]
    deviation, monotone = advance(_means(model, texts, written).reshape(pairs, steps, -1))
    return Interpolated(pairs, steps, float(np.mean(neighbours)), float(np.mean(ends)), deviation, monotone)


def advance(read: Floats) -> tuple[float, float]:
    """Deviation and monotone share (see `Interpolated`) of means read again, (pairs, steps, latent)."""
    way = read[:, -1] - read[:, 0]  # (pairs, latent)
    square = np.square(way).sum(axis=1)
    moving = square > 1e-12
    if not moving.any():
        return float("nan"), float("nan")
    from_start = read[moving] - read[moving, :1]
    far = (from_start @ way[moving, :, None])[..., 0] / square[moving, None]  # (moving, steps)
    share = np.linspace(0, 1, read.shape[1])
    # The two ends are 0 and 1 by definition, and say nothing.
    return float(np.abs(far - share)[:, 1:-1].mean()), float((np.diff(far, axis=1) > 0).mean())


@torch.no_grad()
def _means(model: TextVAE, like: Texts, written: Sequence[str]) -> Floats:
    """The posterior means of written texts, read as any text is."""
    return posterior(model, encode(written, like.vocabulary, like.framing)).mean


def classifier(texts: Sequence[str], labels: NDArray[np.int8]) -> Judge:
    """An independent judge of sentiment: TF-IDF of words and pairs of words, logistic regression.

    scikit-learn's, fitted on the labelled ones of these training texts. ValueError unless both labels occur.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    known = np.flatnonzero(labels >= 0)
    if len(np.unique(labels[known])) < 2:
        raise ValueError("a classifier needs training reviews of both labels")
    made = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2 if len(known) > 1000 else 1, sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    made.fit([texts[i] for i in known.tolist()], labels[known] > 0)

    def judge(some: Sequence[str]) -> NDArray[np.bool_]:
        return np.asarray(made.predict(list(some)), dtype=np.bool_)

    return judge
