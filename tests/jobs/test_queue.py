from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jobs.queue import Claim, Entry, Queue, QueueUnavailable

from .conftest import RedisServer


def entry(
    job: str, sequence: int, *, priority: int = 0, number: int = 1, cpus: float = 1, gpus: float = 0
) -> Entry:
    return Entry(job, number, cpus, gpus, priority, sequence)


def claim(queue: Queue, cpus: float = 8, gpus: float = 8, *, of: float = 8, ttl: float = 60) -> Claim:
    """Claim with so much free on a cluster of `of` CPUs and GPUs."""
    return queue.claim(free_cpus=cpus, free_gpus=gpus, total_cpus=of, total_gpus=of, ttl=ttl)


def drain(queue: Queue) -> list[str]:
    order = []
    while (job := claim(queue).job) is not None:
        order.append(job)
    return order


def test_priority_first_then_age(queue: Queue):
    queue.push(
        [entry("late", 3), entry("low", 1, priority=-5), entry("high", 4, priority=5), entry("early", 2)]
    )
    assert list(queue.entries()) == ["high", "early", "late", "low"]
    assert drain(queue) == ["high", "early", "late", "low"]
    assert queue.entries() == {}


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    jobs=st.lists(
        st.tuples(st.integers(-1000, 1000), st.integers(1, 2**40 - 1)),
        unique_by=lambda job: job[1],
        max_size=30,
    ),
    order=st.randoms(use_true_random=False),
)
def test_any_jobs_pushed_in_any_order_come_out_by_priority_then_age(
    queue: Queue, redis_server: RedisServer, jobs: list[tuple[int, int]], order: Any
):
    redis_server.flush()
    entries = [entry(f"job-{sequence}", sequence, priority=priority) for priority, sequence in jobs]
    shuffled = list(entries)
    order.shuffle(shuffled)
    queue.push(shuffled)
    expected = sorted(entries, key=lambda e: (-e.priority, e.sequence))
    assert drain(queue) == [e.job for e in expected]


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    needs=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12),
    free=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_a_claim_is_what_the_rules_say(
    queue: Queue, redis_server: RedisServer, needs: list[tuple[int, int]], free: tuple[int, int]
):
    """On a cluster of 4 CPUs and 4 GPUs of which `free` are free."""
    redis_server.flush()
    queue.push([entry(f"job-{n}", n, cpus=cpus, gpus=gpus) for n, (cpus, gpus) in enumerate(needs)])
    fitting = [n for n, (cpus, gpus) in enumerate(needs) if cpus <= 4 and gpus <= 4]
    head = fitting[0] if fitting else None
    may_go = head is not None and needs[head][0] <= free[0] and needs[head][1] <= free[1]
    got = claim(queue, *free, of=4)
    assert got.job == (f"job-{head}" if may_go else None)
    in_front = range(head if head is not None else len(needs))
    assert got.unfit == tuple(f"job-{n}" for n in in_front)


def test_a_job_that_fits_the_cluster_but_not_now_blocks_those_behind_it(queue: Queue):
    queue.push([entry("large", 1, cpus=6), entry("small", 2, cpus=1)])
    assert claim(queue, cpus=4) == Claim(None, 0, ())
    assert claim(queue, cpus=6).job == "large"
    assert claim(queue, cpus=2).job == "small"


def test_a_job_larger_than_the_cluster_is_passed_over(queue: Queue):
    queue.push([entry("too-large", 1, gpus=16), entry("small", 2)])
    assert claim(queue) == Claim("small", 1, ("too-large",))
    assert claim(queue) == Claim(None, 0, ("too-large",))
    assert list(queue.entries()) == ["too-large"]  # it waits for a larger cluster
    assert claim(queue, gpus=16, of=16).job == "too-large"


def test_fractions_of_cpus_add_up(queue: Queue):
    queue.push([entry("thirds", 1, cpus=3 * 0.1)])  # 0.30000000000000004
    assert claim(queue, cpus=0.3).job == "thirds"


