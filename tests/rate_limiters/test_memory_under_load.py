"""Limits in memory at a size: a million accounts, many threads, a clock that is put."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.testing import attempt, claim, refusal

MiB = 2**20

# --- accounts ---------------------------------------------------------------------------

CROWD = """
import json, resource, sys
from oneai_middleware.accounts import Limits
from oneai_middleware.rate_limiters.base import Claim
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.testing import FakeClock

count = int(sys.argv[1])
clock = FakeClock()
limiter = MemoryRateLimiter(clock=clock.ns)
FREE, MANY = Limits(20, 200_000, 2), Limits(10**6, 10**9)

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize()

def call(name, limits):
    claims = [Claim(f"account:{name}", limits)]
    limiter.settle(limiter.acquire(name, claims, 500), 300)

before = resident()
for number in range(count):
    call(f"user{number}", FREE)
most = resident()
clock.advance(60)
for number in range(count // 5):  # life goes on, and others come
    call(f"guest{number % 100}", MANY)
    clock.advance(0.01)
print(json.dumps([most - before, resident() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads sizes in /proc")
@pytest.mark.parametrize("accounts", [50_000, pytest.param(10**6, marks=pytest.mark.soak)])
def test_memory_is_bounded_by_the_accounts_and_comes_back_when_they_have_gone(
    accounts: int,
) -> None:
    command = [sys.executable, "-c", CROWD, str(accounts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    most, left = json.loads(done.stdout)
    own = 3 * MiB  # of the interpreter, however few there are
    assert most <= 400 * MiB * accounts / 10**6 + own
    assert left <= most / 10 + own


# --- threads ----------------------------------------------------------------------------


@pytest.fixture
def brisk() -> Iterator[None]:
    """Threads that take turns often, so that a second shows what an hour would."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.000_2)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("brisk")
def test_of_32_threads_that_contend_none_starves() -> None:
    limiter, calls = MemoryRateLimiter(), itertools.count(1)
    claims = (*claim(rpm=10**9, tpm=10**9), *claim("key:k1", concurrent=40))
    barrier = threading.Barrier(32)

    def work(_: int) -> int:
        barrier.wait(timeout=60)
        done = 0
        while next(calls) < 32 * 1_500:
            limiter.settle(limiter.acquire("alice", claims, 10), 10)
            done += 1
        return done

    with ThreadPoolExecutor(32) as pool:
        shares = sorted(pool.map(work, range(32)))
    assert shares[0] > sum(shares) / len(shares) / 10


# As a server ends its worker, and Ctrl-C or a test's timeout the main thread.
INTERRUPTED = """
import contextlib, random, signal, sys, threading
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.testing import claim

def interrupt(*_):
    raise InterruptedError

limiter, claims, choice = MemoryRateLimiter(), claim(rpm=10**9), random.Random(1)
signal.signal(signal.SIGALRM, interrupt)
for _ in range(2_000):
    with contextlib.suppress(InterruptedError):
        signal.setitimer(signal.ITIMER_REAL, choice.uniform(1e-5, 5e-5))
        while True:
            limiter.acquire("alice", claims, 1)
later = threading.Thread(target=limiter.status, args=("alice", claims), daemon=True)
later.start()
later.join(timeout=10)
sys.exit(later.is_alive())
"""


def test_a_signal_that_ends_an_acquire_at_any_point_leaves_the_lock_free() -> None:
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True, timeout=60)


@pytest.mark.usefixtures("brisk")
def test_calls_that_begin_and_end_at_random_are_never_more_at_once_than_allowed() -> None:
    calls, cap, threads = 10**5, 5, 16
    limiter, claims = MemoryRateLimiter(), claim(concurrent=cap)
    guard = threading.Lock()
    running = most = 0

    def work(seed: int) -> None:
        nonlocal running, most
        choice = random.Random(seed)
        for _ in range(calls // threads):
            grant = attempt(limiter, claims)
            if grant is None:
                continue
            with guard:
                running += 1
                most = max(most, running)
            for _ in range(choice.randrange(20)):
                limiter.renew(grant)
            with guard:
                running -= 1
            for _ in range(choice.randint(1, 2)):  # to end twice ends once
                choice.choice([limiter.cancel, lambda grant: limiter.settle(grant, 1)])(grant)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert most == cap
    assert len([limiter.acquire("alice", claims, 1) for _ in range(cap)]) == cap
    assert refusal(limiter, claims).limit == "concurrent"


# --- the clock ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-3600, 3600])
def test_the_clock_on_the_wall_may_be_put_and_nothing_is_decided_otherwise(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = MemoryRateLimiter()
    rate, slots = claim(rpm=2, tpm=1_000), claim("key:k1", concurrent=1)
    held = limiter.acquire("alice", (*rate, *slots), 100)
    limiter.settle(limiter.acquire("alice", rate, 100), 500)
    before = limiter.status("alice", rate)
    wall, wall_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: wall() + step)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + step * 10**9)
    refused = refusal(limiter, rate)
    assert (refused.limit, refused.retry_after) == ("rpm", pytest.approx(30, abs=5))
    assert refusal(limiter, slots).limit == "concurrent"
    after = limiter.status("alice", rate)
    assert after.remaining_requests == before.remaining_requests == 0
    assert after.remaining_tokens == pytest.approx(before.remaining_tokens, abs=80)
    limiter.renew(held)
    limiter.settle(held, 100)
    assert attempt(limiter, slots)
