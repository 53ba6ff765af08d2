import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import Limits
from oneai_middleware.errors import ConfigurationError, RateLimitExceeded
from oneai_middleware.rate_limiters.base import Claim
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.testing import (
    LEASE,
    FakeClock,
    RateLimiterContract,
    attempt,
    claim,
    refusal,
)


def fork(monkeypatch):
    """Let the code under test believe that it runs in a forked child."""
    child = SimpleNamespace(getpid=lambda: -1)
    monkeypatch.setattr("oneai_middleware.per_process.os", child)
    monkeypatch.setattr("oneai_middleware.rate_limiters.memory.os", child)


FREE = (Claim("account:alice", Limits(rpm=20, tpm=200_000, concurrent=2)),)


class TestMemoryRateLimiter(RateLimiterContract):
    def make_limiter(self):
        self.clock = FakeClock()
        return MemoryRateLimiter(lease=LEASE, clock=self.clock.ns)

    def advance(self, seconds):
        self.clock.advance(seconds)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def limiter(clock):
    return MemoryRateLimiter(lease=30, clock=clock.ns)


def call(limiter, claims=FREE, tokens=10):
    limiter.settle(limiter.acquire("alice", claims, tokens), tokens)


def burst(limiter, claims=FREE):
    for _ in range(claims[0].limits.rpm):
        call(limiter, claims)


def test_the_21st_request_of_a_free_burst_is_told_to_wait_three_seconds(limiter):
    """Conformance 91."""
    burst(limiter)
    refused = refusal(limiter, FREE)
    assert refused.code == "rate_limit_exceeded"
    assert refused.headers() == [("Retry-After", "3")]
    assert refused.message == (
        "Rate limit reached for requests per minute (limit 20). Try again in 3s."
    )


def test_after_retry_after_the_request_passes(limiter, clock):
    """Conformance 92."""
    burst(limiter)
    clock.advance(int(dict(refusal(limiter, FREE).headers())["Retry-After"]))
    call(limiter)
    assert refusal(limiter, FREE).limit == "rpm"


def test_the_wait_is_exact_to_the_nanosecond(limiter, clock):
    claims = claim(rpm=7)
    burst(limiter, claims)
    clock.advance(math.ceil(60e9 / 7) / 1e9 - 1e-9)
    assert refusal(limiter, claims).retry_after == 1e-9
    clock.advance(1e-9)
    call(limiter, claims)


def test_a_third_concurrent_free_request_waits_for_a_slot(limiter):
    """Conformance 93."""
    first, _ = (limiter.acquire("alice", FREE, 10) for _ in range(2))
    refused = refusal(limiter, FREE)
    assert refused.code == "concurrency_limit_exceeded"
    assert refused.headers() == [("Retry-After", "1")]
    assert "2 requests at once" in refused.message
    limiter.settle(first, 10)
    limiter.acquire("alice", FREE, 10)


def test_tokens_over_the_minute_wait_and_over_the_limit_never_pass(limiter):
    """Conformance 94."""
    call(limiter, tokens=200_000)
    waiting = refusal(limiter, FREE, tokens=20_000)
    assert waiting.headers() == [("Retry-After", "6")]
    assert "tokens per minute (limit 200000)" in waiting.message
    never = refusal(limiter, FREE, tokens=200_001)
    assert never.code == "request_exceeds_limit"
    assert never.headers() == [("x-should-retry", "false")]


def test_what_remains_decreases_and_is_never_negative(limiter):
    """Conformance 95."""
    seen = []
    for _ in range(30):
        try:
            grant = limiter.acquire("alice", FREE, 15_000)
        except RateLimitExceeded as refused:
            seen.append(refused.figures)
        else:
            seen.append(grant.status)
            limiter.settle(grant, 25_000)
    requests = [status.remaining_requests for status in seen]
    tokens = [status.remaining_tokens for status in seen]
    assert requests == sorted(requests, reverse=True)
    assert tokens == sorted(tokens, reverse=True)
    assert min(requests) >= 0
    assert min(tokens) == 0


