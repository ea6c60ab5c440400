"""logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from jobs.logs import Logs
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, Job, Store

from .test_follow import meanwhile

Run = Callable[..., Result]


def write_log(settings: Settings, job: str, number: int, text: str) -> Path:
    path = settings.attempt_log(job, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    return path


def test_logs_prints_the_newest_attempts_or_the_one_asked_for(
    run: Run, trained: Job, settings: Settings
) -> None:
    write_log(settings, trained.id, 1, "first\n")
    write_log(settings, trained.id, 2, "second\n")
    assert run("logs", "abc").stdout == "second\n"
    assert run("logs", "abc", "--attempt", "1").stdout == "first\n"
    refused = run("logs", "abc", "--attempt", "3")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "no attempt 3; its newest is 2" in refused.stderr


def test_logs_says_when_there_is_none(run: Run, trained: Job, add_job: Callable[..., Job]) -> None:
    missing = run("logs", "abc")
    assert missing.exit_code == 3
    assert "no such log" in missing.stderr
    add_job("job-a")
    assert "has no log yet" in run("logs", "job-a").stderr


def test_logs_follows_through_every_attempt_to_the_end(
    run: Run, store: Store, service: Service, settings: Settings, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")

    def happen() -> None:
        store.open_attempt("job-a", 1, "dispatcher")
        write_log(settings, "job-a", 1, "one\n")
        write_log(settings, "job-a", 1, "two\n")
        service.finish("job-a", 1, AttemptState.LOST, by="dispatcher", cause=Cause.DIED, error="gone")
        store.open_attempt("job-a", 2, "dispatcher")
        write_log(settings, "job-a", 2, "three\n")
        service.finish("job-a", 2, AttemptState.SUCCEEDED, by="attempt")

    with meanwhile(happen):
        result = run("logs", "job-a", "-f")
    assert result.exit_code == 0
    assert result.stdout == "one\ntwo\nthree\n"
    assert "job job-a succeeded" in result.stderr


def test_logs_of_a_job_that_never_had_an_attempt_names_no_log(
    run: Run, store: Store, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    store.request_cancel("job-a", "ada")
    result = run("logs", "job-a", "-f")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "job job-a cancelled; it never had an attempt"


def test_logs_follows_a_letter_that_is_written_in_two_halves(
    run: Run, store: Store, service: Service, settings: Settings, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    store.open_attempt("job-a", 1, "dispatcher")
    path = settings.attempt_log("job-a", 1)
    path.parent.mkdir(parents=True)
    first, second = "caf\N{LATIN SMALL LETTER E WITH ACUTE}\n".encode()[:4], b"\xa9\n"
    path.write_bytes(first)

    def happen() -> None:
        with path.open("ab") as file:
            file.write(second)
        service.finish("job-a", 1, AttemptState.SUCCEEDED, by="attempt")

    with meanwhile(happen):
        assert run("logs", "job-a", "-f").stdout == "caf\N{LATIN SMALL LETTER E WITH ACUTE}\n"


LINES = "2030-01-01T00:00:00.000Z abc12345-2 caf\N{LATIN SMALL LETTER E WITH ACUTE}\nTraceback\nunfinished"


def test_logs_are_read_from_an_offset(run: Run, trained: Job, settings: Settings) -> None:
    write_log(settings, trained.id, 2, LINES)
    assert run("logs", "abc", "--offset", "25").stdout == LINES[25:]
    assert run("logs", "abc", "--offset", "999").stdout == ""


def test_logs_as_json_name_their_job_and_attempt_and_where_to_go_on(
    run: Run, trained: Job, settings: Settings
) -> None:
    write_log(settings, trained.id, 2, LINES)
    told = [json.loads(line) for line in run("logs", "abc", "--json").stdout.splitlines()]
    about = {"job": "abc12345", "attempt": 2}
    first = {"offset": 0, "next": 42, "at": "2030-01-01T00:00:00.000Z", "text": LINES[36:40]}
    assert told == [
        {**about, **first},
        {**about, "offset": 42, "next": 52, "at": None, "text": "Traceback"},
    ]
    again = run("logs", "abc", "--json", "--offset", str(told[0]["next"]))
    assert [json.loads(line) for line in again.stdout.splitlines()] == told[1:]


def test_logs_of_another_node_come_out_of_the_database(
    run: Run, store: Store, trained: Job, settings: Settings
) -> None:
    whole = LINES.encode() + b"\n"
    store.keep_log(trained.id, 2, 0, whole[:42])
    store.keep_log(trained.id, 2, 42, whole[42:])
    assert run("logs", "abc").stdout.encode() == whole
    assert run("logs", "abc", "--offset", "50").stdout.encode() == whole[50:]
    followed = run("logs", "abc", "-f", "--attempt", "2")
    assert followed.stdout.encode() == whole
    assert "its log is in the database" in followed.stderr
    assert [line.text for line in Logs(store, settings).lines(trained.id, 2)][1:] == [
        "Traceback",
        "unfinished",
    ]


def test_long_logs_are_read_piece_by_piece(run: Run, store: Store, trained: Job, settings: Settings) -> None:
    line = "x" * 999 + "\n"
    write_log(settings, trained.id, 1, line * 2500)
    assert run("logs", "abc", "--attempt", "1").stdout == line * 2500
    assert len(list(Logs(store, settings).lines(trained.id, 1))) == 2500
