"""The rules one by one, where a reader can follow them, and reasons; `test_simulation` holds all at once."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from jobs.scheduling import (
    Accounts,
    Backlog,
    Blocked,
    Cluster,
    Explainer,
    History,
    Policy,
    Share,
    Spent,
    Used,
    decide,
    parse_policy,
    read_policy,
)
from textvae.parsing import ConfigError

from .cases import DAY, FOUR, FULL, runs, started, waits


def test_priority_then_order_of_submission():
    assert started(waits("b"), waits("a"), waits("c", priority=1), waits("d", priority=-1)) == list("cabd")


def test_the_owner_who_had_less_goes_first_by_weight():
    had = History(used={"ada": Used(cpu_seconds=100), "bob": Used(cpu_seconds=150)})
    one = Cluster(1, 0, 1, 0)
    jobs = waits("a", owner="ada"), waits("b", owner="bob")
    assert started(*jobs, cluster=one, history=had) == ["a"]
    twice = Policy(owners={"bob": Share(weight=2)})
    assert started(*jobs, cluster=one, history=had, policy=twice) == ["b"]


def test_nobody_fills_an_empty_cluster_before_the_others_have_something():
    jobs = [waits(f"a{n}", sequence=n) for n in range(9)] + [waits("b", owner="bob", sequence=99)]
    assert started(*jobs) == ["a0", "b", "a1", "a2"]


def test_what_others_have_had_is_forgotten_by_halves():
    accounts = Accounts(half_life=DAY)
    accounts.spend(Spent("ada", 0, 1, cpus=2, gpus=0, opened=0, finished=10))
    accounts.spend(Spent("ada", 0, 2, cpus=2, gpus=4, opened=0, finished=10))
    used = accounts.history((), {}, 10 + DAY).used["ada"]
    assert used.cpu_seconds == pytest.approx(10, rel=1e-3)  # half of 20: of the attempt without GPUs alone
    assert used.gpu_seconds == pytest.approx(20, rel=1e-3)
    late = Accounts(half_life=DAY)  # told in another order it comes to the same
    late.spend(Spent("ada", 0, 2, cpus=1, gpus=0, opened=DAY, finished=DAY + 5))
    late.spend(Spent("ada", 0, 1, cpus=1, gpus=0, opened=0, finished=8))
    early = Accounts(half_life=DAY)
    early.spend(Spent("ada", 0, 1, cpus=1, gpus=0, opened=0, finished=8))
    early.spend(Spent("ada", 0, 2, cpus=1, gpus=0, opened=DAY, finished=DAY + 5))
    assert late.history((), {}, 2 * DAY).used["ada"].cpu_seconds == pytest.approx(
        early.history((), {}, 2 * DAY).used["ada"].cpu_seconds
    )


def test_a_running_attempt_is_charged_as_it_goes():
    used = Accounts(half_life=DAY).history([runs("a", cpus=3)], {}, 100).used["ada"]
    assert used.cpu_seconds == pytest.approx(300, rel=1e-2)


def test_a_turn_is_the_start_of_a_job_from_before_the_first():
    accounts = Accounts(half_life=DAY)
    group = ("ada", 0)
    for sequence, at in ((5, 10.0), (7, 20.0), (6, 30.0), (9, 15.0)):
        accounts.turn(group, sequence, at)
    assert accounts.last_turn(group, before=5) is None
    assert accounts.last_turn(group, before=6) == 10
    assert accounts.last_turn(group, before=8) == 30  # the sixth started last
    assert accounts.last_turn(group, before=100) == 30
    assert accounts.last_turn(("bob", 0), before=100) is None


def test_waiting_lifts_a_group_up_to_the_highest_and_no_further():
    policy = Policy(ageing=10, overdue=1000)
    assert [policy.level(0, waited, top=3) for waited in (0, 9, 10, 29, 30, 1e6)] == [0, 0, 1, 2, 3, 3]
    assert policy.level(5, 0, top=3) == 5
    one = Cluster(1, 0, 1, 0)
    had = History(used={"bob": Used(cpu_seconds=50)})
    low, high = waits("low", since=0), waits("high", owner="bob", priority=3, since=25)
    assert started(low, high, cluster=one, policy=policy, history=had, now=29) == ["high"]
    assert started(low, high, cluster=one, policy=policy, history=had, now=30) == ["low"]  # shares decide


def test_an_overdue_group_goes_before_any_priority():
    policy = Policy(ageing=10, overdue=100)
    one = Cluster(1, 0, 1, 0)
    low, high = waits("low"), waits("high", priority=2, since=110)
    had = History(used={"ada": Used(cpu_seconds=1)})
    assert started(low, high, cluster=one, policy=policy, history=had, now=119) == ["high"]
    assert started(low, high, cluster=one, policy=policy, history=had, now=121) == ["low"]
    turn = History(turns={("ada", 0): 100.0})
    assert started(low, high, cluster=one, policy=policy, history=turn, now=121) == ["high"]


def test_a_quota_keeps_back_the_owner_and_nobody_else():
    policy = Policy(owners={"ada": Share(cpus=2)})
    jobs = [waits("a1"), waits("a2", cpus=2), waits("a3"), waits("b", owner="bob", cpus=2)]
    assert sorted(started(*jobs, policy=policy)) == ["a1", "b"]
    assert started(waits("a9", cpus=3), waits("aa"), policy=policy) == [
        "aa"
    ]  # never possible: in nobody's way


def test_the_backlog_knows_who_is_ready():
    backlog = Backlog([waits("a", held=True), waits("b", not_before=50.0), waits("c", blocked_by=("x",))])
    assert len(backlog) == 3 and not backlog.ready(0)
    assert backlog.next_time() == 50
    assert [line for lines in backlog.ready(50).values() for line in lines.values()] == [[(98, "b")]]
    backlog.put(waits("a"))
    backlog.put(waits("b", not_before=80.0))  # put off again
    assert "b" in backlog and backlog["b"].not_before == 80
    assert list(decide(backlog, [], FOUR, History(), Policy(), 60).start) == [backlog["a"]]
    backlog.discard("a")
    backlog.discard("never")
    assert not backlog.ready(60)


def test_jobs_whose_time_comes_stand_where_they_were_submitted_each_once():
    backlog = Backlog([waits("b", not_before=50.0), waits("c", not_before=40.0), waits("a"), waits("d")])
    for _ in range(2):
        backlog.put(waits("b", not_before=50.0))  # read again, and nothing has changed
    ((line,),) = [list(lines.values()) for lines in backlog.ready(60).values()]
    assert [id for _, id in line] == ["a", "b", "c", "d"]
    backlog.discard("b")
    ((line,),) = [list(lines.values()) for lines in backlog.ready(60).values()]
    assert [id for _, id in line] == ["a", "c", "d"]


def test_every_reason_is_told():
    policy = Policy(owners={"bob": Share(cpus=1), "eve": Share(jobs=0)})
    running = (runs("r", cpus=2, limit=1000), runs("b", owner="bob", cpus=1))
    jobs = [
        waits("first", cpus=4),
        waits("next", cpus=2, priority=-1),
        waits("small", priority=-2, since=5),
        waits("held", held=True),
        waits("later", not_before=500.0),
        waits("after", blocked_by=("r",)),
        waits("huge", cpus=99),
        waits("bobs", owner="bob", priority=-5),
        waits("eves", owner="eve"),
    ]
    explainer = Explainer(jobs, running, Cluster(4, 0, 1, 0), History(), policy, 10)
    reasons = {job.id: explainer.reason(job.id) for job in jobs}
    told = {id: reason and reason.blocked for id, reason in reasons.items()}
    assert told == {
        "first": Blocked.RESOURCES,
        "next": Blocked.PRIORITY,
        "small": Blocked.PRIORITY,
        "held": Blocked.HELD,
        "later": Blocked.NOT_BEFORE,
        "after": Blocked.DEPENDENCY,
        "huge": Blocked.RESOURCES,
        "bobs": Blocked.QUOTA,
        "eves": Blocked.QUOTA,
    }
    first, small, bobs = reasons["first"], reasons["small"], reasons["bobs"]
    assert first is not None and small is not None and bobs is not None
    assert (first.position, first.starts) == (1, None)  # nobody knows when bob's ends
    assert small.text == "there is room, but job first, which goes first, would wait longer for its own"
    assert bobs.waits_for == ("b",)
    assert explainer.reason("unknown") is None


def test_a_start_is_estimated_from_what_is_expected():
    running = (runs("r", cpus=4, expected=60.0),)
    jobs = [waits("a", cpus=4, expected=100.0), waits("b", cpus=4), waits("c", cpus=4)]
    explainer = Explainer(jobs, running, FULL, History(), Policy(), 10)
    starts = [reason and reason.starts for reason in map(explainer.reason, "abc")]
    assert starts == [60, 160, None]  # how long b takes is unknown
    assert not any(reason and reason.guaranteed for reason in map(explainer.reason, "abc"))


def test_a_policy_file_is_closed(tmp_path: Path):
    path = tmp_path / "scheduling.yaml"
    assert read_policy(path) == read_policy(None) == Policy()
    path.write_text("owners: {ada: {weight: 3, gpus: 2}}\npreemption: {gap: 7}\n")
    policy = read_policy(path)
    assert (policy.share("ada").weight, policy.share("bob").weight, policy.preemption.gap) == (3, 1, 7)
    with pytest.raises(ConfigError, match=r"half_live: unknown key; the nearest known one is half_life"):
        parse_policy({"half_live": 3})
    with pytest.raises(ConfigError, match="weight"):
        parse_policy({"default": {"weight": 0}})
    for endless in (math.inf, 1e11):  # no clock goes back, or on, so far
        with pytest.raises(ConfigError, match="half_life: input should be"):
            parse_policy({"half_life": endless})
        with pytest.raises(ConfigError, match="margin: input should be"):
            parse_policy({"margin": endless})


def test_the_documented_defaults_are_the_defaults():
    page = (Path(__file__).parents[3] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    documented = yaml.safe_load(block)
    del documented["owners"]  # an example
    assert parse_policy(documented) == Policy()
    assert set(documented) | {"owners"} == set(Policy.model_fields)
    assert math.isfinite(Policy().overdue_after(-1000, 1000))
