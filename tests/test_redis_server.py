"""The addresses of Redis, its password, and connections that nobody needs any more."""

import contextlib
import gc
import logging
import socket
import threading
from functools import partial

import pytest
from redis.exceptions import ReadOnlyError, ResponseError

from oneai_middleware import Gateway
from oneai_middleware.errors import ConfigurationError, StoreUnavailable
from oneai_middleware.rate_limiters.redis import RedisRateLimiter
from oneai_middleware.redis_server import RedisServer
from oneai_middleware.testing import claim, in_threads

# --- addresses ------------------------------------------------------------------------------

CANARY = "canary7f3a"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}@localhost:port",
        "redis://:{}@localhost:99999",
        "redis://:{}@localhost/shop",
        "redis://:{}@localhost/1/2",
        "redis://:p/{}@localhost",
        "redis://:p#{}@localhost",
        "redis://:{}@localhost/0?db=shop",
        "redis://:{}@localhost?socket_timeout=soon",
        "redis://:{}@localhost?socket_timout=1",
        "redis://:{}@localhost?decode_responses=yes",
        "redis+cluster://:{}@localhost/shop",
        "rediss://:{}@localhost?ssl_everything=no",
        "rediss://:{}@[localhost",
        "unix://:{}@",
        "redis+cluster://:{}@localhost/3",
        "rediss+cluster://:{}@localhost?db=1",
        "redis://:{}@localhost?db=-1",
        "redis://:{}@a,b:6379",
        "redis://:{}@localhost?retry=5",
        "redis://:{}@localhost?retry_on_timeout=yes",
        "redis://:{}@localhost?redis_connect_func=print",
        "redis://:{}@localhost?credential_provider=x",
        "redis://:{}@localhost?encoding=utf-16",
        "redis://:{}@localhost?encoding=klingon",
        *[
            f"redis://:{{}}@localhost?{option}={value}"
            for option in ("socket_timeout", "socket_connect_timeout")
            for value in ("0", "-1", "nan", "inf")
        ],
    ],
)
def test_an_address_that_is_none_is_refused_at_the_start(url, caplog):
    with pytest.raises(ConfigurationError, match=r"^rate_limiter: an address of Redis") as refused:
        Gateway(rate_limiter=url.format(CANARY))
    seen = [refused.value, refused.value.__cause__, refused.value.__context__, caplog.text]
    assert CANARY not in repr(seen)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://localhost/0?socket_timeout=0.2&health_check_interval=30",
        "rediss://alice:p%40%2F%23@redis.example:6380/15?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
        "redis+cluster://redis.example:6379",
        "rediss+cluster://:p%40@redis.example?ssl_cert_reqs=none&client_name=shop",
        "redis://[::1]:6379/15?client_name=shop&max_connections=5&socket_keepalive=no",
    ],
)
def test_an_address_is_taken_without_anybody_being_connected_to(url):
    assert type(Gateway(rate_limiter=url).rate_limiter) is RedisRateLimiter


def test_the_name_alone_asks_for_an_address():
    with pytest.raises(ConfigurationError, match=r"^rate_limiter: an address, such as 'redis://"):
        Gateway(rate_limiter="redis")


def test_a_password_is_in_no_error_log_or_name(
    start_redis, make_gateway, send, headers, caplog, monkeypatch
):
    caplog.set_level(logging.DEBUG)
    own = start_redis("--requirepass", "another")
    gateway = make_gateway(rate_limiter=own.patient_url.replace("//", f"//:{CANARY}@"))
    body = {"model": "glm-4", "messages": [{"role": "user", "content": "hi"}]}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    limiter = gateway.rate_limiter
    with pytest.raises(StoreUnavailable) as refused:
        limiter.acquire("alice", claim(rpm=1), 1)
    error = refused.value
    assert error.detail == "Redis: AuthenticationError"
    server = limiter._server
    names = [limiter, server, server.client(), server.client().connection_pool, gateway.settings]
    assert CANARY not in repr([error, error.args, error.detail, error.__cause__, *names])
    assert CANARY not in caplog.text + reply.read().decode()
    assert "AuthenticationError" in caplog.text


# --- connections ----------------------------------------------------------------------------


def test_a_limiter_that_is_gone_leaves_no_connection_behind(own_redis, eventually):
    limiter = RedisRateLimiter(own_redis.patient_url)
    in_threads(partial(limiter.status, "alice", claim(rpm=1)), 80)
    assert len(own_redis.client.client_list()) > 1
    del limiter
    gc.collect()
    eventually(lambda: len(own_redis.client.client_list()) == 1)


def test_a_name_that_nobody_looks_up_in_time_keeps_no_call_waiting(monkeypatch, eventually):
    answers, asked = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def getaddrinfo(*question):
        asked.set()
        answers.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", listener.getsockname())]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with listener:
        limiter = RedisRateLimiter("redis://redis.example")
        with pytest.raises(StoreUnavailable) as refused:
            limiter.acquire("alice", claim(rpm=1), 1)
        assert refused.value.detail == "Redis: TimeoutError"
        assert asked.is_set()
        answers.set()
        late, _ = listener.accept()
        with late:  # what comes too late is of no use to anybody
            assert late.recv(1) == b""
    eventually(lambda: "oneai-redis-connect" not in {t.name for t in threading.enumerate()})


def test_a_master_that_has_become_a_replica_is_left(start_redis):
    own, master = start_redis(), start_redis()
    limiter = RedisRateLimiter(own.patient_url)
    limiter.acquire("alice", claim(rpm=100), 1)
    (before,) = _ids(own)
    own.client.replicaof("127.0.0.1", master.client.info()["tcp_port"])
    with pytest.raises(StoreUnavailable) as refused:
        limiter.acquire("alice", claim(rpm=100), 1)
    assert refused.value.detail == "Redis: ReadOnlyError"
    own.client.replicaof("NO", "ONE")
    limiter.acquire("alice", claim(rpm=100), 1)
    (after,) = _ids(own)
    assert after != before