def test_retry_after_is_a_whole_number_and_never_zero(limiter, clock):
    """Conformance 97."""
    burst(limiter)
    for _ in range(40):
        seconds = dict(refusal(limiter, FREE).headers())["Retry-After"]
        assert seconds in {"1", "2", "3"}
        clock.advance(0.07)


def test_a_limit_of_zero_refuses_for_good(limiter):
    for name in ("rpm", "concurrent"):
        refused = refusal(limiter, claim(**{name: 0}))
        assert (refused.limit, refused.retry_after, refused.retryable) == (name, None, False)


@pytest.mark.parametrize("takes", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_takes_over_32_threads_admit_exactly_the_law(clock, takes):
    threads, rounds, rpm, pause = 32, 10, takes * 3 // 10, 6
    share = takes // (threads * rounds)
    limiter = MemoryRateLimiter(lease=1, clock=clock.ns)
    claims = claim(rpm=rpm)
    barrier = threading.Barrier(threads, action=lambda: clock.advance(pause))

    def work(_):
        admitted = 0
        for _ in range(rounds):
            barrier.wait(timeout=60)
            admitted += sum(attempt(limiter, claims) is not None for _ in range(share))
        return admitted

    with ThreadPoolExecutor(threads) as pool:
        admitted = sum(pool.map(work, range(threads)))
    assert admitted == rpm + rpm * pause * (rounds - 1) // 60 < threads * rounds * share


def test_idle_full_subjects_are_forgotten(limiter, clock):
    for number in range(2_000):
        call(limiter, (*claim(f"account:{number}", rpm=5), *claim(f"key:{number}", tpm=100)))
        clock.advance(1)
    assert len(limiter._state().subjects) < 300


def test_a_crowd_of_strangers_is_forgotten_once_it_has_left(limiter, clock):
    for number in range(5_000):
        call(limiter, claim(f"key:{number}", rpm=5))
    clock.advance(60)
    for _ in range(5_000):
        call(limiter, claim(tpm=10**9))
    assert set(limiter._state().subjects) == {"account:alice"}


def test_a_subject_in_debt_or_at_work_is_not_forgotten(limiter, clock):
    debtor, worker = claim("key:debtor", tpm=60), claim("key:worker", concurrent=1)
    limiter.settle(limiter.acquire("alice", debtor, 1), 600)
    grant = limiter.acquire("alice", worker, 1)
    for number in range(1_000):
        clock.advance(0.1)
        limiter.renew(grant)
        call(limiter, claim(f"key:{number}", rpm=1000))
    assert refusal(limiter, debtor).limit == "tpm"
    assert refusal(limiter, worker).limit == "concurrent"


def test_looking_at_the_status_keeps_nothing(limiter):
    for number in range(100):
        limiter.status("alice", claim(f"key:{number}", rpm=5))
    assert not limiter._state().subjects


def test_a_refused_stranger_leaves_nothing_behind(limiter):
    refusal(limiter, claim(tpm=10), tokens=11)
    assert not limiter._state().subjects


def test_a_forked_child_starts_empty_and_never_waits_for_the_parents_lock(limiter, monkeypatch):
    call(limiter, claim(rpm=1))
    with limiter._state().free_lock():
        fork(monkeypatch)
        call(limiter, claim(rpm=1))
        assert refusal(limiter, claim(rpm=1)).limit == "rpm"


def test_a_grant_of_the_parent_frees_nothing_in_the_child(limiter, monkeypatch):
    parents = limiter.acquire("alice", claim(concurrent=1), 1)
    fork(monkeypatch)
    childs = limiter.acquire("alice", claim(concurrent=1), 1)
    assert childs.id != parents.id
    limiter.settle(parents, 1)
    assert refusal(limiter, claim(concurrent=1)).limit == "concurrent"


def test_the_lease_is_a_setting(clock):
    limiter = MemoryRateLimiter.from_settings({"lease": 5})
    limiter._clock = clock.ns
    limiter.acquire("alice", claim(concurrent=1), 1)
    clock.advance(5)
    limiter.acquire("alice", claim(concurrent=1), 1)


def test_a_url_is_refused():
    with pytest.raises(ConfigurationError, match="rate_limiter"):
        MemoryRateLimiter.from_settings({"lease": 30}, "memory://")
