from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from textvae import steps
from textvae.batches import Batch
from textvae.config import Config, load
from textvae.memory import expected_memory, parameter_count
from textvae.model import TextVAE, frame_length, line
from textvae.parsing import parse
from textvae.validation import autocast
from textvae.vocabulary import END, OOV, PAD, START

from .small import config

torch.set_num_threads(1)
CONFIGS = Path(__file__).parents[2] / "configs"


FULL = {"encoder_layers": 2, "decoder_layers": 2, "dense": 7, "sentiment_hidden": 3, "dropout": 0.2}


def batch(kind: str) -> Batch:
    random = torch.Generator().manual_seed(0)
    if kind == "seed":
        tokens = torch.randint(1, 13, (5, 9), generator=random)
        return Batch(tokens, torch.full((5,), 9), torch.tensor([1, 0, 1, 0, 1]), 5)
    lengths = torch.tensor([10, 4, 1, 7, 2])
    tokens = torch.randint(4, 13, (5, 10), generator=random)
    tokens[torch.arange(10) >= lengths[:, None]] = PAD
    tokens[torch.arange(5), lengths - 1] = END
    return Batch(tokens, lengths, torch.tensor([1, 0, -1, 0, 1]), 5)


def test_the_original_has_12_863_036_parameters() -> None:
    settings = load(CONFIGS / "seed.yaml")
    assert parameter_count(settings) == 12_863_036
    assert sum(p.numel() for p in TextVAE(settings).parameters()) == 12_863_036


def test_parameter_count_allocates_nothing() -> None:
    vast = config(model={"encoder_hidden": 10**6, "decoder_hidden": 10**6})
    assert parameter_count(vast) > 10**13
    small = config(model=FULL)
    assert parameter_count(small) == sum(p.numel() for p in TextVAE(small).parameters())


def test_initial_weights_are_those_of_keras() -> None:
    torch.manual_seed(0)
    model = TextVAE(config("seed", {"embedding": 60, "latent": 30, "dense": 50}))
    assert 0.045 < float(model.embedding.weight.detach().abs().max()) <= 0.05
    assert 0.9 * math.sqrt(6 / 80) < float(model.mean.weight.detach().abs().max()) <= math.sqrt(6 / 80)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().sum() == 0, name


@pytest.mark.parametrize("kind", ["seed", "elbo"])
@pytest.mark.parametrize("sizes", [{}, FULL])
def test_shapes(kind: str, sizes: dict[str, Any]) -> None:
    settings = config(kind, sizes)
    model, data = TextVAE(settings).eval(), batch(kind)
    mean, log_var = model.encode(data.tokens, data.lengths)
    assert mean.shape == log_var.shape == (5, 4)
    z = model.sample_posterior(mean, log_var)
    assert z.shape == (5, 4)
    length = frame_length(settings)
    assert length == (9 if kind == "seed" else 10)
    assert model.decode(z, data.tokens).shape == (5, length, 13)
    assert model.sentiment_logits(z).shape == model.predict_sentiment(z).shape == (5,)
    assert model.reconstruct(data.tokens, data.lengths).shape[0] == 5
    assert model.sample(3).shape[0] == 3
    assert model.interpolate(data.tokens[0], data.tokens[0, :9], 4).shape[0] == 4
    weight, bias = model.sentiment_direction()
    torch.testing.assert_close(model.sentiment_logits(z).detach(), (z @ weight + bias).detach())


@pytest.mark.parametrize("kind", ["seed", "elbo"])
@pytest.mark.parametrize("sizes", [{}, FULL])
def test_every_parameter_gets_a_gradient(kind: str, sizes: dict[str, Any]) -> None:
    model = TextVAE(config(kind, sizes))
    model(batch(kind)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["seed", "elbo"])
