"""models, predict, plot."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import Result

from cluster.serving.schemas import Error, Errors, Models, Sentiment, Sentiments
from jobs.cli import http
from jobs.config import JobConfig, from_mapping
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Job, NewCheckpoint, NewReport, Store
from textvae import checkpoint, sources, vocabulary
from textvae.artifacts import Artifacts
from textvae.config import METRICS
from textvae.model import TextVAE

Run = Callable[..., Result]


def test_models_list_and_show(run: Run, trained: Job) -> None:
    lines = run("models", "list").stdout.splitlines()
    assert lines[1].split()[:6] == ["reviews", "1", "1", "sentiment_accuracy", "0.9", "abc12345"]
    text = run("models", "show", "reviews").stdout
    assert "the first one" in text
    told = json.loads(run("models", "show", "reviews", "--json").stdout)
    assert told["current"] == 1
    assert [version["job"] for version in told["versions"]] == ["abc12345"]


def test_promote_and_rollback_change_what_is_served(
    run: Run, store: Store, service: Service, trained: Job
) -> None:
    job = service.submit(from_mapping({"name": "reviews"}), owner="ada", id="def67890").job
    store.open_attempt(job.id, 1, "dispatcher")
    saved = store.record_checkpoint(
        job.id, 1, NewCheckpoint("epoch-01", "x", "f" * 64, 1, 1, 0, 0.95, {"sentiment_accuracy": 0.95})
    )
    number = store.reserve_version(job.id, 1, "reviews")
    store.record_version(
        job.id,
        1,
        model="reviews",
        version=number,
        checkpoint=saved.id,
        location="models/reviews/2",
        metric="sentiment_accuracy",
        mode="max",
        reason="better",
    )
    assert store.version("reviews").version == 2
    assert run("models", "rollback", "reviews", "--reason", "it is rude").stdout == "reviews  version 1\n"
    assert store.version("reviews").version == 1
    assert "it is rude" in run("models", "show", "reviews").stdout
    refused = run("models", "rollback", "reviews")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert json.loads(run("models", "promote", "reviews", "2", "--json").stdout)["version"] == 2


@pytest.mark.parametrize(
    "words",
    [["show", "nothing"], ["promote", "nothing", "1"], ["rollback", "nothing"], ["promote", "reviews", "9"]],
)
def test_a_model_or_version_that_is_not_there_is_exit_code_3(
    run: Run, trained: Job, words: list[str]
) -> None:
    result = run("models", *words)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ") and words[1] in result.stderr


SMALL = {
    "name": "reviews",
    "vocabulary": {"kind": "words", "size": 40, "max_length": 8},
    "model": {"embedding": 4, "encoder_hidden": 4, "latent": 3, "decoder_hidden": 4},
}


@pytest.fixture
def small(store: Store, service: Service, settings: Settings, tmp_path: Path) -> Job:
    """A job on files, with one real checkpoint, in place and promoted."""
    rows = ["text,label", *[f"film {n} was {'good' if n % 2 else 'bad'},{n % 2}" for n in range(60)]]
    (tmp_path / "reviews.csv").write_text("\n".join(rows))
    data = {"source": "files", "train": [str(tmp_path / "reviews.csv")]}
    config: JobConfig = from_mapping({**SMALL, "data": data})
    job = service.submit(config, owner="ada", id="small-one").job
    words = vocabulary.build(
        config.vocabulary, sources.prepare(config.data, settings.data, seed=config.seed).labelled.texts()
    )
    model = TextVAE(config.training_config(), words.size)
    folder = tmp_path / "checkpoint"
    digest = checkpoint.save(
        folder,
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        config=config.training_config(),
        vocabulary=words,
        position=checkpoint.Position(epoch=1, step=2),
        metrics={},
    )
    artifacts = Artifacts(settings.storage)
    artifacts.put(folder, "jobs/small-one/attempt-1/epoch-01")
    artifacts.put(folder, "models/reviews/1")
    metrics = dict.fromkeys(METRICS, 0.5)
    store.open_attempt(job.id, 1, "dispatcher")
    saved = store.record_checkpoint(
        job.id,
        1,
        NewCheckpoint("epoch-01", "jobs/small-one/attempt-1/epoch-01", digest, 1, 2, 0, 0.5, metrics),
        NewReport(1, 2, 1.0, 100.0, metrics, metrics),
    )
    store.record_version(
        job.id,
        1,
        model="reviews",
        version=store.reserve_version(job.id, 1, "reviews"),
        checkpoint=saved.id,
        location="models/reviews/1",
        metric="sentiment_accuracy",
        mode="max",
        reason="the first one",
    )
    return service.finish(job.id, 1, AttemptState.SUCCEEDED, by="attempt")


def test_export_copies_a_version_that_loads_without_the_service(run: Run, small: Job, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    result = run("models", "export", "reviews", str(target))
    assert result.exit_code == 0
    assert checkpoint.load(target).position == checkpoint.Position(epoch=1, step=2)
    again = run("models", "export", "reviews", str(target))
    assert (again.exit_code, again.stderr) == (2, f"error: {target} exists; name a folder that does not\n")


def test_export_of_a_torn_version_leaves_nothing(
    run: Run, small: Job, settings: Settings, tmp_path: Path
) -> None:
    (Path(settings.storage) / "models/reviews/1/config.json").write_text("{}")
    result = run("models", "export", "reviews", str(tmp_path / "mine"))
    assert result.exit_code == 1
    assert "config.json" in result.stderr
    assert not (tmp_path / "mine").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".mine")]


def test_plot_draws_both_pictures(run: Run, small: Job, tmp_path: Path) -> None:
    result = run("plot", "small", "--output", str(tmp_path / "pictures"), "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    for name in ("curves", "latent"):
        assert Path(told[name]).read_bytes().startswith(b"\x89PNG")
        assert Path(told[name]) == tmp_path / "pictures" / f"{name}.png"


def test_plot_of_few_reviews_says_what_they_cannot_tell(run: Run, small: Job, tmp_path: Path) -> None:
    result = run("plot", "small", "--output", str(tmp_path / "pictures"), "--json")
    told = json.loads(result.stdout)
    assert told["job"] == "small-one" and told["lda"] is None
    assert told["numbers"]["reviews"] == 6 and told["numbers"]["separation"] is None
    assert "too few labelled reviews of each class" in result.stderr


def test_explore_takes_a_job(run: Run, small: Job, settings: Settings) -> None:
    result = run("explore", "small", "--neighbours", "2", "--samples", "0", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["job"] == "small-one" and told["samples"] is None
    assert told["checkpoint"] == str(Path(settings.storage) / "jobs/small-one/attempt-1/epoch-01")
    assert [len(near["neighbours"]) for near in told["neighbours"]] == [2, 2]


def test_plot_of_a_job_without_an_epoch_says_so(run: Run, add_job: Callable[..., Job]) -> None:
    add_job("job-a")
    result = run("plot", "job-a")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has recorded no checkpoint yet" in result.stderr


class Answers:
    """An HTTP server that answers as the served model does; `status` and `body` are what it says next."""

    def __init__(self) -> None:
        self.status, self.body = 200, "{}"
        self.first: list[tuple[int, str]] = []  # what it says before that, one after the other
        self.asked: list[tuple[str, object]] = []
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                answers.asked.append((self.path, json.loads(self.rfile.read(length))))
                self._answer()

            def do_GET(self) -> None:
                answers.asked.append((self.path, None))
                self._answer()

            def _answer(self) -> None:
                status, body = answers.first.pop(0) if answers.first else (answers.status, answers.body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def answers(settings: Settings) -> Iterator[Answers]:
    """A served model whose address stands in the stack's file of the home of `settings`."""
    answers = Answers()
    thread = threading.Thread(target=answers.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    settings.run_folder.mkdir(parents=True)
    settings.stack_file.write_text(json.dumps({"serve_url": answers.url}))
    yield answers
    answers.server.shutdown()
    thread.join()
    answers.server.server_close()


def sentiments(*positive: float) -> str:
    results = [
        Sentiment(positive=p, label="positive" if p >= 0.5 else "negative", truncated=False) for p in positive
    ]
    return Sentiments(model="reviews", version=1, results=results).model_dump_json()


def test_predict_asks_the_served_model(run: Run, answers: Answers) -> None:
    answers.body = sentiments(0.93, 0.08)
    result = run("predict", "A lovely film.", "Dull.", "--model", "reviews")
    assert result.exit_code == 0
    assert answers.asked == [("/v1/sentiment", {"texts": ["A lovely film.", "Dull."], "model": "reviews"})]
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines()[1:]]
    assert rows == [["positive", "93.0%", "A lovely film."], ["negative", "8.0%", "Dull."]]
    told = json.loads(run("predict", "A lovely film.", "Dull.", "--json").stdout)
    assert [one["positive"] for one in told["results"]] == [0.93, 0.08]