def test_connections_that_nobody_uses_are_left_as_soon_as_one_proves_dead(own_redis):
    limiter = RedisRateLimiter(own_redis.url + "?socket_timeout=0.2&socket_connect_timeout=10")
    call = partial(limiter.acquire, "alice", claim(rpm=10_000), 1)
    in_threads(call, 80)
    pool = limiter._server.client().connection_pool
    idle = pool._available_connections
    assert idle[0]._sock
    own_redis.pause()
    with pytest.raises(StoreUnavailable):
        call()
    own_redis.resume()
    assert [each for each in idle if each._sock] == []
    call()


def test_the_nodes_of_a_cluster_are_left_as_well(start_redis, eventually):
    own = start_redis("--cluster-enabled", "yes")
    own.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    eventually(lambda: b"cluster_state:ok" in own.client.execute_command("CLUSTER", "INFO"))
    limiter = RedisRateLimiter(own.patient_url.replace("redis", "redis+cluster", 1))
    limiter.acquire("alice", claim(rpm=100), 1)
    ids = _ids(own)
    assert ids
    with pytest.raises(StoreUnavailable), limiter._server.errors():
        raise ReadOnlyError
    assert not set(ids) & set(_ids(own))
    limiter.acquire("alice", claim(rpm=100), 1)


def _connection(url):
    """One that is made as ``url`` wants it, and kept."""
    client = RedisRateLimiter(url)._server.client()
    connection = client.connection_pool.get_connection()
    return client, connection


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system has no such option")
def test_the_system_sees_to_it_that_idle_connections_live(own_redis):
    client, connection = _connection(own_redis.patient_url)
    with client:
        own = connection._sock
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


def test_a_new_connection_asks_for_nothing_but_what_it_is_for(own_redis):
    limiter = RedisRateLimiter(own_redis.patient_url)
    own_redis.client.config_resetstat()
    limiter.status("alice", claim(rpm=1))
    assert not [name for name in own_redis.client.info("commandstats") if "client|" in name]


# --- patience -------------------------------------------------------------------------------


def test_nobody_waits_for_longer_than_a_tenth_of_a_second_unless_the_address_says_so():
    for url in ("redis://", "rediss://", "unix:///run/redis.sock"):
        limiter = RedisRateLimiter(url)
        connection = limiter._server.client().connection_pool.make_connection()
        waits = (connection.socket_connect_timeout, connection.socket_timeout)
        assert all(0 < seconds <= 0.1 for seconds in waits)


class Silent:
    """Somebody who takes connections, if asked to, and never says a word."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=5)
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        self.taken = []

    def take(self):
        """Take all connections that there are; what has come through them."""
        self.listener.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.taken.append(self.listener.accept()[0])
        return [connection.recv(10**6) for connection in self.taken]

    def fill(self):
        """See that nobody else can connect."""
        address = self.listener.getsockname()
        for _ in range(10):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(address)
            self.taken.append(caller)


@pytest.fixture
def silent():
    silent = Silent()
    yield silent
    for each in (silent.listener, *silent.taken):
        each.close()


def _given_up(limiter):
    """The error of a call that is made on a thread of its own: it may never end."""
    said = []

    def call():
        try:
            limiter.acquire("alice", claim(rpm=1), 1)
        except StoreUnavailable as error:
            said.append(error.detail)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(4)
    assert not thread.is_alive()
    return said


def test_who_is_not_answered_gives_up_and_repeats_nothing(silent):
    """Whoever is granted twice is charged twice."""
    assert _given_up(RedisRateLimiter(silent.url)) == ["Redis: TimeoutError"]
    (sent,) = silent.take()
    assert sent.count(b"EVALSHA") == sent.count(b"acquire") == 1


def test_who_cannot_connect_gives_up(silent):
    silent.fill()
    assert _given_up(RedisRateLimiter(silent.url)) == ["Redis: TimeoutError"]


def test_a_cluster_through_tls_is_spoken_to_through_tls(silent, eventually):
    server = RedisRateLimiter(silent.url.replace("redis", "rediss+cluster", 1))
    assert _given_up(server)
    assert {sent[:3] for sent in silent.take()} == {b"\x16\x03\x01"}  # a handshake begins


# --- what is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            ResponseError("NOREPLICAS Not enough good replicas to write."),
            "ResponseError: NOREPLICAS",
        ),
        (ResponseError("DB index is out of range"), "ResponseError: no such database"),
        (ResponseError(f"{CANARY} is wrong"), "ResponseError"),
        (ReadOnlyError("You can't write against a read only replica."), "ReadOnlyError"),
        (ValueError(CANARY), "ValueError"),
        (LookupError("unknown encoding"), "LookupError"),
    ],
)
def test_what_is_wrong_is_named_by_its_kind_whatever_it_is(error, kind):
    with pytest.raises(StoreUnavailable) as refused, RedisServer("redis://").errors():
        raise error
    assert refused.value.detail == f"Redis: {kind}"


def test_a_database_that_there_is_none_of_is_named(own_redis):
    limiter = RedisRateLimiter(own_redis.patient_url.replace("?", "/99?"))
    assert _given_up(limiter) == ["Redis: ResponseError: no such database"]


def _ids(own):
    """The connections to it, but for the test's own."""
    ours = str(own.client.client_id())
    return [each["id"] for each in own.client.client_list() if each["id"] != ours]