def test_it_can_learn_five_reviews_by_heart(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"encoder_hidden": 16, "decoder_hidden": 32, "embedding": 16, "noise_std": 0.01}
    model, data = TextVAE(config(kind, sizes)), batch(kind)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    first = last = model(data, kl_weight=0.0)
    for _ in range(250):
        optimizer.zero_grad()
        last = model(data, kl_weight=0.0)
        (last.loss / 5).backward()
        optimizer.step()
    assert float(last.loss.detach()) < 0.2 * float(first.loss.detach())
    assert int(last.tokens_correct) > 0.9 * int(last.tokens)
    assert int(last.sentiment_correct) == int(last.labelled)
    written = model.eval().reconstruct(data.tokens, data.lengths)
    rows = data.tokens[:, : written.shape[1]]
    assert (written == rows).float().mean() > 0.9


def test_a_sentence_of_the_seed_needs_its_full_length() -> None:
    with pytest.raises(ValueError, match="needs 9 tokens a review, got 8"):
        data = batch("seed")
        TextVAE(config("seed"))(Batch(data.tokens[:, 1:], data.lengths, data.labels, 5))


def test_padding_does_not_reach_the_encoding() -> None:
    model, data = TextVAE(config(model=FULL)).eval(), batch("elbo")
    wider = torch.nn.functional.pad(data.tokens, (0, 6))
    with torch.no_grad():
        together = model.encode(data.tokens, data.lengths)
        torch.testing.assert_close(model.encode(wider, data.lengths), together)
        torch.testing.assert_close(model.encode(data.tokens), together)
        for row, length in enumerate(data.lengths.tolist()):
            alone = model.encode(data.tokens[row : row + 1, :length])
            torch.testing.assert_close(alone[0][0], together[0][row])


def test_the_decoder_sees_no_token_before_its_time() -> None:
    model, data = TextVAE(config()).eval(), batch("elbo")
    z = torch.randn(5, 4)
    before = model.decode(z, data.tokens)
    changed = data.tokens.clone()
    changed[:, 5] = 12
    after = model.decode(z, changed)
    torch.testing.assert_close(after[:, :6], before[:, :6])
    assert not torch.allclose(after[0, 6:], before[0, 6:])
    with pytest.raises(ValueError, match="needs the tokens"):
        model.decode(z)


def test_word_dropout_replaces_words_but_not_start_in_training_only() -> None:
    model, data = TextVAE(config(word_dropout=0.5)), batch("elbo")
    tokens = data.tokens.repeat(200, 1)
    previous = steps.previous_tokens(model, tokens, torch.Generator().manual_seed(0))
    assert (previous[:, 0] == START).all()
    dropped = previous[:, 1:] == OOV
    assert 0.45 < float(dropped.float().mean()) < 0.55
    kept = torch.where(dropped, tokens[:, :-1], previous[:, 1:])
    assert torch.equal(kept, tokens[:, :-1])
    assert not (steps.previous_tokens(model.eval(), tokens, None) == OOV).any()


def test_noise_has_the_standard_deviation_of_the_config() -> None:
    model = TextVAE(config("seed", {"noise_std": 0.01}))
    mean, log_var = torch.zeros(20000, 4), torch.full((20000, 4), math.log(4.0))
    z = model.sample_posterior(mean, log_var, torch.Generator().manual_seed(0))
    assert float(z.std()) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("kind", ["seed", "elbo"])
@pytest.mark.parametrize("bf16", [False, True])
def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: str, bf16: bool) -> None:
    model, data = TextVAE(config(kind, **({"word_dropout": 0.3} if kind == "elbo" else {}))), batch(kind)
    results = []
    for at_once in (2**26, 13 * 5, 1):
        monkeypatch.setattr(steps, "LOGITS_AT_ONCE", at_once)
        model.zero_grad()
        settings = Config.model_validate({"training": {"precision": "bf16" if bf16 else "fp32"}})
        with autocast(settings, torch.device("cpu")):  # of what has no units for it, fp32
            losses = model(data, generator=torch.Generator().manual_seed(3))
        losses.loss.backward()
        correct = losses.tokens_correct, losses.positions_correct
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((losses.loss.detach(), *correct, *gradients))
    # Gradients of chunks add up in another order, and bfloat16 has three digits.
    within = {"rtol": 0.1, "atol": 0.05} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(results[1], results[0], **within)
    torch.testing.assert_close(results[2], results[0], **within)


