from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from textvae.ahead import ahead


def test_items_come_in_order_and_are_made_before_they_are_asked_for() -> None:
    made, enough = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            if number == 5:
                enough.set()
            yield number

    got = ahead(items(), 5)
    assert next(got) == 0
    assert enough.wait(30)  # nobody has asked for 1 yet
    assert list(got) == list(range(1, 20))
    assert made == list(range(20))


@pytest.mark.parametrize("count", [1, 3, 50])
def test_nothing_and_less_than_is_looked_ahead_are_whole(count: int) -> None:
    assert list(ahead(iter(()), count)) == []
    assert list(ahead(iter("abcd"), count)) == ["a", "b", "c", "d"]


def test_what_goes_wrong_is_raised_where_it_would_have_been() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    got = ahead(items(), 4)
    assert next(got) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(got)


def test_closed_it_makes_no_more_and_leaves_no_thread() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    got = ahead(items(), 3)
    next(got)
    got.close()  # type: ignore[attr-defined]
    assert len(made) <= 4 + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
