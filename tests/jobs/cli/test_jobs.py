"""submit, list, show, cancel, retry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from jobs.cli.jobs import waits_for
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, Job, JobState, Store

Run = Callable[..., Result]


def test_submit_prints_the_id_alone_and_queues_the_job(run: Run, store: Store, queue: Queue) -> None:
    result = run("submit", "quickstart", "--set", "training.epochs=2", "--name", "tiny", "--priority", "7")
    assert result.exit_code == 0
    job = store.job(result.stdout.strip(), exact=True)
    assert (job.name, job.priority, job.state) == ("tiny", 7, JobState.QUEUED)
    assert store.config(job.id)["training"]["epochs"] == 2
    assert list(queue.entries()) == [job.id]
    assert f"textvae-jobs watch {job.id}" in result.stderr


@pytest.mark.parametrize("name", ["2024", "true", "null", "1.5"])
def test_a_model_name_is_taken_as_it_is_written(run: Run, store: Store, name: str) -> None:
    result = run("submit", "quickstart", "--name", name)
    assert (result.exit_code, store.job(result.stdout.strip()).name) == (0, name)


def test_the_same_id_makes_no_second_job(run: Run, store: Store) -> None:
    first = run("submit", "quickstart", "--id", "nightly", "--json")
    again = run("submit", "quickstart", "--id", "nightly", "--json")
    assert json.loads(first.stdout)["created"] is True
    assert json.loads(again.stdout)["created"] is False
    assert [job.id for job in store.jobs()] == ["nightly"]


def test_the_same_id_with_another_config_is_refused(run: Run) -> None:
    run("submit", "quickstart", "--id", "nightly")
    result = run("submit", "quickstart", "--id", "nightly", "--set", "seed=9")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: job nightly exists with another config")


def test_submit_without_redis_records_the_job_and_says_when_it_starts(offline: Run, store: Store) -> None:
    result = offline("submit", "quickstart")
    assert result.exit_code == 0
    assert store.job(result.stdout.strip()).state == "queued"
    assert "starts once the service is up" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--set", "training.epoch=3"],
            "training.epoch: unknown key; the nearest known one is training.epochs",
        ),
        (
            ["--set", "training.epochs=0"],
            "training.epochs: input should be greater than or equal to 1 (got 0)",
        ),
        (["--set", "training"], "must be KEY=VALUE"),
        (["--name", "Bad Name"], "is not a model name"),
        (["--priority", "5000"], "5000 is not in the range"),
        (["--name", "a: b"], "'a: b' is not a model name"),
        (["--id", "No!"], "must be 3 to 40 of"),
        (["--id=-ab"], "must be 3 to 40 of"),  # it could not be typed again: it looks like an option
        (["--follow", "--wait"], "without --wait"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_submitted(
    run: Run, store: Store, words: list[str], told: str
) -> None:
    result = run("submit", "quickstart", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    assert store.jobs() == []


def test_a_config_that_is_not_there_names_those_that_are(run: Run) -> None:
    result = run("submit", "quickstrat")
    assert result.exit_code == 2
    assert "did you mean 'quickstart'" in result.stderr
    assert "quickstart, seed" in result.stderr


def test_list_is_plain_text_in_a_pipe(run: Run, add_job: Callable[..., Job]) -> None:
    add_job("older-job")
    add_job("newer-job", priority=5)
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == [
        "JOB",
        "MODEL",
        "STATE",
        "OWNER",
        "PRIORITY",
        "ATTEMPT",
        "RANKS",
        "WAITED",
        "RAN",
        "SUBMITTED",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["newer-job", "older-job"]
    assert all(len(line.split()) == 11 for line in lines[1:])  # the time is two words; nothing is empty
    assert "\x1b" not in "".join(lines)


def test_list_narrows_by_state_and_owner(run: Run, store: Store, add_job: Callable[..., Job]) -> None:
    add_job("job-a", owner="ada")
    add_job("job-b", owner="bob")
    store.request_cancel("job-a", "ada")

    def ids(*words: str) -> list[str]:
        return [job["id"] for job in json.loads(run("list", "--json", *words).stdout)]

    assert ids() == ["job-b", "job-a"]
    assert ids("--state", "cancelled") == ["job-a"]
    assert ids("--state", "cancelled", "--state", "queued") == ["job-b", "job-a"]
    assert ids("--owner", "bob") == ["job-b"]
    assert ids("--limit", "1") == ["job-b"]


def test_list_says_when_there_are_none_and_when_there_are_more(run: Run, add_job: Callable[..., Job]) -> None:
    assert run("list").stderr == "no jobs\n"
    add_job("job-a")
    add_job("job-b")
    assert "--limit shows more" in run("list", "--limit", "1").stderr


def test_show_tells_what_a_job_did(run: Run, trained: Job, settings: Settings) -> None:
    text = run("show", "abc").stdout
    assert "state:     succeeded" in text
    assert "snippets, 8,000 bpe, objective elbo, latent 32, 10 epochs" in text
    assert "1 rank, each with 1 CPU" in text
    lost = next(line for line in text.splitlines() if "the node went away" in line)
    assert lost.split()[:3] == ["1", "lost", "somewhere"] and "died" in lost
    resumed = next(line for line in text.splitlines() if "elsewhere" in line)
    assert "epoch-01 of attempt 1" in resumed
    assert "* epoch-02" in text and "* epoch-03" not in text
    assert f"{settings.storage}/jobs/abc12345/attempt-2/epoch-02" in text
    assert str(settings.attempt_log("abc12345", 2)) in text
    assert "90.0%" in text


def test_show_as_json_holds_the_same(run: Run, trained: Job) -> None:
    told = json.loads(run("show", "abc", "--json").stdout)
    assert told["job"]["state"] == "succeeded"
    assert [attempt["cause"] for attempt in told["attempts"]] == ["died", None]
    assert [report["epoch"] for report in told["reports"]] == [1, 2, 3]
    assert [checkpoint["name"] for checkpoint in told["checkpoints"]] == ["epoch-03", "epoch-02", "epoch-01"]
    assert told["config"]["name"] == "reviews"
    assert told["waits_for"] is None


def test_the_config_that_show_prints_can_be_submitted_again(run: Run, trained: Job, tmp_path: Path) -> None:
    text = run("show", "abc", "--config").stdout
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert yaml.safe_load(text)["name"] == "reviews"
    assert json.loads(run("show", "abc", "--config", "--json").stdout) == yaml.safe_load(text)
    assert run("submit", str(again)).exit_code == 0


def test_show_of_a_queued_job_says_what_it_waits_for(
    run: Run, offline: Run, store: Store, add_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(job: str) -> str:
        return str(json.loads(run("show", job, "--json").stdout)["waits_for"])

    add_job("job-a", cpus=2)
    assert reason("job-a") == "the dispatcher to start it"
    store.open_attempt("job-a", 1, "dispatcher")
    add_job("job-b", cpus=4, gpus=1)
    assert reason("job-b") == "4 CPUs and 1 GPU to be free; running jobs hold 2 CPUs"
    add_job("job-c", priority=1)
    assert reason("job-b") == "1 job ahead of it; running jobs hold 2 CPUs"
    store.note_unfit({"job-b": "needs 4 CPUs, the cluster has 2"}, "dispatcher")
    assert reason("job-b") == "a larger cluster: it needs 4 CPUs, the cluster has 2"
    monkeypatch.delenv("TEXTVAE_REDIS_URL")
    assert reason("job-c") == "the service, which is not up: textvae-jobs up"


def test_a_cluster_that_has_grown_is_not_waited_for(
    run: Run, store: Store, queue: Queue, add_job: Callable[..., Job]
) -> None:
    add_job("busy", gpus=8)
    store.open_attempt("busy", 1, "dispatcher")
    add_job("large", gpus=8)
    store.note_unfit({"large": "needs 8 GPUs, the cluster has 2"}, "dispatcher")
    told = []
    for gpus in (2.0, 8.0):
        queue.publish_cluster({"total_cpus": 8.0, "total_gpus": gpus, "free_cpus": 0.0, "free_gpus": 0.0})
        told.append(json.loads(run("show", "large", "--json").stdout)["waits_for"])
    assert told == [
        "a larger cluster: it needs 8 GPUs, the cluster has 2",
        "1 CPU and 8 GPUs to be free; running jobs hold 1 CPU and 8 GPUs",
    ]


def test_a_job_that_was_claimed_since_it_was_looked_up_waits_for_nothing(
    run: Run, store: Store, add_job: Callable[..., Job]
) -> None:
    run("list")  # opens the home
    before = add_job("job-a")
    store.open_attempt("job-a", 1, "dispatcher")
    assert waits_for(before) is None


@pytest.mark.parametrize("words", [["show"], ["logs"], ["watch"], ["cancel"], ["retry"], ["wait"], ["plot"]])
def test_a_job_that_is_not_there_or_not_clear_is_exit_code_3(
    run: Run, add_job: Callable[..., Job], words: list[str]
) -> None:
    add_job("job-a")
    add_job("job-b")
    missing = run(*words, "nothing")
    assert (missing.exit_code, missing.stderr) == (3, "error: no job's id begins with 'nothing'\n")
    unclear = run(*words, "job")
    assert unclear.exit_code == 3
    assert "'job' is the beginning of several jobs: job-a, job-b" in unclear.stderr


def test_cancel_ends_a_queued_job_and_asks_a_running_one(
    run: Run, store: Store, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    add_job("job-b")
    store.open_attempt("job-b", 1, "dispatcher")
    result = run("cancel", "job-a", "job-b")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["job-a  cancelled", "job-b  stops, with a checkpoint"]
    assert store.job("job-b").cancel_requested is not None
    assert "cancelling" in run("list").stdout
    assert run("cancel", "job-a").stdout == "job-a  was cancelled already\n"


def test_cancel_says_how_a_job_ended_that_was_faster(
    run: Run, store: Store, add_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job("job-a")
    store.open_attempt("job-a", 1, "dispatcher")
    cancel = Service.cancel

    def late(service: Service, job: str) -> Job:
        service.finish(job, 1, AttemptState.SUCCEEDED, by="attempt")
        return cancel(service, job)

    monkeypatch.setattr(Service, "cancel", late)
    assert run("cancel", "job-a").stdout == "job-a  succeeded\n"


def test_cancel_changes_nothing_if_one_of_the_ids_is_wrong(
    run: Run, store: Store, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    assert run("cancel", "job-a", "job-x").exit_code == 3
    assert store.job("job-a").state == "queued"


def test_retry_takes_failed_and_cancelled_jobs_only(
    run: Run, store: Store, service: Service, add_job: Callable[..., Job]
) -> None:
    add_job("job-a")
    refused = run("retry", "job-a")
    assert refused.exit_code == 2
    assert refused.stderr == "error: job job-a is queued; only a failed or cancelled job can be retried\n"
    store.open_attempt("job-a", 1, "dispatcher")
    service.finish(
        "job-a", 1, AttemptState.FAILED, by="attempt", cause=Cause.BAD_CONFIG, error="no such column"
    )
    assert store.job("job-a").state == "failed"
    assert run("retry", "job-a").stdout == "job-a\n"
    assert store.job("job-a").state == "queued"
