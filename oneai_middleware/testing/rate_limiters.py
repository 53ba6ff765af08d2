"""The contract of rate limiters."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ..accounts import Limits
from ..errors import (
    RateLimitExceeded,
)
from ..rate_limiters.base import Claim, Grant, LimitStatus, RateLimiter
from .contract import LEASE, Contract, in_threads


class RateLimiterContract(Contract):
    """What every rate limiter does, with leases of ``LEASE`` seconds."""

    def make_limiter(self) -> RateLimiter:
        """A fresh limiter whose lease is ``LEASE``."""
        raise NotImplementedError

    @pytest.fixture
    def limiter(self) -> RateLimiter:
        return self.make_limiter()

    def test_a_full_bucket_may_be_spent_at_once_and_no_more(self, limiter: RateLimiter) -> None:
        claims = claim(rpm=20)
        for _ in range(20):
            limiter.acquire("alice", claims, 10)
        refused = refusal(limiter, claims)
        assert (refused.limit, refused.code) == ("rpm", "rate_limit_exceeded")
        assert refused.subject == "account:alice"
        assert "20" in refused.message

    def test_a_refused_call_passes_after_exactly_the_wait_it_was_told(
        self, limiter: RateLimiter
    ) -> None:
        claims = claim(rpm=7)
        for _ in range(7):
            limiter.acquire("alice", claims, 1)
        wait = refusal(limiter, claims).retry_after
        assert wait == pytest.approx(60 / 7, rel=0.01)
        self.pass_time(wait - 0.01)
        assert refusal(limiter, claims).retry_after == pytest.approx(0.01, abs=0.005)
        self.pass_time(0.011)
        limiter.acquire("alice", claims, 1)

    def test_tokens_are_counted_beside_requests(self, limiter: RateLimiter) -> None:
        claims = claim(rpm=100, tpm=1000)
        limiter.acquire("alice", claims, 900)
        refused = refusal(limiter, claims, tokens=200)
        assert (refused.limit, refused.code) == ("tpm", "rate_limit_exceeded")
        assert refused.retry_after == pytest.approx(6, rel=0.01)
        limiter.acquire("alice", claims, 100)

    def test_a_call_larger_than_the_whole_bucket_is_refused_for_good(
        self, limiter: RateLimiter
    ) -> None:
        refused = refusal(limiter, claim(tpm=1000), tokens=1001)
        assert (refused.limit, refused.code) == ("tpm", "request_exceeds_limit")
        assert (refused.retry_after, refused.retryable) == (None, False)
        limiter.acquire("alice", claim(tpm=1000), 1000)

    def test_a_slot_is_free_again_when_its_call_has_ended(self, limiter: RateLimiter) -> None:
        claims = claim(concurrent=2)
        first, second = (limiter.acquire("alice", claims, 1) for _ in range(2))
        refused = refusal(limiter, claims)
        assert (refused.limit, refused.code) == ("concurrent", "concurrency_limit_exceeded")
        assert refused.retry_after == 1
        limiter.settle(first, 1)
        limiter.acquire("alice", claims, 1)
        limiter.cancel(second)
        limiter.acquire("alice", claims, 1)
        assert refusal(limiter, claims).limit == "concurrent"

    def test_without_limits_nothing_is_refused(self, limiter: RateLimiter) -> None:
        grants = [limiter.acquire("alice", claim(), 10**9) for _ in range(100)]
        assert grants[-1].status == LimitStatus()
        limiter.acquire("alice", (), 10**9)

    def test_grants_have_ids_of_their_own(self, limiter: RateLimiter) -> None:
        grants = [limiter.acquire("alice", claim(), 5) for _ in range(50)]
        assert len({grant.id for grant in grants}) == 50
        assert (grants[0].account, grants[0].tokens) == ("alice", 5)

    @pytest.mark.parametrize("tight", [{"rpm": 1}, {"tpm": 150}, {"concurrent": 1}])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_refusal_by_one_claim_consumes_nothing_of_any(
        self, limiter: RateLimiter, tight: dict[str, int], first: bool
    ) -> None:
        wide, narrow = claim(rpm=5, tpm=10_000, concurrent=3), claim("key:k1", **tight)
        claims = (*narrow, *wide) if first else (*wide, *narrow)
        limiter.acquire("alice", claims, 100)
        before = [limiter.status("alice", part) for part in (wide, narrow)]
        for _ in range(10):
            assert refusal(limiter, claims, tokens=100).subject == "key:k1"
        after = [limiter.status("alice", part) for part in (wide, narrow)]
        for now, then in zip(after, before, strict=True):
            assert now.remaining_requests >= then.remaining_requests
            assert now.remaining_tokens >= then.remaining_tokens
        limiter.acquire("alice", wide, 100)
        limiter.acquire("alice", wide, 100)

    def test_of_several_refusals_the_longest_wait_is_told(self, limiter: RateLimiter) -> None:
        claims = (*claim(rpm=60, concurrent=1), *claim("key:k1", rpm=1, tpm=60))
        limiter.acquire("alice", claims, 30)
        refused = refusal(limiter, claims, tokens=60)
        assert (refused.subject, refused.limit) == ("key:k1", "rpm")
        assert refused.retry_after == pytest.approx(60, rel=0.01)

    def test_no_subject_is_claimed_twice_by_one_call(self, limiter: RateLimiter) -> None:
        claims = claim(rpm=5)
        with pytest.raises(ValueError, match="two claims are of one subject"):
            limiter.acquire("alice", (*claims, *claims), 1)
        assert limiter.status("alice", claims).remaining_requests == 5

    def test_subjects_do_not_share_a_bucket(self, limiter: RateLimiter) -> None:
        limiter.acquire("alice", claim(rpm=1), 1)
        limiter.acquire("bob", claim("account:bob", rpm=1), 1)

    def test_settling_corrects_the_tokens_downwards(self, limiter: RateLimiter) -> None:
        claims = claim(rpm=10, tpm=1000)
        limiter.settle(limiter.acquire("alice", claims, 800), 100)
        status = limiter.status("alice", claims)
        assert status.remaining_tokens == pytest.approx(900, abs=2)
        assert status.remaining_requests == 9

    def test_settling_may_leave_a_debt_that_is_waited_off(self, limiter: RateLimiter) -> None:
        claims = claim(tpm=600)
        limiter.settle(limiter.acquire("alice", claims, 100), 1200)
        assert limiter.status("alice", claims).remaining_tokens == 0
        assert refusal(limiter, claims, tokens=1).retry_after == pytest.approx(60.1, abs=0.2)
        self.pass_time(61)
        limiter.acquire("alice", claims, 1)

    def test_cancelling_gives_everything_back(self, limiter: RateLimiter) -> None:
        claims = claim(rpm=5, tpm=100, concurrent=1)
        for _ in range(20):
            limiter.cancel(limiter.acquire("alice", claims, 100))
        assert remains(limiter.status("alice", claims)) == (5, 100)

    @pytest.mark.parametrize("first", ["settle", "cancel"])
    @pytest.mark.parametrize("second", ["settle", "cancel"])
    def test_a_grant_is_closed_once(self, limiter: RateLimiter, first: str, second: str) -> None:
        claims = claim(rpm=10, tpm=1000, concurrent=2)
        grant, _ = (limiter.acquire("alice", claims, 400) for _ in range(2))
        close(limiter, grant, first)
        before = limiter.status("alice", claims)
        close(limiter, grant, second)
        after = limiter.status("alice", claims)
        assert after.remaining_requests == before.remaining_requests
        assert after.remaining_tokens == pytest.approx(before.remaining_tokens, abs=2)
        limiter.acquire("alice", claims, 1)
        assert refusal(limiter, claims).limit == "concurrent"

    def test_giving_back_never_fills_a_bucket_above_its_brim(self, limiter: RateLimiter) -> None:
        claims = claim(rpm=10, tpm=600)
        grant = limiter.acquire("alice", claims, 600)
        self.pass_time(20)
        limiter.cancel(grant)
        assert remains(limiter.status("alice", claims)) == (10, 600)
        self.pass_time(3600)
        assert remains(limiter.status("alice", claims)) == (10, 600)

    def test_a_slot_that_is_not_renewed_comes_back_after_its_lease(
        self, limiter: RateLimiter
    ) -> None:
        claims = claim(tpm=10, concurrent=1)
        limiter.acquire("alice", claims, 10)
        self.pass_time(LEASE - 0.5)
        assert refusal(limiter, claims, tokens=1).limit == "concurrent"
        self.pass_time(1)
        limiter.acquire("alice", claims, 5)
        assert limiter.status("alice", claims).remaining_tokens == 0  # the tokens stay taken

    def test_a_renewed_slot_is_kept(self, limiter: RateLimiter) -> None:
        claims = claim(concurrent=1)
        grant = limiter.acquire("alice", claims, 1)
        for _ in range(10):
            self.pass_time(LEASE / 3)
            limiter.renew(grant)
        assert refusal(limiter, claims).limit == "concurrent"
        limiter.settle(grant, 1)
        limiter.acquire("alice", claims, 1)

    def test_a_grant_whose_lease_is_over_frees_no_slot_of_another(
        self, limiter: RateLimiter
    ) -> None:
        claims = claim(concurrent=1)
        lost = limiter.acquire("alice", claims, 1)
        self.pass_time(LEASE + 1)
        limiter.acquire("alice", claims, 1)
        limiter.settle(lost, 1)
        limiter.cancel(lost)
        assert refusal(limiter, claims).limit == "concurrent"

    def test_renewing_a_closed_grant_takes_no_slot(self, limiter: RateLimiter) -> None:
        claims = claim(concurrent=1)
        grant = limiter.acquire("alice", claims, 1)
        limiter.settle(grant, 1)
        limiter.renew(grant)
        limiter.acquire("alice", claims, 1)

    def test_a_lowered_limit_holds_at_once(self, limiter: RateLimiter) -> None:
        for _ in range(50):
            limiter.acquire("alice", claim(rpm=100), 1)
        limiter.acquire("alice", claim(rpm=2), 1)
        assert refusal(limiter, claim(rpm=2)).limit == "rpm"

    def test_limits_that_change_to_and_fro_give_nobody_more(self, limiter: RateLimiter) -> None:
        """As while one configuration takes the place of another, worker by worker."""
        low, high = (claim(rpm=rpm, tpm=100 * rpm) for rpm in (20, 200))
        granted = 0
        for _ in range(30):
            while granted < 1_000 and attempt(limiter, high, 100):
                granted += 1
            while attempt(limiter, low, 100):
                granted += 1
        assert granted <= 200 + 10  # and what comes in meanwhile

    def test_the_status_takes_nothing(self, limiter: RateLimiter) -> None:
        claims = claim(rpm=3, tpm=100, concurrent=1)
        for _ in range(10):
            status = limiter.status("alice", claims)
        assert status == LimitStatus(3, 3, 0.0, 100, 100, 0.0)
        limiter.acquire("alice", claims, 100)

    def test_grant_and_refusal_carry_the_figures_of_the_tightest_claim(
        self, limiter: RateLimiter
    ) -> None:
        claims = (*claim(rpm=60, tpm=600), *claim("key:k1", rpm=2, tpm=6000))
        status = limiter.acquire("alice", claims, 60).status
        assert (status.limit_requests, status.remaining_requests) == (2, 1)
        assert (status.limit_tokens, status.remaining_tokens) == (600, 540)
        assert status.reset_requests == pytest.approx(30, rel=0.01)
        assert status.reset_tokens == pytest.approx(6, rel=0.01)
        figures = refusal(limiter, claims, tokens=600).figures
        assert (figures.limit_tokens, figures.limit_requests) == (600, 2)
        assert figures.remaining_tokens == pytest.approx(540, abs=2)

    def test_threads_together_get_exactly_what_the_bucket_holds(self, limiter: RateLimiter) -> None:
        claims = (*claim(rpm=25), *claim("key:k1", rpm=30))
        granted = in_threads(lambda: attempt(limiter, claims), 80)
        assert len([grant for grant in granted if grant]) == 25

    def test_threads_together_never_exceed_the_slots(self, limiter: RateLimiter) -> None:
        claims = claim(concurrent=3)
        guard, running, most = threading.Lock(), 0, 0

        def call() -> None:
            nonlocal running, most
            grant = attempt(limiter, claims)
            if grant is None:
                return
            with guard:
                running += 1
                most = max(most, running)
            with guard:
                running -= 1
            limiter.settle(grant, 1)

        in_threads(call, 400)
        assert 1 <= most <= 3
        assert len([limiter.acquire("alice", claims, 1) for _ in range(3)]) == 3


def claim(subject: str = "account:alice", **limits: int) -> tuple[Claim, ...]:
    """One claim, ready to be handed over."""
    return (Claim(subject, Limits(**limits)),)


def refusal(limiter: RateLimiter, claims: tuple[Claim, ...], tokens: int = 1) -> Any:
    """The error with which the call is refused; that it is refused is asserted."""
    with pytest.raises(RateLimitExceeded) as refused:
        limiter.acquire("alice", claims, tokens)
    return refused.value


def attempt(limiter: RateLimiter, claims: tuple[Claim, ...], tokens: int = 1) -> Grant | None:
    """A grant, or ``None`` where it is refused."""
    try:
        return limiter.acquire("alice", claims, tokens)
    except RateLimitExceeded:
        return None


def close(limiter: RateLimiter, grant: Grant, how: str) -> None:
    """Settle the grant at half its tokens, or cancel it."""
    if how == "settle":
        limiter.settle(grant, grant.tokens // 2)
    else:
        limiter.cancel(grant)


def remains(status: LimitStatus) -> tuple[int, int]:
    """Requests and tokens left."""
    return status.remaining_requests, status.remaining_tokens
