from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from textvae.batches import collate, framing
from textvae.evaluate.language import language_model, perplexities, word_perplexity

from .by_hand import nats

torch.set_num_threads(1)


def sentences(n: int, seed: int, words: str = "great film story plot dull cast") -> list[str]:
    random_ = random.Random(seed)
    return [" ".join(random_.choices(words.split(), k=random_.randint(3, 8))) for _ in range(n)]


def test_perplexities_tell_fluent_and_varied_from_neither(tmp_path: Path) -> None:
    real, held_out = sentences(120, 0), sentences(30, 1)
    like_real = perplexities(sentences(120, 2), real, held_out, tmp_path / "a", epochs=3)
    assert like_real.texts == 120
    assert like_real.forward == pytest.approx(like_real.real, rel=0.2)
    assert like_real.reverse == pytest.approx(like_real.real, rel=0.4)
    one_word = perplexities(sentences(120, 2, "great"), real, held_out, tmp_path / "b", epochs=3)
    assert one_word.reverse > 2 * one_word.real  # nothing varied was learned from them
    with pytest.raises(ValueError, match="at least 20"):
        perplexities(["a"] * 19, real, held_out, tmp_path / "c")


def test_each_perplexity_is_the_nats_a_word_that_its_language_model_gives(tmp_path: Path) -> None:
    written, real, held_out = sentences(20, 2, "great film plot"), sentences(20, 0), sentences(4, 1)
    found = perplexities(written, real, held_out, tmp_path / "found", epochs=1)

    def by_hand(learned: list[str], told: list[str]) -> float:
        model = language_model(learned, tmp_path / "again", epochs=1)  # trained alike, so it is the same
        nothing = np.zeros(0)
        total = sum(nats(model, text, nothing) for text in told)
        return math.exp(total / sum(len(text.split()) for text in told))

    assert found.forward == pytest.approx(by_hand(real, written), rel=1e-4)
    assert found.reverse == pytest.approx(by_hand(written, held_out), rel=1e-4)
    assert found.real == pytest.approx(by_hand(real, held_out), rel=1e-4)
    assert len({round(value, 3) for value in (found.forward, found.reverse, found.real)}) == 3


def test_a_language_models_perplexity_is_that_of_its_logits(tmp_path: Path) -> None:
    model = language_model(sentences(60, 0), tmp_path, epochs=1)
    assert model.config.model.latent == 0
    texts = sentences(5, 3)
    nats = 0.0
    for text in texts:
        tokens, _ = collate(model.vocabulary.encode([text]), framing(model.config))
        with torch.no_grad():
            logits = model.model.decode(torch.zeros(1, 0), tokens)[0].double().log_softmax(-1)
        nats -= float(logits[torch.arange(tokens.shape[1]), tokens[0]].sum())
    words = sum(len(text.split()) for text in texts)
    assert word_perplexity(model, texts) == pytest.approx(math.exp(nats / words), rel=1e-4)
