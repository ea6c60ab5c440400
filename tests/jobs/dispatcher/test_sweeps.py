"""Sweeps in the dispatcher's passes: children made, stopped when they are behind, and the sweep ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from jobs.config import from_mapping
from jobs.dispatcher import Dispatcher
from jobs.queue import Queue
from jobs.service import InvalidRequest, Service
from jobs.store import AttemptState, Cause, EventKind, Job, JobState, NewReport, Store
from jobs.store.tables import JobRow
from jobs.sweeps import sweeper
from textvae.parsing import ConfigError

from ..store.conftest import checkpoint
from .conftest import At, Cluster, end, running

Submit = Callable[..., Job]


@pytest.fixture
def submit(service: Service) -> Submit:
    """Submits a sweep over `training.epochs` or whatever else is given."""

    def submit(sweep: dict[str, Any] | None = None, **more: Any) -> Job:
        given = {"parameters": {"training.batch_size": {"values": [8, 16, 32]}}, **(sweep or {})}
        config = from_mapping({"name": "reviews", "sweep": given, "training": {"epochs": 4}})
        return service.submit(config, owner="ada", id="sweep", **more).job

    return submit


def told(store: Store, job: str, epoch: int, accuracy: float) -> None:
    """An attempt reports an epoch, with its checkpoint."""
    number = store.job(job).attempt
    report = NewReport(epoch, epoch, 1.0, 1.0, {}, {"sentiment_accuracy": accuracy})
    store.record_checkpoint(job, number, checkpoint(epoch, accuracy, attempt=number), report)


def states(store: Store) -> dict[str, str]:
    return {trial.job: str(trial.state) for trial in store.trials("sweep")}


def test_children_are_made_and_started_in_one_pass_and_the_sweep_ends_after_the_last(
    submit: Submit, dispatcher: At, store: Store, service: Service, cluster: Cluster
):
    parent = submit()
    assert (parent.state, parent.trials, parent.cpus) == (JobState.QUEUED, 3, 0)
    dispatcher.step()
    assert running(store) == ["sweep.1-1", "sweep.2-1", "sweep.3-1"]
    assert sorted(cluster.started) == running(store)
    sizes = [store.config(f"sweep.{n}")["training"]["batch_size"] for n in (1, 2, 3)]
    assert sizes == [8, 16, 32]
    assert "sweep" not in store.config("sweep.1") or store.config("sweep.1")["sweep"] is None
    for job in ("sweep.1", "sweep.2"):
        end(service, cluster, job)
    dispatcher.step(2)
    assert store.job("sweep").state is JobState.RUNNING
    end(service, cluster, "sweep.3")
    dispatcher.step()
    assert store.job("sweep").state is JobState.SUCCEEDED
    dispatcher.step(8)
    assert [e.kind for e in store.events("sweep")].count(EventKind.SUCCEEDED) == 1
    assert len(store.jobs()) == 4


def test_no_more_children_at_once_than_it_says(
    submit: Submit, dispatcher: At, store: Store, service: Service, cluster: Cluster
):
    submit({"parallel": 2})
    dispatcher.step(3)
    assert running(store) == ["sweep.1-1", "sweep.2-1"]
    end(service, cluster, "sweep.2")
    dispatcher.step()
    assert running(store) == ["sweep.1-1", "sweep.3-1"]


def test_many_children_are_made_pass_by_pass(submit: Submit, dispatcher: At, store: Store):
    submit({"array": 25})
    dispatcher.step(4)
    assert len(store.trials("sweep")) == 75


def test_a_dispatcher_that_dies_while_it_makes_children_leaves_none_half_made_nor_twice(
    submit: Submit, make: Callable[..., Dispatcher], store: Store, monkeypatch: pytest.MonkeyPatch
):
    submit()
    original = Store._add_trial

    def dies(self: Store, connection: Any, parent: Job, child: Any, by: str) -> None:
        original(self, connection, parent, child, by)
        if child.number == 2:
            raise SystemExit("killed in the middle of the transaction")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_add_trial", dies)
        with pytest.raises(SystemExit):
            At(make()).step()
    assert store.trials("sweep") == []
    assert store.job("sweep").state is JobState.QUEUED

    def dies_after(*_: Any) -> None:
        raise SystemExit("killed before Redis heard of it")

    with monkeypatch.context() as patched:
        patched.setattr(Queue, "push", dies_after)
        with pytest.raises(SystemExit):
            At(make()).step()
    assert states(store) == {"sweep.1": "queued", "sweep.2": "queued", "sweep.3": "queued"}
    At(make()).step(2)
    assert running(store) == ["sweep.1-1", "sweep.2-1", "sweep.3-1"]
    assert len(store.jobs()) == 4


def test_a_dispatcher_that_dies_before_it_ends_a_sweep_leaves_that_to_the_next(
    submit: Submit,
    make: Callable[..., Dispatcher],
    store: Store,
    service: Service,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
):
    submit()
    At(make()).step()
    for number in (1, 2, 3):
        end(service, cluster, f"sweep.{number}")

    def dies(*_: Any, **__: Any) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Service, "end_sweep", dies)
        with pytest.raises(SystemExit):
            At(make()).step()
    assert store.job("sweep").state is JobState.RUNNING
    At(make()).step()
    assert store.job("sweep").state is JobState.SUCCEEDED


def test_two_dispatchers_make_each_child_once(
    submit: Submit, make: Callable[..., Dispatcher], store: Store, monkeypatch: pytest.MonkeyPatch
):
    """The second one makes its children while the first has decided on its own, and not made them yet."""
    submit({"parallel": 2})
    first, second = At(make()), At(make())
    original = Service.add_trials
    asked: list[list[int]] = []

    def late(self: Service, sweep: str, children: Any, *, by: str) -> list[Job]:
        asked.append([child.number for child in children])
        if len(asked) == 1:
            second.step()
        return original(self, sweep, children, by=by)

    monkeypatch.setattr(Service, "add_trials", late)
    first.step()
    assert asked == [[1, 2], [1, 2]]
    assert [trial.number for trial in store.trials("sweep")] == [1, 2]
    assert running(store) == ["sweep.1-1", "sweep.2-1"]
    first.step(3)
    second.step(3)
    assert [trial.number for trial in store.trials("sweep")] == [1, 2]


STOPPING = {"early_stopping": {"rule": "median", "grace": 2, "siblings": 2}}


def test_a_child_that_is_behind_its_siblings_is_asked_to_stop_and_that_is_recorded(
    submit: Submit, dispatcher: At, store: Store, service: Service, cluster: Cluster
):
    submit(STOPPING)
    dispatcher.step()
    for number in (1, 2, 3):
        store.start_attempt(f"sweep.{number}", 1)
        told(store, f"sweep.{number}", 1, 0.1 * number)
    dispatcher.step()
    assert not any(trial.cancel_requested for trial in store.trials("sweep"))  # its grace
    for number in (3, 2, 1):
        told(store, f"sweep.{number}", 2, 0.2 * number)
    dispatcher.step()
    first, *others = store.trials("sweep")
    assert first.stopped == (
        "sentiment_accuracy 0.2 at best in 2 epochs, behind the median 0.5 of 2 siblings at epoch 2"
    )
    assert first.cancel_requested is not None and cluster.stopped == []  # asked, with time for a checkpoint
    assert [trial.stopped for trial in others] == [None, None]
    service.finish(
        "sweep.1",
        1,
        AttemptState.CANCELLED,
        by="attempt",
        cause=Cause.STOPPED_EARLY,
        error=first.stopped,
    )
    cluster.alive.discard("sweep.1-1")
    for number in (2, 3):
        end(service, cluster, f"sweep.{number}")
    dispatcher.step()
    assert store.job("sweep").state is JobState.SUCCEEDED
    assert store.job("sweep.1").error == first.stopped
    assert store.attempts("sweep.1")[0].cause is Cause.STOPPED_EARLY
    (ended,) = [e for e in store.events("sweep") if e.kind is EventKind.SUCCEEDED]
    assert ended.detail == {"succeeded": 2, "stopped early": 1}


def test_who_has_ended_still_counts_as_a_sibling_and_who_is_at_its_end_is_let_be(
    submit: Submit, dispatcher: At, store: Store, service: Service, cluster: Cluster
):
    submit({"early_stopping": {"grace": 1, "siblings": 2}})
    dispatcher.step()
    for number in (2, 3):
        for epoch in range(1, 5):
            told(store, f"sweep.{number}", epoch, 0.8)
        end(service, cluster, f"sweep.{number}")
    for epoch in range(1, 5):
        told(store, "sweep.1", epoch, 0.1)  # between two passes: its last epoch is over
    dispatcher.step()
    assert store.job("sweep.1").cancel_requested is None
    store.request_cancel("sweep.1", "ada")


def test_a_child_that_was_retried_after_it_was_stopped_is_left_alone(
    submit: Submit, dispatcher: At, store: Store, service: Service, cluster: Cluster
):
    submit(STOPPING)
    dispatcher.step()
    for number in (3, 2, 1):
        told(store, f"sweep.{number}", 2, 0.2 * number)
    dispatcher.step()
    service.finish("sweep.1", 1, AttemptState.CANCELLED, by="attempt", cause=Cause.STOPPED_EARLY)
    cluster.alive.discard("sweep.1-1")
    service.retry("sweep.1")
    dispatcher.step(8)
    assert store.job("sweep.1").stopped is None
    assert "sweep.1-2" in running(store)


def test_a_child_that_does_not_stop_is_killed_like_any_other(
    submit: Submit, dispatcher: At, store: Store, cluster: Cluster
):
    submit(STOPPING)
    dispatcher.step()
    for number in (3, 2, 1):
        store.start_attempt(f"sweep.{number}", 1)
        told(store, f"sweep.{number}", 2, 0.2 * number)
    dispatcher.step(2)
    dispatcher.later(60)
    ended = store.job("sweep.1")
    assert (ended.state, ended.error) == (JobState.CANCELLED, ended.stopped)
    assert store.attempts("sweep.1")[0].cause is Cause.KILLED


def test_a_cancelled_sweep_ends_with_the_last_of_its_children(
    submit: Submit, dispatcher: At, store: Store, service: Service, cluster: Cluster, queue: Queue
):
    submit({"parallel": 2})
    dispatcher.step()
    for number in (1, 2):
        store.join_attempt(f"sweep.{number}", 1, host="here")
    service.cancel("sweep", by="ada")
    dispatcher.step(2)
    assert store.job("sweep").state is JobState.RUNNING
    for number in (1, 2):
        service.finish(f"sweep.{number}", 1, AttemptState.CANCELLED, by="attempt", cause=Cause.CANCELLED)
        cluster.alive.discard(f"sweep.{number}-1")
    dispatcher.step()
    assert store.job("sweep").state is JobState.CANCELLED
    assert len(store.trials("sweep")) == 2 and queue.entries() == {}
    service.retry("sweep")
    assert states(store) == {"sweep.1": "queued", "sweep.2": "queued"}
    assert queue.entries() == {"sweep.1": 2, "sweep.2": 2}
    dispatcher.step(8)
    assert running(store) == ["sweep.1-2", "sweep.2-2"]


OPTUNA = {
    "search": "optuna",
    "trials": 6,
    "parallel": 1,
    "startup": 2,
    "parameters": {"model.dropout": {"min": 0, "max": 0.9}, "training.batch_size": {"values": [8, 16]}},
}


def test_optunas_children_follow_from_the_records_whoever_makes_them(
    submit: Submit, make: Callable[..., Dispatcher], store: Store, service: Service, cluster: Cluster
):
    """Every child by a dispatcher of its own: what Optuna knows comes from the store each time."""
    submit(OPTUNA)
    for number in range(1, 7):
        At(make()).step()
        job = f"sweep.{number}"
        assert running(store) == [f"{job}-1"]
        told(store, job, 1, 1 - store.trials("sweep")[-1].parameters["model.dropout"])
        end(service, cluster, job)
    made = [dict(trial.parameters) for trial in store.trials("sweep")]
    assert len({str(parameters) for parameters in made}) == 6
    # Another one that sees the same records comes to the same children.
    space = sweeper.Space(from_mapping(store.config("sweep")))
    past = [
        sweeper._past(trial, store.curves("sweep", "sentiment_accuracy").get(trial.job, {}))
        for trial in store.trials("sweep")
    ]
    assert [sweeper.choose(space, n, past[: n - 1]) for n in range(1, 7)] == made
    At(make()).step()
    assert store.job("sweep").state is JobState.SUCCEEDED


def test_a_sweep_for_which_nothing_can_be_suggested_fails_with_the_reason(
    submit: Submit, dispatcher: At, store: Store
):
    submit(
        OPTUNA
        | {
            "parameters": {
                "training.epochs": {"values": [1, 2]},
                "objective.pretraining_epochs": {"values": [2, 3]},
            }
        }
    )
    dispatcher.step(2)
    ended = store.job("sweep")
    assert ended.state is JobState.FAILED
    assert "objective.pretraining_epochs must be below training.epochs" in str(ended.error)
    assert store.trials("sweep") == []


def test_a_sweep_that_cannot_be_read_keeps_no_other_from_going_on(
    submit: Submit, dispatcher: At, store: Store, add_job: Callable[..., Job]
):
    add_job("broken", cpus=0, trials=2)  # its config has no sweep
    submit()
    dispatcher.step()
    assert len(running(store)) == 3
    assert store.job("broken").state is JobState.QUEUED


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_sweep_that_only_another_version_can_read_ends_after_its_children(
    submit: Submit,
    make: Callable[..., Dispatcher],
    store: Store,
    service: Service,
    cluster: Cluster,
    cancelled: bool,
):
    submit({"parallel": 1})
    At(make()).step()
    store.join_attempt("sweep.1", 1, host="here")
    config = store.config("sweep")
    config["training"]["key_of_another_version"] = 1
    with store.writing() as connection:
        connection.execute(update(JobRow).where(JobRow.id == "sweep").values(config=config))
    if cancelled:
        service.cancel("sweep", by="ada")
    dispatcher = At(make())
    dispatcher.step()
    assert running(store) == ["sweep.1-1"] and store.job("sweep").state is JobState.RUNNING
    end(service, cluster, "sweep.1")
    dispatcher.step()
    ended = store.job("sweep")
    if cancelled:
        assert (ended.state, ended.error) == (JobState.CANCELLED, None)
    else:
        assert ended.state is JobState.FAILED and "training.key_of_another_version" in str(ended.error)
    assert len(store.trials("sweep")) == 1


def test_nothing_is_recorded_of_a_sweep_with_a_child_that_cannot_be(submit: Submit, store: Store):
    with pytest.raises(ConfigError, match=r"training\.batch_size: .*got 0.*child 2"):
        submit({"parameters": {"training.batch_size": {"values": [8, 0]}}})
    assert store.jobs() == []


def test_submitting_a_sweep_again_makes_no_second_one(submit: Submit, service: Service, store: Store):
    submit()
    config = from_mapping(
        {
            "name": "reviews",
            "sweep": {"parameters": {"training.batch_size": {"values": [8, 16, 32]}}},
            "training": {"epochs": 4},
        }
    )
    assert service.submit(config, owner="ada", id="sweep").created is False
    assert len(store.jobs()) == 1
    with pytest.raises(InvalidRequest, match="35 characters at most"):
        service.submit(config, id="x" * 36)
