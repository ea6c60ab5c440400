"""Lengths of time and moments as people write them: `90m`, `2h30m`; `2030-01-31 18:00`, `18:00`, `+2h`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

_UNITS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])\s*")
LENGTH = rf"(?:{_PART.pattern})+"
"""What a length of time with units looks like."""
_TIME = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")


def seconds(text: str) -> float:
    """`90`, `90s`, `1.5h`, `2h30m`, `1d12h` in seconds. Raises ValueError for anything else."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(LENGTH, text):
        raise ValueError(f"{text!r} is no length of time: a number of seconds, or such as 90m, 2h30m, 3d")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


class _Local(tzinfo):
    """The zone of this machine, by its rules for each moment: not the offset that holds today."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, moment: datetime) -> datetime:
        return moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=self)


LOCAL = _Local()


def moment(text: str, now: datetime) -> datetime:
    """A moment: `+2h` from now, `18:00` (the next one), or ISO 8601; in the zone of `now` if it names none.

    Raises ValueError for anything else.
    """
    text = text.strip()
    if text.startswith("+"):
        return _apart(now, seconds(text[1:]), text)
    if _TIME.fullmatch(text):
        hour, minute, *rest = (int(part) for part in text.split(":"))
        day = now.replace(hour=hour, minute=minute, second=rest[0] if rest else 0, microsecond=0)
        return day if day > now else day + timedelta(days=1)
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no moment: such as 18:00, +2h, 2030-01-31T18:00 or 2030-01-31T18:00Z"
        ) from error
    return _apart(given if given.tzinfo else given.replace(tzinfo=now.tzinfo), 0, text)


def ago(text: str, now: datetime) -> datetime:
    """The moment that was so long before `now`. Raises ValueError for what is no length of time."""
    return _apart(now, -seconds(text), text)


def _apart(moment: datetime, seconds: float, text: str) -> datetime:
    """A moment so many seconds later; ValueError if a clock of some zone could not show it."""
    day = timedelta(days=1)
    try:
        # In UTC: of a zone's own clock an hour may be missing, or come twice.
        later = (moment.astimezone(UTC) + timedelta(seconds=seconds)).astimezone(moment.tzinfo)
        _ = later - 2 * day, later + 2 * day
    except OverflowError as error:
        raise ValueError(f"{text!r} is too far away: years go from 1 to 9999") from error
    return later
