"""Metrics of texts alone: BLEU-4, self-BLEU, distinct-n. Words are sacrebleu's `13a` tokens, case kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

ORDER = 4


@cache
def _bleu() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    # Sentences may be shorter than four words: then the shorter n-grams alone count.
    return BLEU(tokenize="13a", effective_order=True)


@cache
def _corpus_bleu() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="13a")


def bleu(written: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4, 0 to 100: Papineni et al. (ACL 2002) as sacrebleu has it (Post, WMT 2018).

    One reference a text, tokenization 13a, case kept, exponential smoothing. ValueError unless there is a
    text, and as many references.
    """
    if not written or len(written) != len(references):
        raise ValueError(f"{len(written)} texts cannot be compared with {len(references)} references")
    return float(_corpus_bleu().corpus_score(list(written), [list(references)]).score)


def sentence_bleu(written: str, reference: str) -> float:
    """BLEU-4 of one text against one, 0 to 100: as `bleu`, with n-grams no longer than the text counted."""
    return float(_bleu().sentence_score(written, [reference]).score)


def words(text: str) -> list[str]:
    """The tokens of a text as BLEU counts them."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()(text).split()


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct-n: different n-grams over all n-grams of the texts together, 0 where no text has n words.

    After Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models (NAACL 2016), who
    divide by the number of generated tokens instead: the same for n = 1, and for more a little less than
    this, as a text of T words has T - n + 1 n-grams. It falls as texts are added: compare equal numbers.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts.update(ngrams(words(text), n))
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """The mean BLEU-4 of each text with all others as its references (Zhu et al., Texygen, SIGIR 2018).

    0 to 100; lower is more diverse. sacrebleu's sentence BLEU, exponential smoothing. ValueError for fewer
    than two texts. Time grows with the words, not with the pairs of texts: of each n-gram the two texts
    that have most of it are remembered, which tells for every text the most that any other has.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares texts with each other: it needs at least 2, got {len(texts)}")
    from sacrebleu.metrics.bleu import BLEU

    split = [words(text) for text in texts]
    grams = [Counter({g: c for n in range(1, ORDER + 1) for g, c in ngrams(t, n).items()}) for t in split]
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}  # n-gram -> most, by which text, second most
    for i, counts in enumerate(grams):
        for gram, count in counts.items():
            first, owner, second = most.get(gram, (0, -1, 0))
            if count > first:
                most[gram] = count, i, first
            elif count > second:
                most[gram] = first, owner, count
    lengths = Counter(map(len, split))
    total = 0.0
    for i, counts in enumerate(grams):
        correct, possible = [0] * ORDER, [0] * ORDER
        for gram, count in counts.items():
            first, owner, second = most[gram]
            correct[len(gram) - 1] += min(count, second if owner == i else first)
            possible[len(gram) - 1] += count
        own = len(split[i])
        others = [n for n, texts_of in lengths.items() if n != own or texts_of > 1]
        closest = min(others, key=lambda n: (abs(n - own), n))
        total += float(
            BLEU.compute_bleu(
                correct, possible, own, closest, smooth_method="exp", effective_order=True
            ).score
        )
    return total / len(texts)
