"""Limits in Redis: the contract on both clocks, what is kept, what is said, what goes wrong."""

import contextlib
import functools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.crc import key_slot

import oneai_middleware
from oneai_middleware.errors import ConfigurationError, RateLimitExceeded, StoreUnavailable
from oneai_middleware.rate_limiters.redis import AT_ONCE, MOST, RedisRateLimiter
from oneai_middleware.testing import (
    LEASE,
    RateLimiterContract,
    attempt,
    claim,
    in_threads,
    refusal,
)
from oneai_middleware.testing.contract import NAMES

HOUR = 3600


class Clock:
    """Time in microseconds that moves when told to."""

    def __init__(self):
        self.now = 1_700_000_000 * 10**6

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += round(seconds * 10**6)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limiter(redis_url, redis_prefix, clock):
    return RedisRateLimiter(redis_url, lease=LEASE, prefix=redis_prefix, clock=clock)


@pytest.fixture
def kept(redis_url, redis_prefix):
    """Looks at the keys that there are: name to milliseconds they have left."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield lambda: {
            key: client.pttl(key) for key in client.scan_iter(f"{redis_prefix}*", count=10_000)
        }


# --- the contract ------------------------------------------------------------------


class TestOnAFakeClock(RateLimiterContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url, redis_prefix):
        self.place = {"url": redis_url, "prefix": redis_prefix}

    def make_limiter(self):
        self.clock = Clock()
        return RedisRateLimiter(**self.place, lease=LEASE, clock=self.clock)

    def advance(self, seconds):
        self.clock.advance(seconds)


HURRIED_FROM = 0.1
"""Seconds that a test may take and still not be hurried: in them too little comes in to
matter."""


def unhurried(test):
    """The test, once more from the start if it has failed and the machine was busy for longer
    than it allows; what fails in no time is wrong."""

    @functools.wraps(test)
    def repeated(self, limiter, **more):
        for _ in range(4):
            began = time.monotonic()
            try:
                return test(self, limiter, **more)
            except (AssertionError, pytest.fail.Exception):
                if time.monotonic() < began + HURRIED_FROM:
                    raise
                limiter._prefix += "_"
        return test(self, limiter, **more)

    return repeated


TIMELESS = "test_threads_together_never_exceed_the_slots"


class TestOnTheServersClock(RateLimiterContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url, redis_prefix):
        self.place = {"url": redis_url, "prefix": redis_prefix}

    def make_limiter(self):
        return RedisRateLimiter(**self.place, lease=LEASE)

    for name, test in vars(RateLimiterContract).items():
        if name.startswith("test_") and name != TIMELESS:
            locals()[name] = unhurried(test)
    del name, test


# --- what is kept -------------------------------------------------------------------


def test_accounts_of_any_name_share_nothing_and_each_keeps_to_one_hash_slot(limiter, kept):
    names = [*NAMES, "{", "}", "{}", "{a}", "a}{a", "{alice}", "@", "a:b", "\ud800"]
    for name in names:
        claims = (*claim(f"account:{name}", rpm=1), *claim(f"key:{name}", rpm=1))
        limiter.settle(limiter.acquire(name, claims, 1), 1)
        with pytest.raises(RateLimitExceeded, match="requests per minute"):
            limiter.acquire(name, claims, 1)
    places = {}
    for key in kept():
        account = re.fullmatch(r"\w+:\{(@[^{}]+)\}:\w+:(account|key):[^{}]*", key)
        places.setdefault(account[1], []).append(key_slot(key.encode()))
    assert len(places) == len(names)
    assert {len(slots) for slots in places.values()} == {2}
    assert all(len(set(slots)) == 1 for slots in places.values())


def test_an_account_without_a_name_keeps_to_one_hash_slot_too(limiter):
    keys = limiter._keys(limiter.acquire("", claim("account:", rpm=1), 1))
    assert len({key_slot(key.encode()) for key in keys}) == 1


def test_keys_expire_once_nothing_is_left_to_remember(limiter, kept, eventually):
    quick = claim(rpm=60_000, tpm=6_000_000, concurrent=1)
    limiter.settle(limiter.acquire("alice", quick, 100), 100)
    [left] = kept().values()
    assert 0 < left <= 1_000 + 2  # the bucket is full after a millisecond
    eventually(lambda: not kept())


@pytest.mark.parametrize(
    ("limits", "used", "seconds"),
    [
        ({"rpm": 1}, 0, 60),
        ({"rpm": 20, "tpm": 600}, 0, 3),
        ({"tpm": 600}, 300, 30),
        ({"tpm": 600}, 1_200, 120),
        ({"concurrent": 1}, 0, 0),
    ],
)
def test_what_is_kept_is_kept_for_as_long_as_it_differs_from_what_is_new(
    limiter, kept, limits, used, seconds
):
    limiter.settle(limiter.acquire("alice", claim(**limits), 100), used)
    [left] = kept().values()
    assert seconds * 1_000 < left <= seconds * 1_000 + 1_000


def test_a_call_under_way_is_remembered_for_longer_than_its_lease(limiter, kept):
    grant = limiter.acquire("alice", claim(rpm=6_000, concurrent=1), 1)
    for _ in range(2):
        assert len(kept()) == 2
        assert all(LEASE * 1_000 < left <= LEASE * 1_000 + 1_000 for left in kept().values())
        limiter.renew(grant)


def test_workers_whose_leases_differ_keep_to_one_law(redis_url, redis_prefix, clock, kept):
    long, short = (
        RedisRateLimiter(redis_url, lease=lease, prefix=redis_prefix, clock=clock)
        for lease in (30, 1)
    )
    claims = claim(concurrent=2)
    held = long.acquire("alice", claims, 1)
    short.settle(short.acquire("alice", claims, 1), 1)
    assert all(30_000 < left <= 31_000 for left in kept().values())
    clock.advance(-HOUR)
    short.settle(short.acquire("alice", claims, 1), 1)  # it notices, and shortens nobody's
    clock.advance(29)
    long.renew(held)
    assert len([grant for _ in range(3) if (grant := attempt(long, claims))]) == 1


@pytest.mark.parametrize("used", [10**12, 10**15, 10**30])
def test_a_call_that_used_more_than_can_be_counted_is_settled_all_the_same(limiter, kept, used):
    claims = claim(tpm=1, concurrent=1)
    limiter.settle(limiter.acquire("alice", claims, 1), used)
    refused = refusal(limiter, claims)
    assert refused.limit == "tpm"
    assert refused.retry_after == pytest.approx(60 * MOST, rel=0.01)
    limiter.status("alice", claim(tpm=MOST))


def test_looking_and_being_refused_writes_nothing(own_redis, clock):
    limiter = RedisRateLimiter(own_redis.patient_url, clock=clock)
    changes = lambda: own_redis.client.info("persistence")["rdb_changes_since_last_save"]  # noqa: E731
    claims = (*claim(rpm=5, tpm=1_000), *claim("key:k1", concurrent=1))
    limiter.status("alice", claims)
    refusal(limiter, claims, tokens=1_001)
    assert changes() == 0
    limiter.acquire("alice", claims, 1)
    before = changes()
    limiter.status("alice", claims)
    for tokens in (1, 1_000, 1_001):
        clock.advance(0.1)
        refusal(limiter, claims, tokens=tokens)
    assert changes() == before


def test_a_limit_too_high_to_be_counted_exactly_counts_as_the_highest_that_is(limiter):
    claims = claim(tpm=10**11)
    assert limiter.status("alice", claims).limit_tokens == MOST
    limiter.settle(limiter.acquire("alice", claims, MOST), MOST)
    limiter._clock.advance(0.000_001)
    refused = refusal(limiter, claims, tokens=3)
    assert refused.retry_after == pytest.approx(0.2e-6)
    limiter._clock.advance(0.000_001)
    limiter.settle(limiter.acquire("alice", claims, 5), 5)
    assert limiter.status("alice", claims).remaining_tokens == 0


# --- the clock ------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_a_servers_clock_that_is_put_harms_nobody(limiter, clock, seconds):
    claims = claim(rpm=20, concurrent=2)
    lost, held = (limiter.acquire("alice", claims, 1) for _ in range(2))
    for _ in range(18):
        limiter.acquire("alice", claim(rpm=20), 1)
    clock.advance(seconds)
    if seconds < 0:  # time stands still for as long as it takes to notice
        assert refusal(limiter, claims).retry_after == 3
    clock.advance(3)
    limiter.renew(held)
    clock.advance(LEASE - 3)
    limiter.cancel(lost)  # whose lease is over: it frees nothing
    limiter.acquire("alice", claims, 1)
    assert len([grant for _ in range(2) if (grant := attempt(limiter, claims))]) == (seconds > 0)
    limiter.settle(held, 1)
    for _ in range(2 if seconds > 0 else 1):
        limiter.acquire("alice", claim(rpm=20), 1)


def test_who_is_refused_when_the_clock_is_put_back_waits_no_longer_than_told(limiter, clock):
    claims = claim(rpm=20)
    for _ in range(20):
        limiter.settle(limiter.acquire("alice", claims, 1), 1)
    clock.advance(-HOUR)
    assert refusal(limiter, claims).retry_after == 3
    clock.advance(3)
    limiter.settle(limiter.acquire("alice", claims, 1), 1)
    assert refusal(limiter, claims).retry_after == 3


# --- one round trip ---------------------------------------------------------------------


LUA = Path(oneai_middleware.__file__).with_name("rate_limiters") / "redis.lua"
OWN = {name.lower() for name in re.findall(r"redis\.call\('(\w+)'", LUA.read_text())}


def said_to(own_redis, act):
    """The commands that ``act`` sends, and how often; what the script calls is not sent."""
    own_redis.client.config_resetstat()
    act()
    stats = own_redis.client.info("commandstats")
    names = {name.removeprefix("cmdstat_") for name in stats} - OWN - {"info", "config|resetstat"}
    return {name: own_redis.calls(name) for name in names}


def test_a_call_takes_one_round_trip_to_begin_and_one_to_end(own_redis):
    limiter = RedisRateLimiter(own_redis.patient_url)
    claims = (*claim(rpm=3, tpm=10_000, concurrent=5), *claim("key:k1", rpm=100))
    limiter.status("alice", claims)  # connected, and the script is known
    grants = []
    begin = lambda: grants.append(limiter.acquire("alice", claims, 10))  # noqa: E731
    assert said_to(own_redis, begin) == {"evalsha": 1}
    assert said_to(own_redis, lambda: limiter.renew(grants[0])) == {"evalsha": 1}
    assert said_to(own_redis, lambda: limiter.settle(grants[0], 20)) == {"evalsha": 1}
    begin()
    assert said_to(own_redis, lambda: limiter.cancel(grants[1])) == {"evalsha": 1}
    begin(), begin()
    assert said_to(own_redis, lambda: refusal(limiter, claims)) == {"evalsha": 1}


def test_an_account_without_limits_costs_no_round_trip(own_redis):
    limiter = RedisRateLimiter(own_redis.patient_url)
    limiter.status("alice", claim(rpm=1))

    def call():
        grant = limiter.acquire("alice", claim(), 10)
        limiter.renew(grant)
        limiter.settle(grant, 20)
        limiter.cancel(grant)
        limiter.status("alice", claim())

    assert said_to(own_redis, call) == {}


@pytest.mark.parametrize(("tier", "calls"), [("pro", 2), ("enterprise", 0)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_whole_call_of_the_gateway_takes_two_round_trips_or_none(
    make_gateway, send, headers, own_redis, tier, calls, stream
):
    gateway = make_gateway(account={"tier": tier}, rate_limiter=own_redis.patient_url)
    body = {"model": "glm-4", "messages": [{"role": "user", "content": "hi"}], "stream": stream}

    def call():
        reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
        assert reply.status == 200
        reply.read()

    call()
    said = said_to(own_redis, call)
    assert {name: count for name, count in said.items() if count} == (
        {"evalsha": calls} if calls else {}
    )


def test_a_script_that_redis_has_forgotten_is_sent_again(own_redis):
    limiter = RedisRateLimiter(own_redis.patient_url)
    grant = limiter.acquire("alice", claim(concurrent=1), 1)
    for _ in range(2):
        own_redis.client.script_flush()
        assert refusal(limiter, claim(concurrent=1)).limit == "concurrent"
    own_redis.client.script_flush()
    limiter.settle(grant, 1)
    limiter.acquire("alice", claim(concurrent=1), 1)


# --- calls that were given up ---------------------------------------------------------------


HURRIED = "?socket_timeout=0.2&socket_connect_timeout=10"


@pytest.fixture
def overslept(own_redis):
    """Have a Redis that does not answer be asked by two calls that have connections, and wake."""

    def oversleep(limiter, claims, patient):
        for grant in in_threads(lambda: limiter.acquire("alice", claims, 30), 2):
            limiter.settle(grant, 0)
        own_redis.pause()
        given_up = in_threads(lambda: ask_in_vain(limiter, claims), 2)
        own_redis.resume()
        assert given_up == ["Redis: TimeoutError"] * 2
        assert patient.status("alice", claims).limit_tokens  # it is awake

    return oversleep


def ask_in_vain(limiter, claims):
    with pytest.raises(StoreUnavailable) as refused:
        limiter.acquire("alice", claims, 30)
    return refused.value.detail


def test_a_call_that_was_given_up_keeps_nothing_once_redis_has_answered(own_redis, overslept):
    claims = claim(concurrent=2, tpm=100)
    patient = RedisRateLimiter(own_redis.patient_url)
    limiter = RedisRateLimiter(own_redis.url + HURRIED)
    overslept(limiter, claims, patient)
    refusal(patient, claims, tokens=50)  # it has granted what nobody waits for any more
    limiter.acquire("bob", claim("account:bob", rpm=9), 1)
    granted = [patient.acquire("alice", claims, 50) for _ in range(2)]
    assert own_redis.client.zcard("oneai:{@alice}:slots:account:alice") == len(granted)
    before = own_redis.calls("evalsha")
    limiter.acquire("bob", claim("account:bob", rpm=9), 1)
    assert own_redis.calls("evalsha") == before + 1


def test_what_is_in_doubt_is_given_back_little_by_little_and_tried_once(own_redis, monkeypatch):
    limiter = RedisRateLimiter(own_redis.patient_url)
    claims = claim(concurrent=AT_ONCE + 2)
    in_doubt = limiter._in_doubt()
    in_doubt += [limiter.acquire("alice", claims, 1) for _ in range(AT_ONCE + 2)]
    with monkeypatch.context() as patch:
        patch.setattr(limiter, "cancel", Down().acquire)
        limiter.acquire("bob", claim("account:bob", rpm=9), 1)
    assert len(in_doubt) == AT_ONCE + 1
    refusal(limiter, claims)  # nobody waits for all of them to be given back
    assert len(in_doubt) == 1
    limiter.acquire("alice", claims, 1)
    assert not in_doubt


class Down:
    def acquire(self, *rest):
        raise StoreUnavailable("down", detail="down")


def test_what_the_script_and_we_do_not_see_alike_is_no_grant(limiter, monkeypatch):
    ask = limiter._ask
    monkeypatch.setattr(limiter, "_ask", lambda *rest, **more: (False, ask(*rest, **more)[1]))
    with pytest.raises(StoreUnavailable):
        limiter.acquire("alice", claim(rpm=5), 1)


# --- forks and clusters -------------------------------------------------------------------


FORKING = """
import os, sys
from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded
from oneai_middleware.rate_limiters.base import Claim
from oneai_middleware.rate_limiters.redis import RedisRateLimiter

