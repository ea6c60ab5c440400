from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jobs.queue import Entry, Queue, QueueUnavailable

from .conftest import RedisServer


def entry(job: str, sequence: int, *, priority: int = 0, number: int = 1) -> Entry:
    return Entry(job, number, priority, sequence)


def test_priority_first_then_age(queue: Queue):
    queue.push(
        [entry("late", 3), entry("low", 1, priority=-5), entry("high", 4, priority=5), entry("early", 2)]
    )
    assert list(queue.entries()) == ["high", "early", "late", "low"]
    assert len(queue) == 4


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
def test_any_jobs_pushed_in_any_order_stand_by_priority_then_age(
    queue: Queue, redis_server: RedisServer, jobs: list[tuple[int, int]], order: Any
):
    redis_server.flush()
    entries = [entry(f"job-{sequence}", sequence, priority=priority) for priority, sequence in jobs]
    shuffled = list(entries)
    order.shuffle(shuffled)
    queue.push(shuffled)
    expected = sorted(entries, key=lambda e: (-e.priority, e.sequence))
    assert list(queue.entries()) == [e.job for e in expected]


def test_what_is_taken_leaves_the_queue_with_a_lease(queue: Queue):
    queue.push([entry("first", 1, number=3), entry("second", 2), entry("third", 3)])
    assert queue.take({"first": 3, "third": 1}, 60) == {"first", "third"}
    assert queue.entries() == {"second": 1}
    assert queue.leases(["first", "second", "third"]) == {"first": 3, "third": 1}
    assert queue.leases([]) == {}
    assert queue.take({}, 60) == set()


def test_a_job_that_another_dispatcher_is_opening_is_not_taken(queue: Queue):
    queue.push([entry("first", 1)])
    assert queue.take({"first": 1}, 60) == {"first"}
    queue.push([entry("first", 1), entry("second", 2)])  # reconciled before the attempt was opened
    assert queue.take({"first": 1, "second": 1}, 60) == {"second"}
    assert queue.entries() == {"first": 1}
    queue.push([entry("first", 1, number=2)])  # the next attempt does not wait for the last one's lease
    assert queue.take({"first": 2}, 60) == {"first"}
    assert queue.leases(["first"]) == {"first": 2}


def test_a_job_that_the_index_has_lost_is_taken_all_the_same(queue: Queue):
    assert queue.take({"first": 1}, 60) == {"first"}


def test_of_twenty_who_take_the_same_jobs_each_gets_others(queue: Queue):
    jobs = {f"job-{n:02}": 1 for n in range(15)}
    queue.push([entry(job, n) for n, job in enumerate(jobs)])
    barrier = threading.Barrier(20)

    def work(_: int) -> set[str]:
        barrier.wait()
        return queue.take(jobs, 60)

    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(work, range(20)))
    assert sorted(job for each in got for job in each) == list(jobs)
    assert len(queue) == 0


def test_the_outlook_is_what_was_shown_last(queue: Queue):
    assert queue.outlook() is None
    queue.publish_outlook({"cluster": {"total_cpus": 4.0}, "turns": [["ada", 0, 1.5]]})
    assert queue.outlook() == {"cluster": {"total_cpus": 4.0}, "turns": [["ada", 0, 1.5]]}


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


def test_a_lease_ends_in_time_although_the_clock_was_set_back(queue: Queue, redis_server: RedisServer):
    """Whoever looks at one that lasts for longer than it was given for cuts it, and leaves others alone."""
    queue.take({"claimed": 1}, 0.3)
    queue.renew("held", 1, 0.3)
    queue.renew("renewed", 1, 60)
    client = redis.Redis.from_url(redis_server.url)
    left = client.pttl("textvae:lease:renewed")
    for job in ("claimed", "held"):
        client.pexpire(f"textvae:lease:{job}", 3_600_300)
    assert queue.take({"claimed": 1}, 60) == set()
    assert queue.leases(["held", "renewed"]) == {"held": 1, "renewed": 1}
    deadline = time.monotonic() + 5
    while not queue.take({"claimed": 1}, 60):
        assert time.monotonic() < deadline
    while queue.leases(["held"]):
        assert time.monotonic() < deadline
    assert queue.leases(["claimed", "renewed"]) == {"claimed": 1, "renewed": 1}
    assert 30_000 < client.pttl("textvae:lease:renewed") <= left  # type: ignore[operator]
    client.close()


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
    queue.publish_outlook({"used": {}})
    assert queue.cluster() == {"total_cpus": 2.0}


def test_prefixes_keep_queues_apart(queue: Queue, redis_server: RedisServer):
    other = Queue(redis_server.url, prefix="other")
    other.push([entry("first", 1)])
    assert queue.entries() == {}
    assert other.take({"first": 1}, 60) == {"first"}
    assert queue.leases(["first"]) == {}
    other.close()


@pytest.mark.parametrize("priority", [-1001, 1001])
def test_a_priority_out_of_range_is_refused(queue: Queue, priority: int):
    with pytest.raises(ValueError, match="must be from -1000 to 1000"):
        queue.push([entry("first", 1, priority=priority)])


def test_all_leases_of_whatever_job(queue: Queue, redis_server: RedisServer):
    assert queue.all_leases() == {}
    queue.renew("first", 2, 60)
    queue.renew("sweep.1", 1, 5)
    client = redis.Redis.from_url(redis_server.url)
    client.set("textvae:lease:stuck", 3)
    client.close()
    found = queue.all_leases()
    assert {job: lease.number for job, lease in found.items()} == {"first": 2, "stuck": 3, "sweep.1": 1}
    assert 50 < found["first"].seconds <= 60 and 0 < found["sweep.1"].seconds <= 5
    assert found["stuck"].seconds == math.inf


def test_every_key_expires_or_is_one_of_a_few(queue: Queue, redis_server: RedisServer):
    """Nothing of a job stays in Redis for ever."""
    queue.push([entry("first", 1), entry("second", 2)])
    queue.take({"first": 1}, 60)
    queue.ring("first")
    queue.publish_progress("first", {"step": 1})
    queue.publish_cluster({"total_cpus": 2.0})
    queue.publish_outlook({"used": {}})
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    lasting = {key for key in client.scan_iter() if client.ttl(key) == -1}
    client.close()
    assert lasting == {"textvae:queue", "textvae:numbers", "textvae:bell"}


def test_without_redis_every_call_says_so(redis_server: RedisServer):
    gone = Queue("redis://127.0.0.1:1/0")
    none = Queue(None)
    wrong = Queue(redis_server.url.replace("//:", "//:wrong"))
    calls = [
        lambda queue: queue.push([entry("first", 1)]),
        lambda queue: queue.remove(["first"]),
        lambda queue: queue.entries(),
        lambda queue: queue.take({"first": 1}, 1),
        lambda queue: len(queue),
        lambda queue: queue.publish_outlook({}),
        lambda queue: queue.outlook(),
        lambda queue: queue.renew("first", 1, 1),
        lambda queue: queue.release("first", 1),
        lambda queue: queue.leases(["first"]),
        lambda queue: queue.all_leases(),
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