def test_many_jobs_in_front_do_not_hide_the_one_that_fits(queue: Queue):
    queue.push([entry(f"large-{n:03}", n, gpus=99) for n in range(250)])
    queue.push([entry("small", 999)])
    got = claim(queue)
    assert got.job == "small"
    assert len(got.unfit) == 250


def test_a_claim_takes_a_lease(queue: Queue):
    queue.push([entry("first", 1, number=3)])
    assert claim(queue) == Claim("first", 3, ())
    assert queue.leases(["first", "other"]) == {"first": 3}
    assert queue.leases([]) == {}


def test_a_job_that_another_dispatcher_is_opening_is_passed_over(queue: Queue):
    queue.push([entry("first", 1)])
    assert claim(queue).job == "first"
    queue.push([entry("first", 1), entry("second", 2)])  # reconciled before the attempt was opened
    assert claim(queue).job == "second"
    queue.push([entry("first", 1, number=2)])  # the next attempt does not wait for the last one's lease
    assert claim(queue) == Claim("first", 2, ())


def test_twenty_who_claim_at_once_get_different_jobs(queue: Queue):
    queue.push([entry(f"job-{n:02}", n) for n in range(15)])
    barrier = threading.Barrier(20)

    def work(_: int) -> str | None:
        barrier.wait()
        return claim(queue).job

    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(work, range(20)))
    assert sorted(job for job in got if job) == [f"job-{n:02}" for n in range(15)]
    assert got.count(None) == 5


def test_pushing_again_replaces_and_removing_removes(queue: Queue):
    queue.push([entry("first", 1)])
    queue.push([entry("first", 1, number=2)])
    assert queue.entries() == {"first": 2}
    assert queue.remove(["first", "never"]) == 1
    assert queue.entries() == {}
    assert queue.remove([]) == 0


def test_a_lease_is_renewed_by_its_holder_alone(queue: Queue):
    assert queue.renew("first", 1, 60)  # there was none: it is taken
    assert queue.renew("first", 1, 60)
    assert queue.renew("first", 2, 60)  # a newer attempt takes it over
    assert not queue.renew("first", 1, 60)
    assert not queue.release("first", 1)
    assert queue.leases(["first"]) == {"first": 2}
    assert queue.release("first", 2)
    assert queue.leases(["first"]) == {}


def test_a_lease_ends_by_itself(queue: Queue):
    queue.renew("first", 1, 0.05)
    deadline = time.monotonic() + 5
    while queue.leases(["first"]):
        assert time.monotonic() < deadline
    assert queue.renew("first", 1, 60)


def test_renewing_extends_and_emptying_redis_loses_no_lease(queue: Queue, redis_server: RedisServer):
    queue.renew("first", 1, 0.3)
    queue.renew("first", 1, 60)
    client = redis.Redis.from_url(redis_server.url)
    assert int(client.pttl("textvae:lease:first")) > 30_000  # type: ignore[arg-type]
    client.close()
    redis_server.flush()
    assert queue.renew("first", 1, 60)
    assert queue.leases(["first"]) == {"first": 1}


def test_one_ring_wakes_all_who_wait(queue: Queue):
    bells = [queue.bell() for _ in range(3)]
    waiting = threading.Barrier(4)

    def wait(number: int) -> float:
        waiting.wait()
        began = time.monotonic()
        assert bells[number].wait(10)
        return time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(wait, number) for number in range(3)]
        waiting.wait()
        queue.push([entry("first", 1)])
        assert all(waited.result() < 2 for waited in waits)
    assert not any(bell.wait(0.01) for bell in bells)


def test_a_ring_before_the_wait_is_heard(queue: Queue):
    bell = queue.bell()
    queue.ring()
    queue.ring()
    assert bell.wait(5)
    assert not bell.wait(0.01)  # both were heard


def test_a_bell_is_heard_after_redis_was_emptied(queue: Queue, redis_server: RedisServer):
    bell = queue.bell()
    queue.ring()
    assert bell.wait(5)
    redis_server.flush()
    queue.ring()
    assert bell.wait(5)