limiter = RedisRateLimiter(sys.argv[1], prefix=sys.argv[2])
claims = [Claim("account:alice", Limits(rpm=100, concurrent=2))]

def connection_id():
    return limiter._server.client().client_id()

grant = limiter.acquire("alice", claims, 1)
parents = connection_id()
child = os.fork()
if child == 0:
    assert connection_id() != parents
    limiter.acquire("alice", claims, 1)
    try:
        limiter.acquire("alice", claims, 1)
    except RateLimitExceeded as refused:
        assert refused.limit == "concurrent"
        limiter.settle(grant, 1)
        sys.exit(0)
    sys.exit("the third call should have been refused")
status = os.waitpid(child, 0)[1]
assert connection_id() == parents
limiter.acquire("alice", claims, 1)
print(status)
"""


def test_parent_and_child_count_together_over_connections_of_their_own(redis_url, redis_prefix):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, redis_url, redis_prefix],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_cluster_is_asked_where_all_of_a_call_lies(start_redis, eventually):
    own = start_redis("--cluster-enabled", "yes")
    own.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    eventually(lambda: b"cluster_state:ok" in own.client.execute_command("CLUSTER", "INFO"))
    limiter = RedisRateLimiter.from_settings(
        {"lease": LEASE}, own.patient_url.replace("redis", "redis+cluster", 1)
    )
    for name in ["alice", "", "{", "a}b{c}", "😀"]:
        claims = (*claim(f"account:{name}", rpm=2), *claim(f"key:{name}", concurrent=1, tpm=100))
        grant = limiter.acquire(name, claims, 60)
        with pytest.raises(RateLimitExceeded) as refused:
            limiter.acquire(name, claims, 1)
        assert refused.value.subject == f"key:{name}"
        limiter.renew(grant)
        limiter.settle(grant, 70)
        assert limiter.status(name, claims).remaining_tokens <= 31
    own.client.script_flush()
    limiter.cancel(limiter.acquire("bob", claim("account:bob", rpm=1), 1))
    own.stop()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="cannot check your limits"):
            limiter.acquire("alice", claim(rpm=1), 1)
    own.start()  # of its slots it has kept a file

    def is_granted():
        with contextlib.suppress(StoreUnavailable):
            return limiter.acquire("alice", claim(rpm=1), 1)

    assert eventually(is_granted).status.limit_requests == 1


# --- settings ---------------------------------------------------------------------------


def test_the_lease_is_a_setting(redis_url):
    limiter = RedisRateLimiter.from_settings({"lease": 0.5}, redis_url)
    assert limiter._lease == 500_000


def test_deployments_that_share_a_redis_may_have_keys_of_their_own(own_redis):
    settings, url = {"lease": LEASE}, own_redis.patient_url
    claims = claim(rpm=1)
    RedisRateLimiter.from_settings(settings, f"{url}&prefix=shop").acquire("alice", claims, 1)
    blog = RedisRateLimiter.from_settings(settings, url.replace("?", "?prefix=my-blog&"))
    blog.acquire("alice", claims, 1)
    names = {key.decode().partition(":")[0] for key in own_redis.client.scan_iter()}
    assert names == {"shop", "my-blog"}


@pytest.mark.parametrize("prefix", ["{all}", "a b"])
def test_a_prefix_that_could_not_stand_in_a_key_is_refused(prefix):
    with pytest.raises(ConfigurationError, match="an address of Redis"):
        RedisRateLimiter.from_settings({"lease": LEASE}, f"redis://localhost?prefix={prefix}")
