"""Limits that are tried out: evaluated, logged and counted, and not enforced."""

import logging
from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded, StoreUnavailable
from oneai_middleware.rate_limiters.base import Claim, Grant, LimitStatus
from oneai_middleware.rate_limiters.guarded import GuardedRateLimiter
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.rate_limiters.shadow import ShadowRateLimiter
from oneai_middleware.testing import (
    LEASE,
    FakeClock,
    RateLimiterContract,
    attempt,
    claim,
    in_threads,
    refusal,
)


def tried(subject="account:alice", **limits):
    """One claim that nobody is held to."""
    return (Claim(subject, Limits(**limits), enforced=False),)


class TestShadowRateLimiter(RateLimiterContract):
    """What is enforced is enforced."""

    def make_limiter(self):
        self.clock = FakeClock()
        return ShadowRateLimiter(MemoryRateLimiter(lease=LEASE, clock=self.clock.ns))

    def advance(self, seconds):
        self.clock.advance(seconds)


@pytest.fixture
def inner(clock):
    return MemoryRateLimiter(lease=LEASE, clock=clock.ns)


@pytest.fixture
def limiter(inner):
    return ShadowRateLimiter(inner)


def test_what_would_be_refused_passes_and_is_logged_and_counted(limiter, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(5):
        limiter.settle(limiter.acquire("alice", tried(rpm=3), 10), 10)
    assert limiter.would_refuse == {"rpm": 2}
    assert (
        caplog.messages
        == [
            "not enforced: 'account:alice': Rate limit reached for requests per minute (limit 3). "
            "Try again in 20s."
        ]
        * 2
    )
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_a_line_of_the_log_stays_a_line(limiter, caplog):
    caplog.set_level(logging.INFO)
    limiter.acquire("a\nb", tried("account:a\nb", rpm=0), 1)
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize(
    ("limits", "name"),
    [({"rpm": 1}, "rpm"), ({"tpm": 10}, "tpm"), ({"concurrent": 1}, "concurrent")],
)
def test_each_limit_is_counted_by_its_name(limiter, limits, name):
    for _ in range(3):
        limiter.acquire("alice", tried(**limits), 10)
    assert limiter.would_refuse == {name: 2}


def test_it_is_evaluated_as_if_it_were_enforced(limiter, inner, clock):
    """A call that would have been refused takes nothing: a second one passes as it would have."""
    enforced = MemoryRateLimiter(lease=LEASE, clock=clock.ns)
    passed, would_pass = 0, 0
    for step in range(200):
        before = sum(limiter.would_refuse.values())
        grant = limiter.acquire("alice", tried(rpm=20, tpm=1_000, concurrent=2), 100)
        passed += sum(limiter.would_refuse.values()) == before
        allowed = attempt(enforced, claim(rpm=20, tpm=1_000, concurrent=2), 100)
        would_pass += allowed is not None
        if step % 3:
            limiter.settle(grant, 50)
            if allowed:
                enforced.settle(allowed, 50)
        clock.advance(1)
    assert passed == would_pass < 200
    assert inner.status("alice", claim(rpm=20, tpm=1_000)) == enforced.status(
        "alice", claim(rpm=20, tpm=1_000)
    )


def test_slots_that_are_only_looked_at_are_renewed_and_freed(limiter, clock):
    grant = limiter.acquire("alice", tried(concurrent=1), 1)
    for _ in range(3):
        clock.advance(LEASE / 2)
        limiter.renew(grant)
    limiter.acquire("alice", tried(concurrent=1), 1)
    assert limiter.would_refuse == {"concurrent": 1}
    limiter.cancel(grant)
    limiter.settle(grant, 1)
    limiter.acquire("alice", tried(concurrent=1), 1)
    assert limiter.would_refuse == {"concurrent": 1}


def test_a_keys_own_limits_hold_beside_an_account_that_is_tried_out(limiter):
    claims = (*tried(rpm=2), *claim("key:k1", rpm=5))
    for _ in range(5):
        limiter.acquire("alice", claims, 1)
    refused = refusal(limiter, claims)
    assert (refused.subject, refused.limit) == ("key:k1", "rpm")
    # A call that is refused is none that another limit would have refused.
    assert limiter.would_refuse == {"rpm": 3}


def test_callers_see_nothing_of_a_limit_that_is_tried_out(limiter):
    assert limiter.acquire("alice", tried(rpm=2, tpm=100), 10).status == LimitStatus()
    assert limiter.status("alice", tried(rpm=2, tpm=100)) == LimitStatus()
    both = limiter.acquire("alice", (*tried(rpm=2), *claim("key:k1", rpm=5)), 10)
    assert (both.status.limit_requests, both.status.remaining_requests) == (5, 4)


def test_a_call_passes_though_its_limits_cannot_be_looked_at(inner):
    class Down(MemoryRateLimiter):
        def acquire(self, account, claims, tokens):
            if claims:
                raise StoreUnavailable("down")
            return super().acquire(account, claims, tokens)

    limiter = ShadowRateLimiter(Down())
    limiter.settle(limiter.acquire("alice", tried(rpm=1), 1), 1)
    with pytest.raises(StoreUnavailable):
        limiter.acquire("alice", (*tried(rpm=1), *claim("key:k1", rpm=1)), 1)


def test_a_grant_of_somebody_elses_kind_comes_back_as_it_was_given(limiter, inner, monkeypatch):
    told = []

    class Own(Grant):
        pass

    acquire = inner.acquire
    monkeypatch.setattr(inner, "acquire", lambda *rest: Own(*acquire(*rest)))
    monkeypatch.setattr(inner, "settle", lambda grant, tokens: told.append(type(grant)))
    limiter.settle(limiter.acquire("alice", (*tried(rpm=2), *claim("key:k1", rpm=5)), 1), 1)
    assert told == [Own, Own]


def test_beside_a_limit_that_is_tried_out_the_stand_in_of_a_store_gets_its_own_back():
    class Down(MemoryRateLimiter):
        def acquire(self, account, claims, tokens):
            raise StoreUnavailable("down")

    limiter = ShadowRateLimiter(GuardedRateLimiter(Down(), "local"))
    claims = (*tried(rpm=100), *claim("key:k1", concurrent=1, tpm=100))
    for _ in range(3):
        limiter.settle(limiter.acquire("alice", claims, 60), 10)
    limiter.cancel(limiter.acquire("alice", claims, 60))
    assert attempt(limiter, claims, 60)


def test_whoever_is_broken_off_while_limits_are_tried_out_has_taken_nothing(limiter, monkeypatch):
    class BrokenOff(BaseException):
        pass

    def break_off(*rest):
        raise BrokenOff

    claims = (*tried(rpm=2), *claim("key:k1", concurrent=1))
    with monkeypatch.context() as patch:
        patch.setattr(limiter, "_observe", break_off)
        with pytest.raises(BrokenOff):
            limiter.acquire("alice", claims, 1)
    assert attempt(limiter, claims)


def test_no_count_is_lost_between_threads_and_none_is_taken_into_a_fork(limiter, monkeypatch):
    in_threads(lambda: limiter.acquire("alice", tried(rpm=0), 1), 2_000)
    assert limiter.would_refuse == {"rpm": 2_000}
    with limiter._tally()._lock:
        child = SimpleNamespace(getpid=lambda: -1)
        monkeypatch.setattr("oneai_middleware.per_process.os", child)
        limiter.acquire("alice", tried(rpm=0), 1)
        assert limiter.would_refuse == {"rpm": 1}


# --- in a whole gateway --------------------------------------------------------------------

BODY = {"model": "glm-4", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def call(make_gateway, send, headers):
    def call(gateway):
        reply = send(gateway, "POST", "/v1/chat/completions", BODY, headers)
        reply.read()
        return reply

    return call


def test_a_tier_that_is_not_enforced_refuses_nobody_and_says_what_it_would_have(
    make_gateway, call, caplog
):
    caplog.set_level(logging.INFO, "oneai_middleware.rate_limiters")
    gateway = make_gateway(tiers={"pro": {"rpm": 2, "enforce": False}})
    replies = [call(gateway) for _ in range(4)]
    assert [reply.status for reply in replies] == [200] * 4
    assert not [name for name in replies[-1].headers if name.startswith("x-ratelimit")]
    lines = [line for line in caplog.messages if line.startswith("not enforced: 'account:alice': ")]
    assert len(lines) == 2
    counts = {"would_refuse_rpm": 2, "would_refuse_tpm": 0, "would_refuse_concurrent": 0}
    assert gateway.limiter_counts == counts


def test_limits_of_an_accounts_own_are_enforced_whatever_its_tier(make_gateway, call):
    gateway = make_gateway(
        tiers={"pro": {"rpm": 2, "enforce": False}}, account={"limits": {"rpm": 3}}
    )
    assert [call(gateway).status for _ in range(4)] == [200, 200, 200, 429]


def test_a_tier_is_enforced_unless_it_says_otherwise(make_gateway, call):
    for row in ({"rpm": 2}, {"rpm": 2, "enforce": True}):
        gateway = make_gateway(tiers={"pro": row})
        assert [call(gateway).status for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("value", ["no", 0, None])
def test_enforce_is_yes_or_no(make_gateway, value):
    with pytest.raises(Exception, match=r"^tiers\['pro'\]: enforce is True or False"):
        make_gateway(tiers={"pro": {"enforce": value}})


def test_in_redis_an_account_that_is_tried_out_costs_one_round_trip_each_way(
    make_gateway, call, own_redis
):
    gateway = make_gateway(
        tiers={"pro": {"rpm": 1, "enforce": False}}, rate_limiter=own_redis.patient_url
    )
    call(gateway)
    own_redis.client.config_resetstat()
    assert call(gateway).status == 200  # it would have been refused, so there is nothing to end
    assert own_redis.calls("evalsha") == 1


def test_the_error_is_the_familys_own(limiter):
    with pytest.raises(RateLimitExceeded):
        limiter.acquire("alice", claim(rpm=0), 1)
