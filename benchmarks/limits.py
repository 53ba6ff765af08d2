"""Limits that many workers share through Redis, and what it costs to be admitted."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from redis import Redis

from oneai_middleware.accounts import Limits
from oneai_middleware.rate_limiters.base import Claim, Grant, RateLimiter
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.rate_limiters.redis import RedisRateLimiter
from oneai_middleware.rate_limiters.subject import Subject
from oneai_middleware.secret import new_secret

from .servers import PATIENCE, Running, limited, redis

MASTERS, WORKERS, THREADS = 2, 4, 8
CALLERS = 32

PATIENT = "?socket_timeout=10&socket_connect_timeout=10"
"""On a machine that is busy with the benchmark itself nobody is to take Redis for gone."""

UNITS = 60 * 10**6
"""Of a request, in Redis."""

RUNS = 7
"""Of the threads, whose median counts."""

KEYS = "oneai:{@caller}:%s:account:caller"


# --- overload -------------------------------------------------------------------------


class Row(NamedTuple):
    """The line of the first table."""

    seconds: int
    asked: int
    admitted: int
    law: float
    too_fast: int
    too_many: int
    failed: int
    most_at_once: int
    allowed: int
    slots: int

    @property
    def is_clean(self) -> bool:
        """Whether exactly the law was admitted, and nothing is left."""
        return (
            self.admitted == self.law
            and self.most_at_once <= self.allowed
            and not (self.failed or self.slots)
        )


def overload(minutes: float, rpm: int, concurrent: int) -> Row:
    """Ask for more than there is from all sides, and see what is given."""
    key = new_secret()
    with redis() as port, Redis(port=port) as client, contextlib.ExitStack() as servers:
        environment = {
            "BENCHMARK_REDIS": f"redis://127.0.0.1:{port}{PATIENT}",
            "BENCHMARK_KEY": key,
            "BENCHMARK_RPM": str(rpm),
            "BENCHMARK_CALLS": str(concurrent),
        }
        masters = [
            servers.enter_context(limited(WORKERS, THREADS, environment)) for _ in range(MASTERS)
        ]
        ask = _asking(masters, key)
        # So much is gone that the bucket is not full again before all callers have come.
        for number in range(rpm // 3):
            ask(number)
        before = _bucket(client)
        seconds, answers = _ask_for(minutes, ask)
        at, level = _bucket(client)
        law = (before[1] + (at - before[0]) * rpm - level) / UNITS
        counts = [answer for answer in answers if isinstance(answer, int)]
        other = {"rate_limit_exceeded", "concurrency_limit_exceeded"}
        return Row(
            seconds,
            asked=answers.total(),
            admitted=sum(answers[count] for count in counts),
            law=int(law) if law == int(law) else law,
            too_fast=answers["rate_limit_exceeded"],
            too_many=answers["concurrency_limit_exceeded"],
            failed=sum(n for what, n in answers.items() if what not in {*counts, *other}),
            most_at_once=max(counts),
            allowed=concurrent,
            slots=client.zcard(KEYS % "slots"),
        )


def _bucket(client: Any) -> tuple[int, int]:
    """When it was looked at last, in microseconds, and its level then."""
    at, level = client.hmget(KEYS % "buckets", "at", "requests")
    return int(at), int(level)


def _ask_for(minutes: float, ask: Callable[[int], int | str]) -> tuple[int, Counter[int | str]]:
    began = time.monotonic()
    end = began + minutes * 60

    def call(number: int) -> Counter[int | str]:
        answers: Counter[int | str] = Counter()
        minute = 1
        while time.monotonic() < end:
            answers[ask(number)] += 1
            if number == 0 and time.monotonic() > began + 60 * minute:
                print(f"minute {minute} of {minutes:g}", file=sys.stderr)
                minute += 1
        return answers

    with ThreadPoolExecutor(CALLERS) as pool:
        answers = sum(pool.map(call, range(CALLERS)), Counter[int | str]())
    return round(time.monotonic() - began), answers


def _asking(masters: Sequence[Running], key: str) -> Callable[[int], int | str]:
    """Asks one of the servers: the count that it says, or the code of its refusal."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps({"model": "bot", "messages": [{"role": "user", "content": "Hi"}]})

    def ask(number: int) -> int | str:
        port = masters[number % len(masters)].port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            reply = connection.getresponse()
            said = json.load(reply)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()
        if reply.status == 200:
            return int(said["choices"][0]["message"]["content"])
        return str(said["error"]["code"])

    return ask


