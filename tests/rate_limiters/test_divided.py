"""Limits shared out to processes that cannot ask each other."""

import pytest

from oneai_middleware import Gateway
from oneai_middleware.accounts import Limits
from oneai_middleware.errors import ConfigurationError
from oneai_middleware.rate_limiters.divided import DividedRateLimiter
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.testing import (
    LEASE,
    FakeClock,
    RateLimiterContract,
    attempt,
    claim,
    refusal,
)


class TestOneProcess(RateLimiterContract):
    """One process of one has everything."""

    def make_limiter(self):
        self.clock = FakeClock()
        return DividedRateLimiter(MemoryRateLimiter(lease=LEASE, clock=self.clock.ns), 1)

    def advance(self, seconds):
        self.clock.advance(seconds)


@pytest.fixture
def processes(clock):
    """Four processes, as their limiters."""
    return [DividedRateLimiter(MemoryRateLimiter(lease=LEASE, clock=clock.ns), 4) for _ in range(4)]


def admitted(processes, claims, tokens=1):
    """How many calls get in when each process is asked again and again."""
    return sum(attempt(each, claims, tokens) is not None for each in processes * 100)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"rpm": 20}, 20), ({"tpm": 200}, 200), ({"concurrent": 8}, 8), ({"rpm": 23}, 20)],
)
def test_together_they_admit_the_limit_and_never_more(processes, limits, expected):
    assert admitted(processes, claim(**limits)) == expected


def test_each_refills_at_its_share(processes, clock):
    claims = claim(rpm=60)
    assert admitted(processes, claims) == 60
    clock.advance(4)
    assert admitted(processes, claims) == 4


def test_a_limit_below_their_number_is_one_for_each(processes):
    assert admitted(processes, claim(concurrent=2)) == 4


def test_no_limit_and_a_limit_of_zero_stay_what_they_are(processes):
    assert attempt(processes[0], claim(), 10**9)
    assert refusal(processes[0], claim(rpm=0)).retry_after is None


def test_a_request_larger_than_a_share_of_the_tokens_is_refused_for_good(processes):
    refused = refusal(processes[0], claim(tpm=1_000), tokens=251)
    assert (refused.code, refused.retryable) == ("request_exceeds_limit", False)
    assert "limit 250" in refused.message
    assert attempt(processes[0], claim(tpm=1_000), tokens=250)


def test_the_figures_are_those_of_the_share(processes):
    one = processes[0]
    claims = claim(rpm=20, tpm=1_000)
    status = one.acquire("alice", claims, 50).status
    assert (status.limit_requests, status.remaining_requests) == (5, 4)
    assert one.status("alice", claims).remaining_tokens == 200


def test_what_is_given_back_is_given_back_to_the_share(processes):
    one, claims = processes[0], claim(rpm=4, tpm=400, concurrent=4)
    grant = one.acquire("alice", claims, 100)
    one.renew(grant)
    one.cancel(grant)
    one.settle(one.acquire("alice", claims, 100), 40)
    assert one.status("alice", claims).remaining_tokens == 60


# --- in a whole gateway ------------------------------------------------------------------


def test_a_gateway_of_four_processes_gives_a_quarter(make_gateway, send, headers):
    gateway = make_gateway(account={"limits": {"rpm": 8}}, processes=4)
    body = {"model": "glm-4", "messages": [{"role": "user", "content": "hello"}]}
    replies = [send(gateway, "POST", "/v1/chat/completions", body, headers) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"


def test_a_limiter_that_counts_for_all_is_not_divided():
    with pytest.raises(ConfigurationError, match=r"^processes: .* counts for all .*; remove it"):
        Gateway(rate_limiter="redis://localhost", processes=4)


def test_the_parts_are_plain_limits():
    assert DividedRateLimiter(MemoryRateLimiter(), 3)._share(Limits(20, None, 2)) == (6, None, 1)


WARNING = "several worker processes run"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"processes": 2}, False),
        ({"rate_limiter": "redis://localhost"}, False),
        ({"rate_limiter": MemoryRateLimiter()}, True),
    ],
)
@pytest.mark.parametrize("how", ["at the start", "at the first request"])
def test_several_workers_that_count_in_memory_are_warned_of_once(
    make_gateway, send, monkeypatch, caplog, options, expected, how
):
    at_the_start = how == "at the start"
    monkeypatch.setenv("WEB_CONCURRENCY", "4" if at_the_start else "1")
    gateway = make_gateway(**options)
    assert (WARNING in caplog.text) == (expected and at_the_start)
    for _ in range(3):
        send(gateway, "GET", "/health", **{"wsgi.multiprocess": True})
    lines = [record for record in caplog.records if WARNING in record.message]
    assert [line.levelname for line in lines] == (["WARNING"] if expected else [])
    assert not lines or "redis://" in lines[0].message and "processes = N" in lines[0].message


@pytest.mark.parametrize("workers", ["", "0", "1", None])
def test_one_worker_is_warned_of_nothing(make_gateway, send, monkeypatch, caplog, workers):
    if workers is None:
        monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    else:
        monkeypatch.setenv("WEB_CONCURRENCY", workers)
    send(make_gateway(), "GET", "/health")
    assert WARNING not in caplog.text
