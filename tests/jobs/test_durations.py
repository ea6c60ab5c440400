from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from jobs.durations import LOCAL, ago, moment, seconds

NOON = datetime(2030, 6, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("2h30m", 9000),
        ("1.5h", 5400),
        ("1d 12h", 129600),
        ("1w", 604800),
    ],
)
def test_lengths_of_time(text: str, value: float):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "-5", "5x", "h", "5m3", "1e3", "nan", "inf"])
def test_what_is_no_length_of_time_is_named(text: str):
    with pytest.raises(ValueError, match="no length of time"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("+90m", NOON + timedelta(minutes=90)),
        ("18:30", NOON.replace(hour=18, minute=30)),
        ("9:00", NOON.replace(day=2, hour=9)),  # the next one
        ("12:00", NOON.replace(day=2)),
        ("2030-07-01", datetime(2030, 7, 1, tzinfo=NOON.tzinfo)),
        ("2030-07-01T10:00Z", datetime(2030, 7, 1, 10, tzinfo=UTC)),
        ("2030-07-01 10:00+05:00", datetime(2030, 7, 1, 5, tzinfo=UTC)),
    ],
)
def test_moments(text: str, at: datetime):
    assert moment(text, NOON) == at


def test_a_zone_is_asked_for_the_moment_that_is_meant(monkeypatch: pytest.MonkeyPatch):
    """In Berlin summer begins on 2027-03-28 and ends on 2027-10-31."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        winter = datetime(2026, 12, 1, 12, tzinfo=UTC).astimezone(LOCAL)
        assert (winter.hour, winter.utcoffset()) == (13, timedelta(hours=1))
        assert moment("2027-07-31T18:00", winter) == datetime(2027, 7, 31, 16, tzinfo=UTC)
        assert moment("2027-01-31T18:00", winter) == datetime(2027, 1, 31, 17, tzinfo=UTC)
        before = datetime(2027, 3, 27, 18, tzinfo=UTC).astimezone(LOCAL)
        assert moment("18:00", before) == datetime(2027, 3, 28, 16, tzinfo=UTC)
        assert moment("+24h", before) == datetime(2027, 3, 28, 18, tzinfo=UTC)
        assert ago("24h", moment("+24h", before)) == before
        assert datetime.now(LOCAL).tzname() in ("CET", "CEST")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "25:00", "18:99", "2030-13-01", "+", "tomorrow"])
def test_what_is_no_moment_is_named(text: str):
    with pytest.raises(ValueError):
        moment(text, NOON)


@pytest.mark.parametrize(
    "text",
    ["+99999999999d", "+" + 400 * "9", "+2999999d", "9999-12-31T23:00-05:00", "0001-01-01T01:00+05:00"],
)
def test_a_moment_that_no_clock_shows_is_named(text: str):
    with pytest.raises(ValueError, match="too far away"):
        moment(text, NOON)


def test_a_while_ago():
    assert ago("1d12h", NOON) == NOON - timedelta(hours=36)
    with pytest.raises(ValueError, match="no length of time"):
        ago("yore", NOON)
    for text in ("99999999d", "99999999999d", 400 * "9"):
        with pytest.raises(ValueError, match="too far away"):
            ago(text, NOON)
