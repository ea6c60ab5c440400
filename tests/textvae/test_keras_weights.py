"""The Keras model, computed a second time in float64 NumPy, from Keras' documentation and nothing of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from textvae.config import Config
from textvae.model import from_keras_weights
from textvae.parsing import parse

Array = NDArray[np.float64]


def sizes(**model: Any) -> Config:
    sections = {
        "vocabulary": {"kind": "words", "size": 13, "max_length": 9},
        "model": {
            "embedding": 5,
            "encoder_hidden": 6,
            "encoder_layers": 2,
            "dense": 7,
            "latent": 4,
            "noise_std": 0.01,
            "decoder": "repeat",
            "decoder_hidden": 8,
            "decoder_layers": 2,
            "sentiment_hidden": 3,
            **model,
        },
        "objective": "seed",
    }
    return parse(Config, sections)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def lstm(x: Array, kernel: Array, recurrent: Array, bias: Array) -> Array:
    """Keras' LSTM over (batch, time, in): outputs (batch, time, units). Gates i, f, c, o side by side."""
    units = recurrent.shape[0]
    h = c = np.zeros((x.shape[0], units))
    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1)


class Keras:
    """The layers of the 2017 model, taking their weights off one list in Keras' order."""

    def __init__(self, config: Config, arrays: list[Array]):
        rest = list(arrays)

        def take(n: int) -> list[Array]:
            taken, rest[:] = rest[:n], rest[n:]
            return taken

        model = config.model
        self.length = config.vocabulary.max_length
        [self.embedding] = take(1)
        self.encoder = [(take(3), take(3)) for _ in range(model.encoder_layers)]
        self.dense, self.mean, self.log_var = take(2) if model.dense else None, take(2), take(2)
        self.decoder = [take(3) for _ in range(model.decoder_layers)]
        self.output = take(2)
        self.sentiment_dense = take(2) if model.sentiment_hidden else None
        self.sentiment_output = take(2)
        assert not rest

    def encode(self, tokens: NDArray[np.int64]) -> tuple[Array, Array]:
        x = self.embedding[tokens]
        for forward, backward in self.encoder:
            ahead, behind = lstm(x, *forward), lstm(x[:, ::-1], *backward)
            x = np.concatenate([ahead, behind[:, ::-1]], axis=-1)
        # return_sequences=False: each direction's state after the last step that it took
        h = np.concatenate([ahead[:, -1], behind[:, -1]], axis=-1)
        if self.dense:
            h = np.maximum(h @ self.dense[0] + self.dense[1], 0.0)
        return h @ self.mean[0] + self.mean[1], h @ self.log_var[0] + self.log_var[1]

    def decode(self, z: Array) -> Array:
        x = np.repeat(z[:, None], self.length, axis=1)
        for weights in self.decoder:
            x = lstm(x, *weights)
        return softmax(x @ self.output[0] + self.output[1])

    def sentiment(self, z: Array) -> Array:
        if self.sentiment_dense:
            z = z @ self.sentiment_dense[0] + self.sentiment_dense[1]
        return sigmoid(z @ self.sentiment_output[0] + self.sentiment_output[1])[:, 0]


def shapes(config: Config) -> list[tuple[int, ...]]:
    m, words = config.model, config.vocabulary.size

    def of_lstm(fed: int, units: int) -> list[tuple[int, ...]]:
        return [(fed, 4 * units), (units, 4 * units), (4 * units,)]

    result: list[tuple[int, ...]] = [(words, m.embedding)]
    fed = m.embedding
    for _ in range(m.encoder_layers):
        result += 2 * of_lstm(fed, m.encoder_hidden)
        fed = 2 * m.encoder_hidden
    if m.dense:
        result += [(fed, m.dense), (m.dense,)]
        fed = m.dense
    result += 2 * [(fed, m.latent), (m.latent,)]
    fed = m.latent
    for _ in range(m.decoder_layers):
        result += of_lstm(fed, m.decoder_hidden)
        fed = m.decoder_hidden
    result += [(fed, words), (words,)]
    if m.sentiment_hidden:
        result += [(m.latent, m.sentiment_hidden), (m.sentiment_hidden,)]
    return [*result, (m.sentiment_hidden or m.latent, 1), (1,)]