def test_generation_ends_and_writes_no_special_token() -> None:
    torch.manual_seed(0)
    model = TextVAE(config()).eval()
    z = torch.randn(300, 4)
    written = model.generate(z, temperature=1.5, generator=torch.Generator().manual_seed(1))
    again = model.generate(z, temperature=1.5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(written, again)
    assert written.shape == (300, 10)
    assert not ((written == START) | (written == OOV)).any()
    assert not (written[:, 0] == END).any()
    ended = (written == END).cumsum(1) > 0
    after = ended.roll(1, dims=1)
    after[:, 0] = False
    assert ended.any()
    assert torch.equal(written == PAD, after)
    assert model.generate(z, 3).shape == (300, 3)
    assert model.generate(z[:0]).shape[0] == 0
    for cold in (1e-40, 1e-320, 9e-7):  # float32 cannot divide by the first two
        assert torch.equal(model.generate(z, temperature=cold), model.generate(z))
    for wrong in ({"temperature": -1.0}, {"max_length": 0}):
        with pytest.raises(ValueError, match="must be at least"):
            model.generate(z, **wrong)  # type: ignore[arg-type]


def test_greedy_generation_is_the_decoder_fed_with_itself() -> None:
    torch.manual_seed(0)
    model = TextVAE(config(model={"decoder_layers": 2})).eval()
    z = torch.randn(8, 4)
    written = model.generate(z)
    logits = model.decode(z, written).detach()
    logits[:, :, [PAD, START, OOV]] = -math.inf
    logits[:, 0, END] = -math.inf
    expected = logits.argmax(-1)
    real = written != PAD
    assert torch.equal(expected[real], written[real])


def test_generation_stops_once_all_have_ended() -> None:
    model = TextVAE(config()).eval()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[END], model.output.bias[7] = 2.0, 1.0
    assert model.generate(torch.randn(2, 4)).tolist() == [[7, END], [7, END]]


def test_a_line_has_both_ends() -> None:
    a, b = torch.zeros(2), torch.tensor([4.0, 8.0])
    assert line(a, b, 5)[:, 1].tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="at least 2"):
        line(a, b, 1)


@pytest.mark.parametrize("kind", ["seed", "elbo"])
def test_bfloat16_autocast_keeps_losses_in_float32(kind: str) -> None:
    torch.manual_seed(0)
    model, data = TextVAE(config(kind, FULL)).eval(), batch(kind)
    exact = model(data, generator=torch.Generator().manual_seed(0))
    bf16 = Config.model_validate({"training": {"precision": "bf16"}})
    with autocast(bf16, torch.device("cpu")):  # of what has no units for it, fp32
        rough = model(data, generator=torch.Generator().manual_seed(0))
        model.generate(torch.randn(2, 4))
    rough.loss.backward()
    for part in (rough.loss, rough.reconstruction, rough.kl, rough.sentiment, rough.means):
        assert part.dtype == torch.float32
    assert float(rough.loss.detach()) == pytest.approx(float(exact.loss.detach()), rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_state_dict_holds_the_parameters_and_nothing_else() -> None:
    model, data = TextVAE(config(model=FULL)).eval(), batch("elbo")
    assert set(model.state_dict()) == set(dict(model.named_parameters()))
    other = TextVAE(config(model=FULL)).eval()
    other.load_state_dict(model.state_dict())
    losses = [m(data, generator=torch.Generator().manual_seed(0)).loss for m in (model, other)]
    assert torch.equal(losses[0], losses[1])


def test_ddp_takes_it(tmp_path: Path) -> None:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        alone = TextVAE(config(model=FULL)).eval()
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
        data = batch("elbo")
        for _ in range(2):  # DDP rebuilds its buckets after the first step
            for model in (alone, wrapped):
                model.zero_grad()
                model(data, kl_weight=0.5, generator=torch.Generator().manual_seed(0)).loss.backward()
        for ours, theirs in zip(alone.parameters(), wrapped.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, ours.grad)
    finally:
        distributed.destroy_process_group()


def test_only_what_is_decoded_at_once_is_held() -> None:
    """Twice the reviews take more for their n-grams and embeddings alone; a GPU decodes them all at once."""
    mapping = load(CONFIGS / "imdb-cpu.yaml").model_dump()
    small, large = (
        parse(Config, {**mapping, "training": {**mapping["training"], "batch_size": size}})
        for size in (64, 128)
    )
    encoded = 64 * frame_length(small) * (128 + 2 * 3) * 2 * 4
    assert expected_memory(large) - expected_memory(small) == encoded
    assert expected_memory(large, device="cuda") > expected_memory(large) + 4 * encoded


def test_memory_grows_with_what_is_held() -> None:
    small, large = config(), load(CONFIGS / "seed.yaml")
    assert expected_memory(small) < expected_memory(large)
    assert expected_memory(large) > 16 * 12_863_036
    # Two ranks halve the batch but hold the gradients once more.
    assert expected_memory(large, 2) < expected_memory(large)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["elbo", "seed"])