def test_predict_reads_texts_from_standard_input(run: Run, answers: Answers) -> None:
    answers.body = sentiments(0.5, 0.5)
    assert run("predict", input="first film\n\nsecond film\n").exit_code == 0
    assert answers.asked == [("/v1/sentiment", {"texts": ["first film", "second film"]})]
    nothing = run("predict", "-", input="\n")
    assert (nothing.exit_code, nothing.stderr) == (2, "error: there is no text on standard input\n")


@pytest.mark.parametrize(("status", "code"), [(422, 2), (413, 2), (404, 3), (503, 4), (500, 4)])
def test_a_refusal_becomes_an_exit_code_and_its_reason(
    run: Run, answers: Answers, status: int, code: int
) -> None:
    answers.status = status
    answers.body = Errors(error=Error(code="x", message="what is wrong", field=None)).model_dump_json()
    result = run("predict", "film")
    assert (result.exit_code, result.stderr) == (code, "error: what is wrong\n")


@pytest.mark.parametrize(
    ("words", "status", "others"), [([], 503, []), (["--model", "reviews"], 404, ["others"])]
)
def test_predict_waits_for_a_version_that_was_just_promoted(
    run: Run, answers: Answers, trained: Job, words: list[str], status: int, others: list[str]
) -> None:
    not_yet = Errors(error=Error(code="x", message="not served", field=None)).model_dump_json()

    def models(*names: str) -> tuple[int, str]:
        served = [
            {"name": name, "version": 1, "digest": "d", "objective": "elbo", "latent": 4, "max_length": 9}
            | {"metrics": {}}
            for name in names
        ]
        return 200, json.dumps({"models": served, "default": None, "problems": []})

    answers.first = [(status, not_yet), models(*others), models(*others), models("reviews", *others)]
    answers.body = sentiments(0.9)
    result = run("predict", "film", *words)
    assert result.exit_code == 0
    assert result.stdout.split()[-3:] == ["positive", "90.0%", "film"]
    assert "waiting for reviews version 1" in result.stderr
    assert [path for path, _ in answers.asked] == ["/v1/sentiment", *["/v1/models"] * 3, "/v1/sentiment"]


