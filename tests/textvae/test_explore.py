from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from textvae import vocabulary
from textvae.batches import Batch, collate, framing
from textvae.config import Config
from textvae.explore import Explorer, NothingToExplore, draw
from textvae.model import TextVAE
from textvae.parsing import parse
from textvae.predict import CONVINCED, Predictor
from textvae.sources.reviews import Slice

torch.set_num_threads(1)
GOOD = ["a great film", "great acting and a great story", "i love this great film", "what a great story"]
BAD = ["a terrible film", "terrible acting and a terrible story", "i hate this terrible film", "what a mess"]


def known() -> Slice:
    labels = np.array([1] * 4 + [0] * 3 + [-1], dtype=np.int8)
    ratings = np.array([9, 8, 10, 7, 1, 2, 3, np.nan], dtype=np.float32)
    return Slice(GOOD + BAD, labels, ratings)


def predictor(**model: Any) -> Predictor:
    """A model that has learned eight reviews by heart; with latent none, an untrained one."""
    settings = {
        "vocabulary": {"kind": "words", "size": 40, "max_length": 9},
        "model": {"embedding": 16, "encoder_hidden": 16, "latent": 4, "noise_std": 0.1, "decoder_hidden": 32}
        | model,
    }
    config = parse(Config, settings)
    words = vocabulary.build(config.vocabulary, GOOD + BAD)
    torch.manual_seed(0)
    network = TextVAE(config, words.size)
    ids, lengths = collate(words.encode(GOOD + BAD), framing(config))
    batch = Batch(ids, lengths, torch.tensor([1] * 4 + [0] * 4), 8)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(200 if config.model.latent else 0):
        optimizer.zero_grad()
        (network(batch, kl_weight=0.0).loss / 8).backward()
        optimizer.step()
    return Predictor.from_parts(config, words, network)


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(predictor(), known())


def test_readings_are_what_the_predictor_says(explorer: Explorer) -> None:
    texts = [GOOD[0], BAD[1], "great " * 20]
    readings = explorer.read(texts)
    assert [reading.text for reading in readings] == texts
    assert [reading.cut for reading in readings] == [False, False, True]
    assert [reading.written for reading in readings[:2]] == texts[:2]
    assert [reading.positive for reading in readings] == explorer.predictor.sentiment(texts)


def test_neighbours_are_the_nearest_by_brute_force(explorer: Explorer) -> None:
    text = "a great story"
    means = explorer.predictor.embed([text, *GOOD, *BAD]).astype(np.float64)
    distances = {
        t: float(np.sqrt(np.square(m - means[0]).sum())) for t, m in zip(GOOD + BAD, means[1:], strict=True)
    }
    found = explorer.neighbours(text, 3)
    assert [each.text for each in found] == sorted(distances, key=distances.__getitem__)[:3]
    for each in found:
        assert each.distance == pytest.approx(distances[each.text], rel=1e-4)
    everyone = {each.text: each for each in explorer.neighbours(text, 99)}
    assert (everyone[GOOD[0]].label, everyone[GOOD[0]].rating) == (1, 9.0)
    assert (everyone[BAD[3]].label, everyone[BAD[3]].rating) == (None, None)


def test_a_known_review_is_no_neighbour_of_itself(explorer: Explorer) -> None:
    found = explorer.neighbours(GOOD[0], 99)
    assert len(found) == 7 and GOOD[0] not in [each.text for each in found]
    assert [each.distance for each in found] == sorted(each.distance for each in found)
    with pytest.raises(ValueError, match="no known reviews"):
        Explorer(explorer.predictor).neighbours(GOOD[0])


