from __future__ import annotations

import pytest

from textvae.urls import masked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@127.0.0.1:1/0", "redis://:***@127.0.0.1:1/0"),
        ("postgresql://ada:secret@db/x", "postgresql://ada:***@db/x"),
        ("redis://:se@cret@h:1/0", "redis://:***@h:1/0"),
        ("redis://h:1/0?password=secret&db=2", "redis://h:1/0?password=***&db=2"),
        ("redis://h:1/0?db=2&password=se@cret", "redis://h:1/0?db=2&password=***"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock?password=***"),
        # Not URLs, strictly, but what is typed when a password holds such a character.
        ("redis://:se/cret@h:1/0", "redis://***"),
        ("redis://:se#cret@h:1/0", "redis://***"),
        ("redis://:[secret@h:1/0", "redis://***"),
        (":secret@127.0.0.1:6379/0", "***@127.0.0.1:6379/0"),
        ("ada:se@cret@h:1", "***@h:1"),
        # Nothing to hide.
        ("localhost:6379", "localhost:6379"),
        ("/home/ada/a@b", "/home/ada/a@b"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("sqlite:////home/ada/a@b.db", "sqlite:////home/ada/a@b.db"),
        ("s3://bucket/a@b?region=eu", "s3://bucket/a@b?region=eu"),
    ],
)
def test_no_password_is_shown_and_all_else_is(url: str, shown: str) -> None:
    assert masked(url) == shown
