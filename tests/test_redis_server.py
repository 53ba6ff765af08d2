"""The addresses of Redis, its password, and connections that nobody needs any more."""

import gc
import logging
import socket
import threading
from functools import partial

import pytest

from oneai_middleware import Gateway
from oneai_middleware.errors import ConfigurationError, StoreUnavailable
from oneai_middleware.rate_limiters.redis import RedisRateLimiter
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


def _ids(own):
    """The connections to it, but for the test's own."""
    ours = str(own.client.client_id())
    return [each["id"] for each in own.client.client_list() if each["id"] != ours]
