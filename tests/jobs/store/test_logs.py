"""The logs of attempts, kept in pieces."""

from __future__ import annotations

import pytest

from jobs.store import AttemptState, NotFound, Store

from ..conftest import DATABASES as DATABASES
from .conftest import AddJob


def test_a_log_is_read_from_any_offset(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    assert (store.log("first", 1), store.log_size("first", 1)) == (b"", None)
    whole = "first line\nzweite Zeile: ü\nthird\n".encode()
    for start, end in ((0, 11), (11, 29), (29, len(whole))):
        store.keep_log("first", 1, start, whole[start:end])
        store.keep_log("first", 1, start, whole[start:end])  # an answer may be lost
    assert store.log_size("first", 1) == len(whole)
    for offset in range(len(whole) + 3):
        assert store.log("first", 1, offset) == whole[offset:]
    for far in (2**31, 2**62):
        assert store.log("first", 1, far) == b""
    assert store.log("first", 1, 5, pieces=1) == whole[5:11]
    assert store.log("first", 2) == b""


def test_a_log_may_end_after_its_attempt(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    store.finish_attempt("first", 1, AttemptState.LOST, by="test")
    store.open_attempt("first", 2, by="test")
    store.keep_log("first", 1, 0, b"not the active attempt; stopping\n")
    assert store.log("first", 1) == b"not the active attempt; stopping\n"
    assert store.log("first", 2) == b""


def test_an_attempt_that_never_was_has_no_log(store: Store, add_job: AddJob):
    add_job("first")
    with pytest.raises(NotFound, match="no attempt 1"):
        store.keep_log("first", 1, 0, b"x\n")
