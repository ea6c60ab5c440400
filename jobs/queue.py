"""Who is next, who holds a lease, who should wake up, how far training is: the only Redis of the project.

Everything here can be rebuilt from the store; emptying Redis loses nothing. The keys, below a prefix:

| key | type | holds | written by |
|---|---|---|---|
| queue | sorted set | job ids; the score is sequence - priority * 2^40: lowest first | push, remove, take |
| numbers | hash | job id -> the number of the attempt to open | push, remove, take |
| lease:JOB | string, expires | attempt that may work on it: number, milliseconds | take, renew, release |
| bell | stream, capped | wakes the dispatchers | push, ring |
| bell:JOB | stream, capped, expires | wakes whoever waits for a change of that job | ring |
| progress:JOB | string, expires | JSON of the newest progress | publish_progress |
| progress:JOB | channel | the same, to followers | publish_progress |
| cluster | string, expires | JSON of the resources that the dispatcher saw last | publish_cluster |
| outlook | string, expires | JSON of what its last decision was made of | publish_outlook |

Each transition is one Lua script. The scripts build the names of lease keys from the prefix, so this needs
one Redis server, not a Redis Cluster. Only commands of Redis 6.2 are used.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis

TIMEOUT = 5.0  # seconds until a call to Redis counts as unanswered
PRIORITIES = range(-1000, 1001)
_BLOCK = 2.0  # seconds that one blocking read waits, well below TIMEOUT
_KEEP = 3600  # seconds that progress and bells outlive their last write

# KEYS: queue, numbers, bell; ARGV: score, job, number, ...
_PUSH = """
for i = 1, #ARGV, 3 do
  redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[2], ARGV[i + 1], ARGV[i + 2])
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 16, '*', 'queued', #ARGV / 3)
"""

# KEYS: queue, numbers; ARGV: job, ...
_REMOVE = """
local removed = 0
for i = 1, #ARGV do
  removed = removed + redis.call('ZREM', KEYS[1], ARGV[i])
  redis.call('HDEL', KEYS[2], ARGV[i])
end
return removed
"""

# The number of the attempt that holds a lease; nil if nobody does. Redis keeps by the machine's clock when a
# lease ends, so one that was set back would let it last longer than it was given for: it is cut to that then.
_HELD = """
local function held(key)
  local number, given = string.match(redis.call('GET', key) or '', '^(%d+) ?(%d*)$')
  given = tonumber(given)
  if given and redis.call('PTTL', key) > given then redis.call('PEXPIRE', key, given) end
  return tonumber(number)