def test_an_answer_that_is_no_json_is_shown(run: Run, answers: Answers) -> None:
    answers.status, answers.body = 502, "Bad gateway\n"
    assert run("predict", "film").stderr == "error: Bad gateway\n"


def test_a_question_that_is_lost_with_its_server_is_asked_again(run: Run, answers: Answers) -> None:
    lost = (500, "Internal Server Error")  # as Serve answers for a replica that died
    answers.first, answers.body = [lost, lost], sentiments(0.9)
    assert run("predict", "film").stdout.split()[-3:] == ["positive", "90.0%", "film"]
    assert answers.asked == [("/v1/sentiment", {"texts": ["film"]})] * 3
    answers.first = [lost] * 4
    result = run("predict", "film")
    assert (result.exit_code, result.stderr) == (4, "error: Internal Server Error\n")
    assert len(answers.asked) == 6


def test_predict_without_a_service_is_exit_code_4(run: Run, settings: Settings) -> None:
    result = run("predict", "film")
    assert (result.exit_code, result.stderr) == (
        4,
        "error: the service is not up; bring it up with: textvae-jobs up\n",
    )
    settings.run_folder.mkdir(parents=True)
    settings.stack_file.write_text(json.dumps({"serve_url": "http://127.0.0.1:9"}))
    result = run("predict", "film")
    assert result.exit_code == 4
    assert "http://127.0.0.1:9/v1/sentiment does not answer" in result.stderr


def test_a_version_that_cannot_be_loaded_is_told(run: Run, answers: Answers) -> None:
    run("list")
    problem = {"name": "reviews", "version": 3, "digest": "ff", "reason": "torn"}
    answers.body = Models.model_validate(
        {"models": [], "default": None, "problems": [problem]}
    ).model_dump_json()
    with pytest.raises(Exception, match="reviews version 3: torn"):
        http.served()