def weights(config: Config, seed: int = 0) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(scale=0.6, size=shape) for shape in shapes(config)]


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"encoder_layers": 1, "decoder_layers": 1},
        {"encoder_layers": 3, "dense": None, "sentiment_hidden": None},
    ],
)
def test_outputs_are_those_of_keras(model: dict[str, Any]) -> None:
    config = sizes(**model)
    arrays = weights(config)
    keras, ours = Keras(config, arrays), from_keras_weights(config, arrays)
    random = np.random.default_rng(1)
    tokens = random.integers(0, 13, size=(11, 9))
    tokens[:4, :5] = 0  # pre-padding, which Keras processed like any token
    z = random.normal(size=(11, config.model.latent))
    with torch.inference_mode():
        mean, log_var = ours.encode(torch.from_numpy(tokens))
        given = torch.from_numpy(z).float()
        words = ours.decode(given).softmax(-1)
        sentiment = ours.predict_sentiment(given)
    expected_mean, expected_log_var = keras.encode(tokens)
    np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(log_var, expected_log_var, rtol=0, atol=1e-5)
    np.testing.assert_allclose(words, keras.decode(z), rtol=0, atol=1e-5)
    np.testing.assert_allclose(sentiment, keras.sentiment(z), rtol=0, atol=1e-5)


def test_the_test_can_fail() -> None:
    """Swapping two gates, or the encoder's directions, is far outside the tolerance."""
    config = sizes()
    arrays = weights(config)
    keras = Keras(config, arrays)
    tokens = np.random.default_rng(1).integers(0, 13, size=(11, 9))
    swapped = [*arrays[:1], *arrays[4:7], *arrays[1:4], *arrays[7:]]
    with torch.inference_mode():
        mean, _ = from_keras_weights(config, swapped).encode(torch.from_numpy(tokens))
    assert np.abs(mean.numpy() - keras.encode(tokens)[0]).max() > 1e-2
    i, f, c, o = np.split(arrays[1], 4, axis=1)
    gates = [arrays[0], np.concatenate([i, f, o, c], axis=1), *arrays[2:]]
    with torch.inference_mode():
        mean, _ = from_keras_weights(config, gates).encode(torch.from_numpy(tokens))
    assert np.abs(mean.numpy() - keras.encode(tokens)[0]).max() > 1e-2


def test_every_parameter_comes_from_keras() -> None:
    config = sizes()
    arrays = weights(config)
    model = from_keras_weights(config, arrays)
    assert sum(p.numel() for p in model.parameters()) == sum(a.size for a in arrays)
    assert not model.training
    ours = np.sort(np.concatenate([p.detach().numpy().ravel() for p in model.parameters()]))
    theirs = np.sort(np.concatenate([a.astype(np.float32).ravel() for a in arrays]))
    np.testing.assert_array_equal(ours, theirs)


def test_the_original_has_31_arrays_of_12_863_036_numbers() -> None:
    config = sizes(
        embedding=64, encoder_hidden=500, dense=435, latent=200, decoder_hidden=500, sentiment_hidden=100
    ).model_copy(update={"vocabulary": sizes().vocabulary.model_copy(update={"size": 1000})})
    assert len(shapes(config)) == 31
    assert sum(int(np.prod(shape)) for shape in shapes(config)) == 12_863_036


def test_errors_name_the_array() -> None:
    config = sizes()
    arrays = weights(config)
    with pytest.raises(ValueError, match="31 arrays, got 30"):
        from_keras_weights(config, arrays[:-1])
    for number in range(1, 32):
        wrong = [*arrays]
        wrong[number - 1] = np.zeros((2, 3, 4))
        with pytest.raises(ValueError, match=rf"^array {number} of 31, .*got \(2, 3, 4\)"):
            from_keras_weights(config, wrong)
    transposed = [*arrays]
    transposed[2] = arrays[2].T
    with pytest.raises(
        ValueError,
        match=r"array 3 of 31, encoder LSTM 1 forward, recurrent kernel: "
        r"must have shape \(6, 24\), got \(24, 6\)",
    ):
        from_keras_weights(config, transposed)
    with pytest.raises(ValueError, match="must be repeat"):
        from_keras_weights(parse(Config, {}), arrays)


def test_whole_number_arrays_are_taken_too() -> None:
    config = sizes()
    arrays = [np.ones(shape, dtype=np.int64) for shape in shapes(config)]
    assert float(from_keras_weights(config, arrays).output.weight.detach().sum()) == 13 * 8
