"""Model versions: made, promoted, rolled back."""

from __future__ import annotations

import pytest

from jobs.store import Conflict, EventKind, NewCheckpoint, NotFound, Store

from ..conftest import DATABASES as DATABASES
from .conftest import Trained, kinds, make_version, record_version


def test_a_version_is_recorded_and_promoted_in_one(store: Store, trained: Trained):
    made = trained("first", 0.8)
    assert store.models() == []
    assert store.served() == []
    assert make_version(store, "first", 1, made) == 1
    (served,) = store.served()
    assert (served.model, served.version, served.checkpoint, served.digest) == (
        "reviews",
        1,
        made.id,
        made.digest,
    )
    assert (served.value, served.metrics) == (0.8, dict(made.metrics))
    assert store.version("reviews") == store.version("reviews", 1) == served
    assert [model.name for model in store.models()] == ["reviews"]
    assert kinds(store, "first")[-2:] == [EventKind.VERSION, EventKind.PROMOTED]
    (promotion,) = store.promotions("reviews")
    assert (promotion.version, promotion.rollback, promotion.by) == (1, False, "attempt")


def test_only_a_better_checkpoint_becomes_a_version(store: Store, trained: Trained):
    make_version(store, "first", 1, trained("first", 0.8))
    for id, value in (("worse", 0.7), ("equal", 0.8)):
        made = trained(id, value)
        assert record_version(store, id, 1, made) is None
    assert make_version(store, "better", 1, trained("better", 0.9)) == 4  # two numbers were given out in vain
    assert store.models()[0].versions == (1, 4)


def test_a_version_that_is_recorded_again_is_the_same(store: Store, trained: Trained):
    """Whoever did not hear whether the first try was committed tries again."""
    made = trained("first", 0.8)
    first = record_version(store, "first", 1, made)
    assert first is not None
    assert record_version(store, "first", 1, made, version=first.version) == first
    assert len(store.promotions("reviews")) == 1


def test_versions_of_different_metrics_are_compared_on_the_new_one(store: Store, trained: Trained):
    make_version(store, "first", 1, trained("first", 0.8))  # its loss is 0.2

    def record(id: str, value: float, metric: str, mode: str) -> bool:
        add = trained(id, value)
        made = store.record_checkpoint(
            id, 1, NewCheckpoint("by-metric", "x", "0" * 64, 1, 11, 0, value, {metric: value})
        )
        assert add.id != made.id
        return record_version(store, id, 1, made, metric=metric, mode=mode) is not None

    assert not record("higher-loss", 0.3, "loss", "min")
    assert record("lower-loss", 0.1, "loss", "min")
    # The served version has no such metric at all: the new one says something that the old one cannot.
    assert record("other", 0.5, "token_accuracy", "max")


def test_promote_and_roll_back(store: Store, trained: Trained):
    for value in (0.6, 0.7, 0.8):
        id = f"job-{value}".replace(".", "")
        make_version(store, id, 1, trained(id, value))
    assert store.version("reviews").version == 3
    assert store.roll_back("reviews", by="ada", reason="odd answers").version == 2
    assert store.roll_back("reviews", by="ada").version == 1
    with pytest.raises(Conflict, match="no version that was served before version 1"):
        store.roll_back("reviews", by="ada")
    assert store.promote("reviews", 3, by="bob").version == 3
    assert store.promote("reviews", 3, by="bob").version == 3  # already: nothing to record
    assert store.roll_back("reviews", by="ada").version == 1
    history = [(p.version, p.rollback, p.by) for p in store.promotions("reviews")]
    assert history[3:] == [(2, True, "ada"), (1, True, "ada"), (3, False, "bob"), (1, True, "ada")]
    with pytest.raises(NotFound, match="has no version 9"):
        store.promote("reviews", 9, by="ada")
    for wrong in (lambda: store.roll_back("nobody", by="ada"), lambda: store.versions("nobody")):
        with pytest.raises(NotFound):
            wrong()


def test_after_a_roll_back_the_served_version_is_what_must_be_beaten(store: Store, trained: Trained):
    """Someone rolled back because the better number did not mean a better model."""
    for id, value in (("first", 0.6), ("second", 0.9)):
        make_version(store, id, 1, trained(id, value))
    store.roll_back("reviews", by="ada")
    make_version(store, "third", 1, trained("third", 0.7))
    assert store.version("reviews").value == 0.7