def test_token_losses_count_real_tokens_and_nothing_else(kind: str) -> None:
    torch.manual_seed(0)
    model = TextVAE(config(kind)).eval()
    tokens = batch(kind).tokens
    if kind == "seed":  # pre-padded, START first
        tokens[0, :2], tokens[0, 2], tokens[1, 0] = PAD, START, START
    z = torch.randn(len(tokens), 4)
    losses, correct, counted = model.token_losses(z, tokens)
    log_p = model.decode(z, tokens).log_softmax(-1)
    for row, ids in enumerate(tokens.tolist()):
        total = 0.0
        for position, token in enumerate(ids):
            real = token not in (PAD, START)
            expected = -float(log_p[row, position, token]) if real else 0.0
            total += expected
            assert bool(counted[row, position]) == real
            assert float(losses[row, position]) == pytest.approx(expected, abs=1e-5)
            likeliest = int(log_p[row, position].argmax()) == token
            assert bool(correct[row, position]) == (real and likeliest)
        assert float(model.log_likelihood(z, tokens)[row]) == pytest.approx(-total, abs=1e-4)


def test_ngrams_are_dropped_for_the_sentiment_alone_and_in_training_alone() -> None:
    sizes = {"encoder": "ngrams", "ngram_dropout": 0.9, "mean_scale": 0.5, "variance": "fixed"}
    model, data = TextVAE(config(model=sizes)), batch("elbo")
    with torch.no_grad():
        a, b = (model.posterior(data.tokens, data.lengths) for _ in range(2))
        assert torch.equal(a.mean, b.mean) and not torch.equal(a.told, b.told)
        mean, log_var, told, *_ = model.eval().posterior(data.tokens, data.lengths)
        assert torch.equal(mean, told)
        assert log_var.unique().exp().tolist() == pytest.approx([1 - 0.5**2])
    loss = model.train()(data).loss
    loss.backward()
    assert model.encoder is not None and all(p.grad is not None for p in model.encoder.parameters())


def test_means_that_say_the_same_are_charged_for_it() -> None:
    sizes = {"encoder": "ngrams", "ngram_dropout": 0.0, "mean_scale": 0.5, "noise_std": 1e-6}
    losses = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        model = TextVAE(config(model=sizes, decorrelation_weight=weight))
        assert model.mean is not None
        nn.init.constant_(model.mean.weight, 100.0)  # all four dimensions are one
        losses.append(float(model(batch("elbo")).loss.detach()))
        evaluated = [float(model.eval()(batch("elbo")).loss.detach()) for _ in range(2)]
        assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4)
    # Twelve pairs of dimensions, each with a correlation of one, for five reviews.
    assert losses[1] - losses[0] == pytest.approx(3.0 * 12 * 5, rel=0.02)
