"""What is done while the store of the limits fails, and who waits for it."""

import logging
import re
import threading
from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded, StoreUnavailable
from oneai_middleware.rate_limiters.base import Claim, LimitStatus
from oneai_middleware.rate_limiters.guarded import (
    FAILURES,
    FIRST_PAUSE,
    PAUSE,
    PROBE,
    QUIET,
    GuardedRateLimiter,
)
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.testing import LEASE, FakeClock, RateLimiterContract, claim, in_threads

POLICIES = ("closed", "open", "local")
ONE = claim(rpm=100, tpm=10_000, concurrent=2)


class Store(MemoryRateLimiter):
    """A limiter that fails when told to, and counts how often it is asked."""

    def __init__(self, clock):
        super().__init__(lease=LEASE, clock=clock.ns)
        self.error = None
        self.asked = 0

    def _clock_in(self):
        self.asked += 1
        if self.error is not None:
            raise self.error

    def acquire(self, *rest):
        self._clock_in()
        return super().acquire(*rest)

    def renew(self, *rest):
        self._clock_in()
        super().renew(*rest)

    def settle(self, *rest):
        self._clock_in()
        super().settle(*rest)

    def cancel(self, *rest):
        self._clock_in()
        super().cancel(*rest)

    def status(self, *rest):
        self._clock_in()
        return super().status(*rest)


DOWN = StoreUnavailable("the store is down", detail="Redis: TimeoutError")


@pytest.fixture
def store(clock):
    return Store(clock)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def log(caplog):
    """The lines that were written, by level."""
    caplog.set_level(logging.INFO)
    return lambda: [record.levelname for record in caplog.records]


@pytest.fixture(params=POLICIES)
def policy(request):
    return request.param


@pytest.fixture
def guarded(store, clock, policy):
    return GuardedRateLimiter(store, policy, lease=LEASE, clock=clock)


def under(policy):
    return pytest.mark.parametrize("policy", [policy], indirect=True)


def ask(limiter, claims=ONE):
    """What becomes of a call: let in, refused for a limit, or unable to be judged."""
    try:
        grant = limiter.acquire("alice", claims, 1)
    except RateLimitExceeded as error:
        return error.limit
    except StoreUnavailable:
        return "unavailable"
    limiter.settle(grant, 1)
    return "granted"


def bring_down(limiter, store):
    store.error = DOWN
    for _ in range(FAILURES):
        ask(limiter, claim("account:first", rpm=100))


class TestGuardedRateLimiter(RateLimiterContract):
    """While the store answers, it is as if there were no guard."""

    def make_limiter(self):
        self.clock = FakeClock()
        return GuardedRateLimiter(
            MemoryRateLimiter(lease=LEASE, clock=self.clock.ns), "closed", clock=self.clock
        )

    def advance(self, seconds):
        self.clock.advance(seconds)

    test_grants_have_ids_of_their_own = None  # those that count nothing need none


# --- what callers get -------------------------------------------------------------------


@under("closed")
def test_closed_refuses_calls_that_have_limits(guarded, store):
    bring_down(guarded, store)
    with pytest.raises(StoreUnavailable) as refused:
        guarded.acquire("alice", ONE, 1)
    assert refused.value.headers() == [("Retry-After", "1")]
    assert "limits" in refused.value.message
    # The gateway writes a line for every detail: one for each refused call would be a flood.
    assert refused.value.detail is None


@under("open")
def test_open_lets_everybody_pass_and_counts_nothing(guarded, store):
    bring_down(guarded, store)
    grants = [guarded.acquire("alice", claim(rpm=1, tpm=1, concurrent=1), 10**6) for _ in range(50)]
    for grant in grants:
        guarded.renew(grant)
        guarded.settle(grant, 5)
        guarded.cancel(grant)
    assert {grant.status for grant in grants} == {LimitStatus()}
    assert guarded.status("alice", ONE) == LimitStatus()


@under("local")
def test_local_counts_in_this_process_meanwhile(guarded, store):
    for _ in range(3):
        assert ask(guarded, claim(rpm=5)) == "granted"
    bring_down(guarded, store)
    answers = [ask(guarded, claim(rpm=5)) for _ in range(8)]
    assert answers == ["granted"] * 5 + ["rpm"] * 3
    assert guarded.status("alice", claim(rpm=5)).limit_requests == 5


@under("local")
def test_a_slot_that_was_given_meanwhile_is_kept_and_freed_where_it_was_given(guarded, store):
    claims = claim(concurrent=1)
    bring_down(guarded, store)
    grant = guarded.acquire("alice", claims, 1)
    guarded.renew(grant)
    assert ask(guarded, claims) == "concurrent"
    asked = store.asked
    guarded.settle(grant, 1)
    assert store.asked == asked
    assert ask(guarded, claims) == "granted"