end
"""

# Take jobs out of the queue, each with a lease, to open attempts of them. One whose attempt is leased already
# is left: another dispatcher is opening it. One that is not in the queue is taken all the same: the queue is
# an index, and the store knows better.
# KEYS: queue, numbers; ARGV: lease prefix, milliseconds, job, number, ...
_TAKE = f"""{_HELD}
local taken = {{}}
for i = 3, #ARGV, 2 do
  local lease = held(ARGV[1] .. ARGV[i])
  if not lease or lease < tonumber(ARGV[i + 1]) then
    redis.call('ZREM', KEYS[1], ARGV[i])
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('SET', ARGV[1] .. ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[2], 'PX', ARGV[2])
    taken[#taken + 1] = ARGV[i]
  end
end
return taken
"""

# KEYS: lease; ARGV: number, milliseconds
_RENEW = f"""{_HELD}
local lease = held(KEYS[1])
if lease and lease > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[2])
return 1
"""

# KEYS: lease; ARGV: number
_RELEASE = f"""{_HELD}
if held(KEYS[1]) == tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end
return 0
"""

# KEYS: leases
_LEASES = f"""{_HELD}
local leases = {{}}
for i = 1, #KEYS do leases[i] = held(KEYS[i]) or false end
return leases
"""

# KEYS: bell; ARGV: seconds until it expires, 0 for never
_RING = """
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 16, '*', 'ring', 1)
if ARGV[1] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
"""

# KEYS: progress (the channel has the same name); ARGV: JSON, seconds
_PROGRESS = """
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
"""


class QueueUnavailable(Exception):
    """Redis does not answer, or there is none: nothing is lost, what it held is rebuilt from the store."""


@dataclass(frozen=True)
class Entry:
    """A job that waits."""

    job: str
    number: int  # of the attempt to open
    priority: int  # higher goes first
    sequence: int  # order of submission


@dataclass(frozen=True)
class Lease:
    """That an attempt may work on its job."""

    number: int  # of the attempt
    seconds: float  # until it ends, unless somebody renews it


class Queue:
    """The queue behind its verbs. Every call raises QueueUnavailable if Redis does not answer in time."""

    def __init__(self, url: str | None, prefix: str = "textvae"):
        """Nothing is connected yet. With `url` none there is no Redis: every call raises QueueUnavailable."""
        self._prefix = prefix
        self._redis: redis.Redis | None = None
        if url is not None:
            # Here, as it takes longer to import than most commands take to run without it.
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            try:
                self._redis = redis.Redis.from_url(
                    url,
                    socket_timeout=TIMEOUT,
                    socket_connect_timeout=TIMEOUT,
                    # One retry, at once: a connection that the server closed while it was idle.
                    retry=Retry(NoBackoff(), 1),
                    decode_responses=True,
                )
            except ValueError as error:
                raise QueueUnavailable(f"the Redis URL cannot be used: {error}") from error

    def close(self) -> None:
        """Close every connection."""
        if self._redis is not None:
            self._redis.close()

    def ping(self) -> str:
        """The server's version, if it answers."""
        with self._answering() as server:
            return str(server.info("server")["redis_version"])

    def push(self, entries: Iterable[Entry]) -> None:
        """Put jobs into the queue, or replace their entries, and wake the dispatchers."""
        entries = list(entries)
        with self._answering() as server:
            for start in range(0, len(entries), 500):
                arguments: list[str | int] = []
                for entry in entries[start : start + 500]:
                    arguments += [_score(entry), entry.job, entry.number]
                keys = [self._key("queue"), self._key("numbers"), self._key("bell")]
                server.eval(_PUSH, len(keys), *keys, *arguments)

    def remove(self, jobs: Iterable[str]) -> int:
        """Take jobs out of the queue; returns how many were in it."""
        jobs = list(jobs)
        removed = 0
        with self._answering() as server:
            for start in range(0, len(jobs), 500):
                batch = jobs[start : start + 500]
                removed += int(server.eval(_REMOVE, 2, self._key("queue"), self._key("numbers"), *batch))
        return removed

    def take(self, jobs: Mapping[str, int], ttl: float) -> set[str]:
        """Take jobs out of the queue to open these attempts of them, with a lease of `ttl` seconds on each.

        Returns those that were taken; the others another dispatcher is opening, or has opened.
        """
        if not jobs:
            return set()
        pairs = [part for pair in jobs.items() for part in pair]
        with self._answering() as server:
            keys = (self._key("queue"), self._key("numbers"))
            taken = server.eval(_TAKE, 2, *keys, self._key("lease:"), _milliseconds(ttl), *pairs)
        return set(taken)

    def __len__(self) -> int:
        with self._answering() as server:
            return int(server.zcard(self._key("queue")))

    def entries(self) -> dict[str, int]:
        """The jobs in the queue, in order, each with the number of its next attempt."""
        with self._answering() as server, server.pipeline(transaction=True) as both:
            both.zrange(self._key("queue"), 0, -1)
            both.hgetall(self._key("numbers"))
            jobs, numbers = both.execute()
        return {job: int(numbers.get(job, 0)) for job in jobs}

    def renew(self, job: str, number: int, ttl: float) -> bool:
        """Extend the attempt's lease, or take it again if it is gone; False if a newer attempt holds it."""
        with self._answering() as server:
            return bool(server.eval(_RENEW, 1, self._key(f"lease:{job}"), number, _milliseconds(ttl)))

    def release(self, job: str, number: int) -> bool:
        """Give up the attempt's lease, if it holds it."""
        with self._answering() as server:
            return bool(server.eval(_RELEASE, 1, self._key(f"lease:{job}"), number))

    def leases(self, jobs: Iterable[str]) -> dict[str, int]:
        """Of these jobs, those that are leased, each with the number of the attempt that holds it."""
        jobs = list(jobs)
        if not jobs:
            return {}
        with self._answering() as server:
            held = server.eval(_LEASES, len(jobs), *(self._key(f"lease:{job}") for job in jobs))
        return {job: number for job, number in zip(jobs, held, strict=True) if number is not None}

    def all_leases(self) -> dict[str, Lease]:
        """Every lease that there is, by job, whether or not anybody knows of the job."""
        prefix = self._key("lease:")
        with self._answering() as server:
            keys = set(server.scan_iter(match=f"{prefix}*", count=1000))
        held = self.leases(sorted(key.removeprefix(prefix) for key in keys))
        with self._answering() as server, server.pipeline(transaction=False) as each:
            for job in held:
                each.pttl(prefix + job)
            left = each.execute()
        return {
            job: Lease(number, math.inf if milliseconds == -1 else milliseconds / 1000)
            for (job, number), milliseconds in zip(held.items(), left, strict=True)
            if milliseconds != -2  # it has ended meanwhile
        }

    def ring(self, job: str | None = None) -> None:
        """Wake the dispatchers, or whoever waits for a change of `job`."""
        name, expires = ("bell", 0) if job is None else (f"bell:{job}", _KEEP)
        with self._answering() as server:
            server.eval(_RING, 1, self._key(name), expires)

    def bell(self, job: str | None = None) -> Bell:
        """A bell to wait at: the dispatchers', or that of `job`. It hears every ring from this moment on."""
        return Bell(self, self._key("bell" if job is None else f"bell:{job}"))

    def publish_progress(self, job: str, progress: Mapping[str, Any]) -> None:
        """Replace the live progress of a job, and send it to its followers."""
        with self._answering() as server:
            server.eval(_PROGRESS, 1, self._key(f"progress:{job}"), json.dumps(progress), _KEEP)

    def progress(self, jobs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The newest progress of those of these jobs that have any."""
        jobs = list(jobs)
        if not jobs:
            return {}
        with self._answering() as server:
            found = server.mget([self._key(f"progress:{job}") for job in jobs])
        return {job: json.loads(text) for job, text in zip(jobs, found, strict=True) if text is not None}

    def follow(self, job: str, every: float = 1.0) -> Iterator[dict[str, Any] | None]:
        """The live progress of a job as it comes, without end, beginning with the newest there is.

        Yields None after `every` seconds of silence, so that the caller can look whether the job has ended.
        """
        name = self._key(f"progress:{job}")
        with self._answering() as server:
            channel = server.pubsub()
        try:
            with self._answering():
                channel.subscribe(name)
                channel.get_message(timeout=TIMEOUT)  # confirmed: nothing published from here on is missed
            yield self.progress([job]).get(job)
            while True:
                with self._answering():
                    message = channel.get_message(timeout=min(every, _BLOCK))
                if message is None or message["type"] == "message":
                    yield None if message is None else json.loads(message["data"])
        finally:
            channel.close()

    def publish_cluster(self, resources: Mapping[str, float]) -> None:
        """Show what the dispatcher sees of the cluster."""
        with self._answering() as server:
            server.set(self._key("cluster"), json.dumps(resources), ex=60)

    def cluster(self) -> dict[str, float] | None:
        """What a dispatcher saw of the cluster within the last minute."""
        with self._answering() as server:
            text = server.get(self._key("cluster"))
        return None if text is None else dict(json.loads(str(text)))

    def publish_outlook(self, outlook: Mapping[str, Any]) -> None:
        """Show what a decision was made of, so that others can say why a job waits."""
        with self._answering() as server:
            server.set(self._key("outlook"), json.dumps(outlook), ex=60)

    def outlook(self) -> dict[str, Any] | None:
        """What a dispatcher showed within the last minute."""
        with self._answering() as server:
            text = server.get(self._key("outlook"))
        return None if text is None else dict(json.loads(str(text)))

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    @contextmanager
    def _answering(self) -> Iterator[Any]:
        """The server; its errors are translated. (Any: redis-py types every reply as perhaps awaitable.)"""
        if self._redis is None:
            raise QueueUnavailable("there is no Redis: run `textvae-jobs up`, or set TEXTVAE_REDIS_URL")
        import redis

        try:
            yield self._redis
        except redis.AuthenticationError as error:
            raise QueueUnavailable(f"Redis refuses the password: {error}") from error
        except redis.ResponseError as error:
            raise QueueUnavailable(f"Redis refuses: {error}") from error
        except (redis.RedisError, OSError) as error:
            raise QueueUnavailable(f"Redis does not answer: {error}") from error


class Bell:
    """Hears rings. Each waiter has its own; one ring wakes them all."""

    def __init__(self, queue: Queue, key: str):
        self._queue = queue
        self._key = key
        with queue._answering() as server:
            newest = server.xrevrange(key, count=1)
        self._heard: str = newest[0][0] if newest else "0-0"

    def wait(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> bool:
        """Wait up to `timeout` seconds for a ring; True if there was one since the last wait."""
        deadline = clock() + timeout
        while (left := deadline - clock()) > 0:
            with self._queue._answering() as server:
                rings = server.xread({self._key: self._heard}, block=_milliseconds(min(left, _BLOCK)))
            if rings:
                self._heard = rings[0][1][-1][0]
                return True
        return False


def _score(entry: Entry) -> int:
    """Lower goes first. Exact in a double: |priority| <= 2^10, sequence < 2^40."""
    if entry.priority not in PRIORITIES:
        raise ValueError(f"priority {entry.priority} must be from {PRIORITIES[0]} to {PRIORITIES[-1]}")
    return entry.sequence - entry.priority * 2**40


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