# --- cost -----------------------------------------------------------------------------

CLAIMS = [Claim("account:caller", Limits(10**8, 10**8, 10**6))]


class Cost(NamedTuple):
    """A line of the second table."""

    limiter: str
    acquire_p50_us: float
    acquire_p99_us: float
    settle_p50_us: float
    settle_p99_us: float
    threads_per_s: int


def cost(name: str, limiter: RateLimiter, calls: int) -> Cost:
    """What a call pays to begin and to end: alone, and beside 31 others."""
    begun, ended = [], []
    for _ in range(calls):
        first = time.perf_counter_ns()
        grant = limiter.acquire("caller", CLAIMS, 100)
        second = time.perf_counter_ns()
        limiter.settle(grant, 50)
        third = time.perf_counter_ns()
        begun.append((second - first) / 1000)
        ended.append((third - second) / 1000)
    begin, end = sorted(begun), sorted(ended)
    together = statistics.median(_contended(limiter, calls) for _ in range(RUNS))
    return Cost(
        name,
        acquire_p50_us=_percentile(begin, 0.5),
        acquire_p99_us=_percentile(begin, 0.99),
        settle_p50_us=_percentile(end, 0.5),
        settle_p99_us=_percentile(end, 0.99),
        threads_per_s=round(together),
    )


def take(calls: int) -> float:
    """Microseconds that the buckets of one subject take in an acquire: to be refilled, looked
    at and taken from, under a lock."""
    subject, lock = Subject.new(CLAIMS[0], time.monotonic_ns()), threading.Lock()
    took = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        with lock:
            subject.refill(time.monotonic_ns())
            if subject.has_room(100):
                subject.take(100)
        took.append((time.perf_counter_ns() - began) / 1000)
        subject.give_back(1, 100, time.monotonic_ns())
    return _percentile(sorted(took), 0.5)


def plain(calls: int) -> float:
    """Microseconds that the simplest bucket takes, a lock and two floats: what this machine
    can do."""
    lock, level, at = threading.Lock(), 0.0, time.monotonic()
    took = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        with lock:
            now = time.monotonic()
            level, at = min(1e8, level + (now - at) * 1e8), now
            if level >= 100:
                level -= 100
        took.append((time.perf_counter_ns() - began) / 1000)
    return _percentile(sorted(took), 0.5)


def _contended(limiter: RateLimiter, calls: int) -> int:
    """How many calls 32 threads together begin in a second."""
    share = calls // CALLERS
    start = threading.Barrier(CALLERS + 1)

    def work() -> list[Grant]:
        start.wait()
        return [limiter.acquire("caller", CLAIMS, 100) for _ in range(share)]

    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(work) for _ in range(CALLERS)]
        start.wait()
        began = time.perf_counter()
        grants = [grant for one in running for grant in one.result()]
        took = time.perf_counter() - began
    for grant in grants:
        limiter.settle(grant, 100)
    return round(len(grants) / took)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[math.ceil(share * len(ordered)) - 1], 1)


# --- the command ----------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--minutes", type=float, default=10.0, help="of overload")
    parser.add_argument("--rpm", type=int, default=600, help="requests a minute")
    parser.add_argument("--concurrent", type=int, default=5, help="calls at once")


def run(options: argparse.Namespace) -> int:
    """Print both tables; the exit status is 1 if more or less than the law was admitted."""
    row = overload(options.minutes, options.rpm, options.concurrent)
    _print_table([row])
    print()
    with redis() as port:
        there = RedisRateLimiter(f"redis://127.0.0.1:{port}{PATIENT}")
        _print_table([cost("memory", MemoryRateLimiter(), 50_000), cost("redis", there, 5_000)])
    print(f"\nof an acquire in memory, the buckets: {take(50_000)} us", end="")
    print(f"; the simplest bucket: {plain(50_000)} us")
    return 0 if row.is_clean else 1


def _print_table(rows: Sequence[Any]) -> None:
    names = [name.replace("_", " ") for name in rows[0]._fields]
    for cells in (names, ["---:"] * len(names), *rows):
        print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)