def test_a_jobs_bell_is_its_own(queue: Queue):
    mine, all_dispatchers, others = queue.bell("first"), queue.bell(), queue.bell("second")
    queue.ring("first")
    assert mine.wait(5)
    assert not all_dispatchers.wait(0.01)
    assert not others.wait(0.01)


def test_the_newest_progress_is_kept(queue: Queue):
    queue.publish_progress("first", {"step": 1})
    queue.publish_progress("first", {"step": 2, "loss": 0.5})
    assert queue.progress(["first", "second"]) == {"first": {"step": 2, "loss": 0.5}}
    assert queue.progress([]) == {}


def test_followers_see_progress_as_it_comes(queue: Queue, redis_server: RedisServer):
    queue.publish_progress("first", {"step": 1})
    follower = queue.follow("first", every=5)
    assert next(follower) == {"step": 1}
    for step in (2, 3):
        queue.publish_progress("first", {"step": step})
    assert [next(follower), next(follower)] == [{"step": 2}, {"step": 3}]
    follower.close()


def test_followers_hear_silence_too(queue: Queue):
    follower = queue.follow("first", every=0.01)
    assert [next(follower), next(follower)] == [None, None]
    follower.close()


def test_the_cluster_as_the_dispatcher_saw_it(queue: Queue):
    assert queue.cluster() is None
    queue.publish_cluster({"total_cpus": 2.0})
    assert queue.cluster() == {"total_cpus": 2.0}


def test_prefixes_keep_queues_apart(queue: Queue, redis_server: RedisServer):
    other = Queue(redis_server.url, prefix="other")
    other.push([entry("first", 1)])
    assert claim(queue).job is None
    assert claim(other).job == "first"
    other.close()


@pytest.mark.parametrize("priority", [-1001, 1001])
def test_a_priority_out_of_range_is_refused(queue: Queue, priority: int):
    with pytest.raises(ValueError, match="must be from -1000 to 1000"):
        queue.push([entry("first", 1, priority=priority)])


def test_every_key_expires_or_is_one_of_a_few(queue: Queue, redis_server: RedisServer):
    """Nothing of a job stays in Redis for ever."""
    queue.push([entry("first", 1), entry("second", 2)])
    claim(queue)
    queue.ring("first")
    queue.publish_progress("first", {"step": 1})
    queue.publish_cluster({"total_cpus": 2.0})
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    lasting = {key for key in client.scan_iter() if client.ttl(key) == -1}
    client.close()
    assert lasting == {"textvae:queue", "textvae:needs", "textvae:bell"}


def test_without_redis_every_call_says_so(redis_server: RedisServer):
    gone = Queue("redis://127.0.0.1:1/0")
    none = Queue(None)
    wrong = Queue(redis_server.url.replace("//:", "//:wrong"))
    calls = [
        lambda queue: queue.push([entry("first", 1)]),
        lambda queue: queue.remove(["first"]),
        lambda queue: queue.entries(),
        lambda queue: claim(queue),
        lambda queue: queue.renew("first", 1, 1),
        lambda queue: queue.release("first", 1),
        lambda queue: queue.leases(["first"]),
        lambda queue: queue.ring(),
        lambda queue: queue.bell(),
        lambda queue: queue.publish_progress("first", {}),
        lambda queue: queue.progress(["first"]),
        lambda queue: next(queue.follow("first")),
        lambda queue: queue.cluster(),
        lambda queue: queue.ping(),
    ]
    for call in calls:
        for queue, words in ((gone, "does not answer"), (none, "textvae-jobs up"), (wrong, "password")):
            with pytest.raises(QueueUnavailable, match=words):
                call(queue)
    with pytest.raises(QueueUnavailable, match="cannot be used"):
        Queue("nonsense://x")


def test_a_connection_that_broke_is_made_again(queue: Queue, redis_server: RedisServer):
    queue.push([entry("first", 1)])
    redis_server.stop()
    with pytest.raises(QueueUnavailable):
        queue.entries()
    redis_server.start()
    assert queue.entries() == {}  # this Redis keeps nothing; the store does
    assert queue.ping().startswith("6.2")
