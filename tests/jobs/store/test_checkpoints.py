"""Reports and checkpoints, and which of them are pruned."""

from __future__ import annotations

import pytest

from jobs.store import AttemptState, StaleAttempt, Store

from ..conftest import DATABASES as DATABASES
from .conftest import AddJob, checkpoint, make_version, report


def test_a_checkpoint_and_its_report_are_one_write(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    made = store.record_checkpoint("first", 1, checkpoint(1, 0.75), report(1))
    assert (made.name, made.step, made.value, made.metrics["loss"]) == ("epoch-01", 10, 0.75, 0.25)
    assert store.checkpoint(made.id) == made
    (only,) = store.reports("first")
    assert (only.epoch, only.attempt, only.train) == (1, 1, {"loss": 2.0})
    assert only.validation == {"loss": 2.5}  # JSON knows no NaN
    # Ray may restart the ranks inside an attempt: the same epoch comes again.
    again = store.record_checkpoint("first", 1, checkpoint(1, 0.8), report(1))
    assert (again.id, again.value) == (made.id, 0.8)
    assert len(store.reports("first")) == 1


def test_reports_of_the_newer_attempt_count(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    store.record_report("first", 1, report(1))
    store.record_report("first", 1, report(2))
    store.finish_attempt("first", 1, AttemptState.LOST, by="test")
    store.open_attempt("first", 2, by="test")
    store.record_report("first", 2, report(2))
    assert [(r.epoch, r.attempt) for r in store.reports("first")] == [(1, 1), (2, 2)]


def test_pruning_keeps_the_best_and_the_newest(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    for epoch, value in enumerate([0.5, 0.9, 0.6, 0.7, 0.9], start=1):
        store.record_checkpoint("first", 1, checkpoint(epoch, value))
    doomed = store.prune("first", 1, keep_last=2, mode="max")
    assert sorted(c.name for c in doomed) == ["epoch-01", "epoch-03"]
    assert all(c.deleted is not None for c in doomed)
    assert [c.name for c in store.checkpoints("first")] == ["epoch-05", "epoch-04", "epoch-02"]
    assert len(store.checkpoints("first", deleted=True)) == 5
    # Until their files are gone they are named again: a crash in between leaves nothing behind for ever.
    assert len(store.prune("first", 1, keep_last=2, mode="max")) == 2
    with pytest.raises(StaleAttempt):
        store.purged(doomed[0].id, of=("first", 2))  # not the attempt that counts
    assert len(store.prune("first", 1, keep_last=2, mode="max")) == 2
    for gone in doomed:
        store.purged(gone.id, of=("first", 1))
    assert store.prune("first", 1, keep_last=2, mode="max") == []


def test_pruning_by_least(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    for epoch, value in enumerate([0.1, 0.9, 0.6], start=1):
        store.record_checkpoint("first", 1, checkpoint(epoch, value))
    assert [c.name for c in store.prune("first", 1, keep_last=1, mode="min")] == ["epoch-02"]


def test_pruning_spares_what_a_record_names(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    version = store.record_checkpoint("first", 1, checkpoint(1, 0.5))
    make_version(store, "first", 1, version)
    resumed = store.record_checkpoint("first", 1, checkpoint(2, None))
    store.finish_attempt("first", 1, AttemptState.LOST, by="test")
    store.open_attempt("first", 2, by="test")
    store.join_attempt("first", 2, host="here", resumed_from=resumed.id)
    for epoch, value in ((3, 0.9), (4, 0.6), (5, 0.7)):
        store.record_checkpoint("first", 2, checkpoint(epoch, value, attempt=2))
    assert [c.name for c in store.prune("first", 2, keep_last=1, mode="max")] == ["epoch-04"]
    kept = [c.name for c in store.checkpoints("first")]
    assert kept == ["epoch-05", "epoch-03", "epoch-02", "epoch-01"]
