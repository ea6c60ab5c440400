"""Checkpoints: written whole or not at all, verified before they are believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from textvae import checkpoint
from textvae.checkpoint import CheckpointError, CheckpointUnreadable, Position, Saved, to_keep
from textvae.config import Config
from textvae.model import TextVAE
from textvae.parsing import parse
from textvae.vocabulary import Vocabulary, build

CONFIG = parse(
    Config,
    {
        "vocabulary": {"kind": "words", "size": 30, "max_length": 8},
        "model": {"embedding": 4, "encoder_hidden": 4, "latent": 3, "decoder_hidden": 4},
    },
)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return build(CONFIG.vocabulary, ["a good film", "a bad film, naïve"])


@pytest.fixture
def trained() -> tuple[TextVAE, torch.optim.Adam]:
    """A model with an optimizer that has taken two steps."""
    torch.manual_seed(0)
    model = TextVAE(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-7)
    for _ in range(2):
        optimizer.zero_grad()
        sum(parameter.square().sum() for parameter in model.parameters()).backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, trained, vocabulary, **more) -> str:
    model, optimizer = trained
    given = {"position": Position(1, 20, 0), "metrics": {"validation": {"loss": 2.5, "kl": None}}, **more}
    return checkpoint.save(
        folder, model=model, optimizer=optimizer, config=CONFIG, vocabulary=vocabulary, **given
    )


def test_what_is_saved_is_loaded(tmp_path, trained, vocabulary):
    digest = save(tmp_path / "epoch-01", trained, vocabulary, sums={"tokens": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-01"]
    assert {path.name for path in (tmp_path / "epoch-01").iterdir()} == {*checkpoint.FILES, "manifest.json"}
    loaded = checkpoint.load(tmp_path / "epoch-01", digest=digest)
    assert loaded.digest == digest
    assert loaded.config == CONFIG
    assert loaded.position == Position(1, 20, 0)
    assert loaded.metrics == {"validation": {"loss": 2.5, "kl": None}}
    assert loaded.sums == {"tokens": 3}
    assert loaded.vocabulary.to_json() == vocabulary.to_json()
    model, optimizer = trained
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model_state[name], value)

    # The optimizer goes on exactly: one more step of either gives the same weights.
    other = TextVAE(CONFIG)
    other.load_state_dict(loaded.model_state)
    resumed = torch.optim.Adam(other.parameters(), lr=9.0)
    resumed.load_state_dict(loaded.optimizer_state)
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for each, its in ((model, optimizer), (other, resumed)):
        its.zero_grad()
        sum(parameter.abs().sum() for parameter in each.parameters()).backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_same_content_has_the_same_digest(tmp_path, trained, vocabulary):
    assert save(tmp_path / "a", trained, vocabulary) == save(tmp_path / "b", trained, vocabulary)
    assert save(tmp_path / "c", trained, vocabulary, position=Position(2)) != save(
        tmp_path / "a", trained, vocabulary
    )


def test_for_prediction_the_optimizer_is_left_unread(tmp_path, trained, vocabulary):
    save(tmp_path / "a", trained, vocabulary)
    assert checkpoint.load(tmp_path / "a", optimizer=False).optimizer_state == {}


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_changed_file_is_named(tmp_path, trained, vocabulary, name):
    save(tmp_path / "a", trained, vocabulary)
    path = tmp_path / "a" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: its SHA-256 is .* torn or changed"):
        checkpoint.load(tmp_path / "a")


@pytest.mark.parametrize("name", [*checkpoint.FILES, "manifest.json"])
def test_a_missing_file_is_named(tmp_path, trained, vocabulary, name):
    save(tmp_path / "a", trained, vocabulary)
    (tmp_path / "a" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        checkpoint.load(tmp_path / "a")


def test_a_file_that_cannot_be_read_is_not_one_that_is_wrong(tmp_path, trained, vocabulary, monkeypatch):
    save(tmp_path / "a", trained, vocabulary)
    save(tmp_path / "b", trained, vocabulary)
    (tmp_path / "b" / checkpoint.MODEL).unlink()
    (tmp_path / "b" / checkpoint.MODEL).mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: Is a directory") as wrong:
        checkpoint.verify(tmp_path / "b")
    assert not isinstance(wrong.value, OSError)

    def fails(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "sha256", fails)
    with pytest.raises(CheckpointUnreadable, match=r"manifest\.json: cannot be read: Input/output error"):
        checkpoint.verify(tmp_path / "a")


def test_another_digest_is_refused(tmp_path, trained, vocabulary):
    save(tmp_path / "a", trained, vocabulary)
    with pytest.raises(CheckpointError, match=r"manifest.json.*not the checkpoint that was recorded"):
        checkpoint.load(tmp_path / "a", digest="0" * 64)


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", '{"format": 1}', '{"format": 2, "files": {}}', '{"format": 1, "files": {"../x": "0"}}'],
)
def test_a_folder_with_another_manifest_is_no_checkpoint(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="manifest"):
        checkpoint.load(tmp_path)


def test_a_config_of_another_version_is_an_error(tmp_path, trained, vocabulary):
    save(tmp_path / "a", trained, vocabulary)
    config = tmp_path / "a/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "novelty": 1}))
    manifest = tmp_path / "a/manifest.json"
    value = json.loads(manifest.read_text())
    value["files"]["config.json"] = checkpoint.sha256(config)
    manifest.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"this version can read.*novelty"):
        checkpoint.load(tmp_path / "a")


def test_nothing_stays_behind_when_writing_fails(tmp_path, trained, vocabulary, monkeypatch):
    save(tmp_path / "a", trained, vocabulary)
    before = checkpoint.verify(tmp_path / "a")

    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sha256", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "a", trained, vocabulary, position=Position(9))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert checkpoint.verify(tmp_path / "a") == before


def test_an_older_checkpoint_of_the_name_is_replaced(tmp_path, trained, vocabulary):
    save(tmp_path / "a", trained, vocabulary)
    save(tmp_path / "a", trained, vocabulary, position=Position(2, 40, 0))
    assert checkpoint.load(tmp_path / "a").position.epoch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_sweep_removes_what_a_killed_process_left(tmp_path, trained, vocabulary):
    save(tmp_path / "a", trained, vocabulary)
    (tmp_path / ".b.0123.partial").mkdir()
    (tmp_path / ".b.0123.old").mkdir()
    checkpoint.sweep(tmp_path)
    checkpoint.sweep(tmp_path / "not there")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_saved_in_lists_by_step(tmp_path, trained, vocabulary):
    save(tmp_path / "epoch-02", trained, vocabulary, position=Position(2, 40, 0))
    save(tmp_path / "step-000025", trained, vocabulary, position=Position(1, 25, 5), metrics={})
    save(tmp_path / "epoch-01", trained, vocabulary)
    (tmp_path / "half").mkdir()
    found = checkpoint.saved_in(tmp_path)
    assert [each.name for each in found] == ["epoch-01", "step-000025", "epoch-02"]
    assert [each.metrics for each in found] == [{"loss": 2.5, "kl": None}, {}, {"loss": 2.5, "kl": None}]


@pytest.mark.parametrize("state", [None, b"torn", b"\xff", b"[]", b'{"position": {}}', b'{"position": 3}'])
def test_one_without_a_readable_state_is_listed_as_the_oldest(tmp_path, trained, vocabulary, state):
    save(tmp_path / "epoch-01", trained, vocabulary)
    save(tmp_path / "epoch-02", trained, vocabulary, position=Position(2, 40, 0))
    path = tmp_path / "epoch-02" / checkpoint.STATE
    path.unlink() if state is None else path.write_bytes(state)
    assert checkpoint.saved_in(tmp_path)[0] == Saved("epoch-02", -1)
    assert [each.name for each in checkpoint.saved_in(tmp_path)] == ["epoch-02", "epoch-01"]


SAVED = [
    Saved("e1", 10, {"acc": 0.5, "loss": 3.0}),
    Saved("e2", 20, {"acc": 0.9, "loss": 2.0}),
    Saved("s", 25),
    Saved("e3", 30, {"acc": 0.9, "loss": 2.5}),
    Saved("e4", 40, {"acc": float("nan"), "loss": None}),
]


@pytest.mark.parametrize(
    ("last", "metric", "mode", "expected"),
    [
        (1, "acc", "max", {"e2", "e4"}),  # of equally good ones the oldest
        (2, "acc", "max", {"e2", "e3", "e4"}),
        (1, "acc", "min", {"e1", "e4"}),
        (1, "loss", "min", {"e2", "e4"}),
        (0, "loss", "max", {"e1"}),
        (1, "unknown", "max", {"e4"}),
        (99, "loss", "min", {"e1", "e2", "s", "e3", "e4"}),
    ],
)
def test_the_best_and_the_last_are_kept(last, metric, mode, expected):
    assert to_keep(SAVED, last, metric, mode) == expected
    assert to_keep(reversed(SAVED), last, metric, mode) == expected


def test_of_nothing_nothing_is_kept():
    assert to_keep([], 2, "acc", "max") == set()