def test_the_way_between_two_reviews_has_them_at_its_ends(explorer: Explorer) -> None:
    places = explorer.between(GOOD[1], BAD[1], 5)
    assert [place.text for place in places] == explorer.predictor.interpolate(GOOD[1], BAD[1], 5)
    assert (places[0].text, places[-1].text) == (GOOD[1], BAD[1])
    first, last = explorer.predictor.sentiment([GOOD[1], BAD[1]])
    assert (places[0].positive, places[-1].positive) == (pytest.approx(first), pytest.approx(last))
    odds = [np.log(p.positive / (1 - p.positive)) for p in places if p.positive is not None]
    np.testing.assert_allclose(np.diff(odds), np.diff(odds)[0], rtol=5e-2)  # the head is linear
    assert places[0].read_back == pytest.approx(first, abs=1e-4)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        explorer.between(GOOD[0], BAD[0], 1)


@pytest.mark.parametrize("text", ["a film", GOOD[1], BAD[2]])
def test_a_review_is_pushed_from_negative_to_positive(explorer: Explorer, text: str) -> None:
    places = explorer.push(text, 7)
    heads = [place.positive for place in places]
    assert heads == sorted(heads)  # type: ignore[type-var]
    (now,) = explorer.predictor.sentiment([text])
    sure = 1 / (1 + np.exp(-CONVINCED))
    assert heads[0] == pytest.approx(min(1 - sure, now), rel=0.05)
    assert heads[-1] == pytest.approx(max(sure, now), rel=0.05)
    # A review that is beyond 95 % already is itself the end of the way.
    written = explorer.predictor.reconstruct([text])[0]
    assert (places[0].text == written) or now > 1 - sure
    assert (places[-1].text == written) or now < sure
    backs = explorer.predictor.sentiment([place.text for place in places])
    assert [place.read_back for place in places] == pytest.approx(backs)


def test_a_head_without_a_direction_cannot_push() -> None:
    flat = predictor()
    torch.nn.init.zeros_(flat.model.sentiment_output.weight)
    with pytest.raises(ValueError, match="no direction to push along"):
        Explorer(flat).push(GOOD[0])


def test_samples_are_those_of_the_predictor(explorer: Explorer) -> None:
    places = explorer.samples(5, seed=3)
    assert [place.text for place in places] == explorer.predictor.sample(5, seed=3)
    assert all(place.positive is not None and 0 <= place.positive <= 1 for place in places)
    with pytest.raises(ValueError, match="count must be at least 1"):
        explorer.samples(0)


def test_an_empty_review_is_refused(explorer: Explorer) -> None:
    for ask in (lambda: explorer.read([" "]), lambda: explorer.push(""), lambda: explorer.between("a", "\n")):
        with pytest.raises(ValueError, match="is empty"):
            ask()


def test_a_place_where_nothing_is_written_is_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = predictor()
    # What a repeat decoder may do: padding is the likeliest everywhere.
    monkeypatch.setattr(silent.model, "generate", lambda z, **_: torch.zeros(len(z), 3, dtype=torch.long))
    assert [(place.read_back, place.text) for place in Explorer(silent).samples(2)] == [(None, "")] * 2


def test_two_reviews_are_drawn_one_of_each_sentiment() -> None:
    for seed in range(5):
        negative, positive = draw(known(), seed)
        assert negative in BAD[:3] and positive in GOOD
    assert len({tuple(draw(known(), seed)) for seed in range(10)}) > 1
    unlabelled = Slice(GOOD, np.full(4, -1, dtype=np.int8), np.full(4, np.nan, dtype=np.float32))
    assert len(set(draw(unlabelled))) == 2
    with pytest.raises(ValueError, match="not two reviews"):
        draw(Slice(["one"], np.array([1], dtype=np.int8), np.array([1.0], dtype=np.float32)))


def test_a_language_model_has_nothing_but_samples() -> None:
    model = Explorer(predictor(latent=0), known())
    assert model.latent == 0
    places = model.samples(3, seed=1)
    assert len(places) == 3
    assert all((place.positive, place.read_back) == (None, None) for place in places)
    for ask in (
        lambda: model.read([GOOD[0]]),
        lambda: model.neighbours(GOOD[0]),
        lambda: model.between(GOOD[0], BAD[0]),
        lambda: model.push(GOOD[0]),
    ):
        with pytest.raises(NothingToExplore, match="nothing but samples"):
            ask()
