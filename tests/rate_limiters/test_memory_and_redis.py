"""Memory and Redis give the same decisions on the same history, to the token."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded
from oneai_middleware.rate_limiters.base import Claim, Grant, RateLimiter
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.rate_limiters.redis import RedisRateLimiter

LEASE = 30
START = 1_700_000_000 * 10**6
BLINK = 0.9
"""Seconds in which Redis forgets nothing, however the test's own clock stands."""

# --- histories ----------------------------------------------------------------------

LIMITS = [
    Limits(20, 200_000, 2),
    Limits(5),
    Limits(None, 1_000, 1),
    Limits(None, 700),
    Limits(None, None, 3),
    Limits(100, 3_000, 4),
    Limits(0, None, None),
    Limits(7, 123_457, None),
    Limits(149_999_993, 149_999_989),
    Limits(),
]
SUBJECTS = ["account:alice", "key:one", "key:two"]

claims = st.lists(
    st.builds(Claim, st.sampled_from(SUBJECTS), st.sampled_from(LIMITS)),
    min_size=1,
    max_size=3,
    unique_by=lambda claim: claim.subject,
)
acts = st.one_of(
    st.tuples(st.just("acquire"), claims, st.integers(0, 1_500)),
    st.tuples(st.just("acquire"), claims, st.integers(0, 1_500)),
    st.tuples(st.just("status"), claims),
    st.tuples(st.just("renew"), st.integers(0, 10)),
    st.tuples(st.just("settle"), st.integers(0, 10), st.integers(0, 3_000)),
    st.tuples(st.just("cancel"), st.integers(0, 10)),
)
microseconds = st.one_of(
    st.sampled_from([0, 1, 3_000_000, LEASE * 10**6 - 1, LEASE * 10**6]),
    st.integers(0, 70_000_000),
)
histories = st.lists(st.tuples(microseconds, acts), min_size=1, max_size=40)


class Line:
    """One limiter and what it has granted. What it says is given as plain values."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._grants: list[Grant] = []

    def act(self, kind: str, *rest: Any) -> Any:
        if kind == "acquire":
            return self._acquire(*rest)
        if kind == "status":
            return self._limiter.status("alice", *rest)
        if self._grants:
            which, *how = rest
            getattr(self._limiter, kind)(self._grants[-1 - which % len(self._grants)], *how)
        return None

    def _acquire(self, claims: list[Claim], tokens: int) -> Any:
        try:
            grant = self._limiter.acquire("alice", claims, tokens)
        except RateLimitExceeded as refused:
            figures = refused.figures
            return refused.subject, refused.limit, refused.code, refused.retry_after, figures
        self._grants.append(grant)
        return "granted", grant.status


@pytest.fixture
def prefixes(redis_prefix: str) -> Any:
    return (f"{redis_prefix}:{number}" for number in itertools.count())


# --- the tests ------------------------------------------------------------------------


@settings(max_examples=150)
@given(history=histories)
def test_on_one_clock_they_decide_alike_to_the_unit(
    redis_url: str, prefixes: Any, history: Any
) -> None:
    now = START
    redis = RedisRateLimiter(redis_url, lease=LEASE, prefix=next(prefixes), clock=lambda: now)
    memory = MemoryRateLimiter(lease=LEASE, clock=lambda: now * 1_000)
    lines = [Line(redis), Line(memory)]
    began = time.monotonic()
    for pause, act in history:
        now += pause
        theirs, ours = (line.act(*act) for line in lines)
        assume(time.monotonic() < began + BLINK)
        assert theirs == ours


# What passes in the time that a history takes must decide nothing: tokens are asked for in
# hundreds, of which one comes in after ten seconds.
COARSE = [Limits(3, 600, 2), Limits(2), Limits(None, 400, 1), Limits(None, None, 3), Limits()]
coarse_claims = st.lists(
    st.builds(Claim, st.sampled_from(SUBJECTS), st.sampled_from(COARSE)),
    min_size=1,
    max_size=3,
    unique_by=lambda claim: claim.subject,
)
coarse_acts = st.one_of(
    st.tuples(st.just("acquire"), coarse_claims, st.integers(0, 7).map(lambda n: n * 100)),
    st.tuples(st.just("acquire"), coarse_claims, st.integers(0, 7).map(lambda n: n * 100)),
    st.tuples(st.just("renew"), st.integers(0, 10)),
    st.tuples(st.just("settle"), st.integers(0, 10), st.integers(0, 7).map(lambda n: n * 100)),
    st.tuples(st.just("cancel"), st.integers(0, 10)),
)


@settings(max_examples=50)
@given(history=st.lists(coarse_acts, min_size=1, max_size=30))
def test_each_on_its_own_clock_they_decide_alike(
    redis_url: str, prefixes: Any, history: Any
) -> None:
    lines = [
        Line(RedisRateLimiter(redis_url, lease=LEASE, prefix=next(prefixes))),
        Line(MemoryRateLimiter(lease=LEASE)),
    ]
    began = time.monotonic()
    for act in history:
        theirs, ours = (_roughly(line.act(*act)) for line in lines)
        assume(time.monotonic() < began + 5)
        assert theirs == ours


def _roughly(answer: Any) -> Any:
    """What was decided, and by which limit; the wait to half a minute or so."""
    if answer is None or answer[0] == "granted":
        return answer and (answer[0], answer[1][0], answer[1][3])
    subject, limit, code, wait, figures = answer
    return subject, limit, code, wait is not None, figures.limit_requests, figures.limit_tokens
