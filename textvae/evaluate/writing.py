"""What a model writes: reviews again from their latent mean, and new ones from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from textvae.evaluate.likelihood import Floats
from textvae.evaluate.reading import Progress, Texts
from textvae.evaluate.surface import bleu
from textvae.model import TextVAE
from textvae.vocabulary import Vocabulary

_AT_ONCE = 64  # reviews written at once


@dataclass(frozen=True)
class Rewritten:
    """Reviews as a model wrote them again, running free.

    texts: what it wrote. token_accuracy: over the real, known tokens of all reviews, the share that it wrote
    at their position. bleu: corpus BLEU-4 against what the model reads of each, unknown words left out.
    """

    texts: list[str]
    token_accuracy: float
    bleu: float


@torch.no_grad()
def write(
    model: TextVAE,
    vocabulary: Vocabulary,
    z: Floats,
    progress: Progress | None = None,
    what: str = "writing",
) -> tuple[list[list[int]], list[str]]:
    """Ids (padded behind) and text written from each z (texts, latent), the likeliest tokens."""
    device = model.embedding.weight.device
    ids: list[list[int]] = []
    for start in range(0, len(z), _AT_ONCE):
        some = torch.from_numpy(z[start : start + _AT_ONCE]).to(device, torch.float32)
        ids += model.generate(some).tolist()
        if progress is not None:
            progress(what, len(ids), len(z))
    return ids, [vocabulary.decode(row) for row in ids]


def rewrite(model: TextVAE, texts: Texts, means: Floats, progress: Progress | None = None) -> Rewritten:
    """Free-running reconstruction: each review written again from its mean, seeing nothing of it.

    token_accuracy = sum_n sum_t [y_nt = x_nt] / sum_n |x_n|, y the written tokens, t over the positions of
    x_n that hold a real, known token: padding, START, END and unknown words do not count, and a token that
    was written one place off is wrong. BLEU-4 forgives the place (Papineni et al., ACL 2002).
    """
    ids, written = write(model, texts.vocabulary, means, progress, "reconstructing")
    right = counted = 0
    for rows, tokens, _ in texts.batches():
        for row, target in zip(rows.tolist(), tokens.numpy(), strict=True):
            answer = np.zeros_like(target)
            answer[: len(ids[row])] = ids[row][: len(target)]
            real = target >= 4  # the first id after PAD, START, OOV and END
            right += int((answer[real] == target[real]).sum())
            counted += int(real.sum())
    references = [texts.readable(row) for row in range(len(texts))]
    return Rewritten(written, right / max(1, counted), bleu(written, references))


@torch.no_grad()
def sample(
    model: TextVAE,
    vocabulary: Vocabulary,
    n: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> list[str]:
    """`n` texts of draws from the prior N(0, 1), each token drawn from softmax(logits / temperature)."""
    device = model.embedding.weight.device
    generator = torch.Generator(device=device).manual_seed(seed)
    written: list[str] = []
    while len(written) < n:
        some = model.sample(min(_AT_ONCE, n - len(written)), generator, temperature).tolist()
        written += [vocabulary.decode(row) for row in some]
        if progress is not None:
            progress("sampling", len(written), n)
    return written