@under("local")
def test_a_grant_given_meanwhile_is_not_taken_to_the_store_that_is_back(guarded, store, clock):
    bring_down(guarded, store)
    grant = guarded.acquire("alice", claim(concurrent=1), 1)
    store.error = None
    clock.advance(PAUSE)
    assert ask(guarded) == "granted"
    asked = store.asked
    for tell in (guarded.renew, guarded.cancel, lambda grant: guarded.settle(grant, 1)):
        tell(grant)
    assert store.asked == asked


def test_a_call_that_has_no_limits_is_never_refused_and_asks_nobody(guarded, store):
    bring_down(guarded, store)
    asked = store.asked
    assert ask(guarded, claim()) == ask(guarded, ()) == "granted"
    assert guarded.status("alice", claim()) == LimitStatus()
    assert store.asked == asked


def test_a_call_under_way_ends_in_peace_while_the_store_is_down(guarded, store, clock):
    grant = guarded.acquire("alice", claim(concurrent=1), 1)
    store.error = DOWN
    for _ in range(3):
        clock.advance(PAUSE)
        guarded.renew(grant)
        guarded.settle(grant, 1)
        guarded.cancel(grant)
    store.error = None
    clock.advance(PAUSE)
    assert ask(guarded, claim(concurrent=1)) == "concurrent"
    clock.advance(LEASE)  # what the store did not hear of ends with the lease
    assert ask(guarded, claim(concurrent=1)) == "granted"


def test_an_error_of_any_kind_is_a_store_that_fails(guarded, store, policy):
    store.error = ConnectionError("redis://:password@host")
    expected = {"closed": "unavailable", "open": "granted", "local": "granted"}[policy]
    assert [ask(guarded) for _ in range(5)] == [expected] * 5


# --- who waits ----------------------------------------------------------------------------


def test_once_the_store_is_down_one_call_a_second_waits_for_it(guarded, store, clock):
    bring_down(guarded, store)
    assert store.asked == FAILURES
    for probe, pause in enumerate([0.125, 0.25, 0.5, PAUSE, PAUSE, PAUSE], 1):
        clock.advance(0.99 * pause)
        for _ in range(100):
            ask(guarded)
        assert store.asked == FAILURES + probe - 1
        clock.advance(0.01 * pause)
        ask(guarded)
        assert store.asked == FAILURES + probe


def test_a_store_that_was_held_up_for_a_moment_is_asked_again_soon(guarded, store, clock):
    for _ in range(3):
        bring_down(guarded, store)
        store.error = None
        clock.advance(FIRST_PAUSE)
        asked = store.asked
        assert [ask(guarded) for _ in range(5)] == ["granted"] * 5
        assert store.asked == asked + 10


def test_while_a_probe_is_under_way_no_other_joins_it(guarded, store, clock):
    bring_down(guarded, store)
    hangs = store.acquire

    def hang(*rest):
        store.acquire = hangs
        asked = store.asked
        for _ in range(int(0.9 * PROBE / PAUSE)):
            clock.advance(PAUSE)
            ask(guarded)
        assert store.asked == asked
        clock.advance(0.1 * PROBE)  # there may be nobody any more
        ask(guarded)
        assert store.asked == asked + 1
        return hangs(*rest)

    store.acquire = hang
    clock.advance(PAUSE)
    ask(guarded)


def test_a_probe_that_is_broken_off_makes_room_for_another(guarded, store, clock):
    class BrokenOff(BaseException):
        pass

    bring_down(guarded, store)
    store.error = BrokenOff()
    clock.advance(PAUSE)
    with pytest.raises(BrokenOff):
        ask(guarded)
    store.error = None
    assert ask(guarded) == "granted"
    assert guarded.failures == FAILURES


def test_of_many_threads_one_looks_after_a_store_that_is_down(guarded, store, clock):
    bring_down(guarded, store)
    clock.advance(PAUSE)
    in_threads(lambda: ask(guarded), 200)
    assert store.asked == FAILURES + 1


