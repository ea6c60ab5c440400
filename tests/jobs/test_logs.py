"""How the daemons log, and how attempts' logs are copied."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import logs
from jobs.attempt.log import CHUNK, LIMIT, AttemptLog

from .conftest import Clock


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was again afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_the_ids_of_job_and_attempt(root: logging.Logger):
    stream = io.StringIO()
    logs.configure(stream, "json")
    logger = logging.getLogger("textvae.test")
    logger.info("launched %s", "abc-2", extra=logs.about("abc", 2))
    logger.warning("job %s waits", "abc", extra=logs.about("abc"))
    try:
        raise ValueError("oh")
    except ValueError:
        logger.exception("a pass failed")
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(t["level"], t["message"], t.get("job"), t.get("attempt")) for t in told] == [
        ("info", "launched abc-2", "abc", 2),
        ("warning", "job abc waits", "abc", None),
        ("error", "a pass failed", None, None),
    ]
    assert told[1]["attempt"] is None and "job" not in told[2]  # a sweep has no attempts
    assert told[2]["error"].endswith("ValueError: oh")
    assert told[0]["at"].endswith("Z") and told[0]["logger"] == "textvae.test"


def test_text_lines_are_for_people(root: logging.Logger):
    stream = io.StringIO()
    logs.configure(stream)
    logging.getLogger("textvae.test").info("launched %s", "abc-2", extra=logs.about("abc", 2))
    assert stream.getvalue().endswith(" INFO textvae.test: launched abc-2\n")


class Kept(dict[int, bytes]):
    """What was kept of a log, by offset; it refuses while the database is away."""

    away = False

    def __call__(self, start: int, text: bytes) -> None:
        if self.away:
            raise ConnectionError("the database does not answer")
        assert start == self.end
        self[start] = text

    @property
    def end(self) -> int:
        return sum(map(len, self.values()))

    @property
    def whole(self) -> bytes:
        return b"".join(self.values())


def test_a_log_is_copied_in_whole_lines_and_nothing_twice(tmp_path: Path):
    path, kept = tmp_path / "log", Kept()
    with AttemptLog(path, Clock(), label="abc-1") as log:
        log.copy(kept)
        assert kept == {}
        log.write("one")
        log.copy(kept)
        log.copy(kept)
        assert kept.whole == b"2030-01-01T00:00:00.000Z abc-1 one\n" == path.read_bytes()
        kept.away = True
        log.write("two\nthree")
        with pytest.raises(ConnectionError):
            log.copy(kept)
        kept.away = False
        log.write("x" * (2 * CHUNK))
        log.copy(kept)
        assert kept.whole == path.read_bytes()
        assert max(map(len, kept.values())) <= CHUNK


def test_an_endless_log_is_not_copied_for_ever(tmp_path: Path):
    path, kept = tmp_path / "log", Kept()
    with AttemptLog(path, Clock()) as log:
        for _ in range(LIMIT // CHUNK + 3):
            log.write("x" * (CHUNK - 100))
        for _ in range(2):
            log.copy(kept)
    assert LIMIT - 2 * CHUNK < kept.end <= LIMIT
    assert kept.whole.endswith(b"(the log goes on in its file, on the attempt's node)\n")


def test_an_attempts_log_hears_the_loggers_of_its_process(tmp_path: Path):
    path = tmp_path / "log"
    logger = logging.getLogger("textvae.somewhere")
    with AttemptLog(path, Clock(), label="abc-1") as log, log.hearing("textvae"):
        logger.info("preparing")
    logger.info("nobody hears this")
    assert path.read_text() == "2030-01-01T00:00:00.000Z abc-1 INFO textvae.somewhere: preparing\n"