@pytest.fixture
def fail_together(guarded, store):
    """Have ten calls ask at the same moment, and all fail."""
    hanging, waiting = threading.Semaphore(0), threading.Semaphore(0)
    fail_at_once = store.acquire

    def hang(*rest):
        waiting.release()
        assert hanging.acquire(timeout=20)
        raise DOWN

    def fail_together():
        store.acquire = hang
        threads = [threading.Thread(target=ask, args=(guarded,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert waiting.acquire(timeout=20)
        hanging.release(len(threads))
        for thread in threads:
            thread.join(20)
        store.acquire = fail_at_once

    return fail_together


def test_a_store_that_hangs_is_waited_for_by_those_who_had_begun(guarded, store, fail_together):
    for _ in range(FAILURES):
        fail_together()
    # Ten had begun before anything was known; of a hundred thereafter nobody waits.
    store.error, asked = DOWN, store.asked
    for _ in range(100):
        ask(guarded)
    assert store.asked == asked
    assert guarded.failures == FAILURES * 10


def test_calls_that_fail_at_the_same_moment_are_one_failure(guarded, store, fail_together, log):
    for _ in range(FAILURES - 1):
        fail_together()
    assert log() == ["WARNING"]
    assert ask(guarded) == "granted"
    assert store.asked == 2
    assert guarded.failures == (FAILURES - 1) * 10


def test_an_answer_to_what_was_asked_before_does_not_make_a_store_well(guarded, store, clock, log):
    asked_before = store.acquire

    def late(*rest):
        store.acquire = asked_before
        bring_down(guarded, store)  # meanwhile, by others
        store.error = None
        return asked_before(*rest)

    store.acquire = late
    assert ask(guarded) == "granted"
    asked = store.asked
    ask(guarded)
    assert store.asked == asked
    assert log() == ["WARNING", "ERROR"]
    clock.advance(PAUSE)
    assert ask(guarded) == "granted"
    assert log() == ["WARNING", "ERROR", "WARNING"]


def test_a_failure_now_and_then_opens_nothing(guarded, store):
    for _ in range(10):
        for error in [DOWN] * (FAILURES - 1) + [None]:
            store.error = error
            ask(guarded)
    assert store.asked >= 10 * FAILURES
    store.error = None
    assert ask(guarded) == "granted"


def test_a_refusal_is_an_answer(guarded, store):
    tight = claim(rpm=1)
    ask(guarded, tight)
    for _ in range(5):
        store.error = DOWN
        for _ in range(FAILURES - 1):
            ask(guarded)
        store.error = None
        assert ask(guarded, tight) == "rpm"


# --- what is written down ---------------------------------------------------------------


def test_each_change_of_state_is_a_line_and_the_rest_is_counted(
    guarded, store, clock, log, caplog, policy
):
    meanwhile = {
        "closed": "calls with limits are refused",
        "open": "calls pass without limits",
        "local": "every process counts for itself",
    }[policy]
    ask(guarded)
    assert log() == []
    store.error = DOWN
    for _ in range(50):
        ask(guarded)
        clock.advance(PAUSE / 10)
    assert log() == ["WARNING", "ERROR"]
    assert all("Redis: TimeoutError" in line and meanwhile in line for line in caplog.messages)
    assert guarded.stood_in == 50
    assert guarded.failures == store.asked - 2  # of the first call and its end
    store.error = None
    clock.advance(PAUSE)
    for _ in range(10):
        assert ask(guarded) == "granted"
    assert log() == ["WARNING", "ERROR", "WARNING"]
    said = r"the rate limiter's store answers again after 5\.8 s; 50 calls so far were decided .*"
    assert re.fullmatch(said, caplog.messages[-1])


def test_single_failures_are_a_line_a_minute(guarded, store, log, clock):
    for minute in range(1, 4):
        for _ in range(10):
            store.error = DOWN
            ask(guarded)
            store.error = None
            assert ask(guarded) == "granted"
        assert log() == ["WARNING"] * minute
        assert guarded.stood_in == 10 * minute
        clock.advance(QUIET)


def test_whoever_runs_the_service_can_read_what_was_counted(make_gateway, send, headers, store):
    store.error, store.one_process = DOWN, False
    gateway = make_gateway(rate_limiter=store, tiers={"pro": {"rpm": 5}})
    body = {"model": "glm-4", "messages": [{"role": "user", "content": "hi"}]}
    for _ in range(FAILURES + 2):
        assert send(gateway, "POST", "/v1/chat/completions", body, headers).status == 503
    counts = {"failures": FAILURES, "stood_in": FAILURES + 2}
    refused = {"would_refuse_rpm": 0, "would_refuse_tpm": 0, "would_refuse_concurrent": 0}
    assert gateway.limiter_counts == counts | refused


def test_no_count_is_lost_between_threads(guarded, store):
    store.error = DOWN
    in_threads(lambda: ask(guarded), 2_000)
    assert guarded.stood_in == 2_000


def test_a_forked_child_finds_out_for_itself_and_waits_for_no_lock(
    guarded, store, log, monkeypatch
):
    bring_down(guarded, store)
    with guarded._breaker()._lock:
        child = SimpleNamespace(getpid=lambda: -1)
        monkeypatch.setattr("oneai_middleware.per_process.os", child)
        assert (guarded.failures, guarded.stood_in) == (0, 0)
        bring_down(guarded, store)
    assert log() == ["WARNING", "ERROR"] * 2


def test_claims_of_which_one_has_a_limit_are_asked_for_without_the_others(guarded, store):
    claims = [Claim("account:alice", Limits()), Claim("key:k1", Limits(rpm=5))]
    grant = guarded.acquire("alice", claims, 1)
    assert [one.subject for one in grant.claims] == ["key:k1"]
