"""Many workers, one Redis: together they admit what one would, and a killed one keeps nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from oneai_middleware.secret import new_secret

UNITS = 60 * 10**6
"""Of a request, in Redis: it counts microseconds of a minute."""

MASTERS, WORKERS, THREADS = 2, 4, 8
CALLERS = 24

SLOTS = "oneai:{@alice}:slots:account:alice"

SERVED = """
from oneai_middleware import Gateway

app = Gateway(**{settings!r})
"""


class Bucket:
    """What Redis keeps of alice's requests."""

    def __init__(self, redis: Any, capacity: int) -> None:
        kept = redis.hgetall("oneai:{@alice}:buckets:account:alice")
        assert int(kept[b"rpm"]) == capacity
        self.at, self.level = int(kept[b"at"]), int(kept[b"requests"])
        self._capacity = capacity

    def admitted_since(self, before: Bucket) -> float:
        """How many requests were taken, by the law: what came in, less what there is more."""
        came_in = (self.at - before.at) * self._capacity
        return (before.level + came_in - self.level) / UNITS


class Crowd:
    """A provider that sees how many calls there are at once."""

    def __init__(self, provider: Any, completion: Any) -> None:
        self._lock = threading.Lock()
        self._completion = completion
        self.calls = self.running = self.most = 0
        provider.respond = self._respond

    def _respond(self, turn: Any) -> None:
        with self._lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        turn.hold(patience=0.01)
        with self._lock:
            self.running -= 1
        turn.answer(self._completion("hello"))


class Shop:
    """Several servers for alice, who has limits."""

    def __init__(self, servers: list[Any], secret: str) -> None:
        self.servers = servers
        self._headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}

    def ask(self, number: int) -> tuple[int, str]:
        """The status of a call of the server with this number, and the code of its error."""
        port = self.servers[number % len(self.servers)].port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"model": "bot", "messages": [{"role": "user", "content": "Hi"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), self._headers)
        reply = connection.getresponse()
        data = json.loads(reply.read())
        connection.close()
        return reply.status, data["error"]["code"] if "error" in data else ""


@pytest.fixture
def open_shop(
    start_gunicorn: Any, asking_provider: dict[str, Any], own_redis: Any
) -> Callable[..., Shop]:
    def open_shop(masters: int, workers: int, limits: dict[str, int], **options: Any) -> Shop:
        secret = new_secret()
        settings = {
            **asking_provider,
            "accounts": {"alice": {"tier": "enterprise", "keys": [secret], "limits": limits}},
            "ledger": "unlimited",
            "rate_limiter": own_redis.patient_url,
            "max_calls": 100,  # nobody is to be refused for that
            **options,
        }
        arguments = ["-k", "gthread", "--threads", str(THREADS), "--workers", str(workers)]
        source = SERVED.format(settings=settings)
        return Shop([start_gunicorn(source, *arguments) for _ in range(masters)], secret)

    return open_shop


def test_masters_and_their_workers_admit_exactly_the_law_of_one(
    open_shop: Any, own_redis: Any, provider: Any, completion: Any
) -> None:
    """Conformance 98."""
    _overload(4, open_shop, own_redis, provider, completion)


@pytest.mark.soak
def test_in_a_minute_of_overload_they_admit_exactly_the_law_of_one(
    open_shop: Any, own_redis: Any, provider: Any, completion: Any
) -> None:
    """Conformance 98."""
    _overload(60, open_shop, own_redis, provider, completion)


def _overload(
    seconds: float, open_shop: Any, own_redis: Any, provider: Any, completion: Any
) -> None:
    rpm, concurrent = 120, 5
    shop = open_shop(MASTERS, WORKERS, {"rpm": rpm, "tpm": 10**8, "concurrent": concurrent})
    crowd = Crowd(provider, completion)
    # So much is gone that the bucket is not full again before the crowd has come.
    first = [shop.ask(number) for number in range(40)]
    assert first == [(200, "")] * 40
    before, served_before = Bucket(own_redis.client, rpm), crowd.calls
    end = time.monotonic() + seconds

    def call(number: int) -> Counter[Any]:
        answers: Counter[Any] = Counter()
        while time.monotonic() < end:
            answers[shop.ask(number)] += 1
        return answers

    with ThreadPoolExecutor(CALLERS) as pool:
        answers = sum(pool.map(call, range(CALLERS)), Counter[Any]())
    after = Bucket(own_redis.client, rpm)
    refused_for_rate = answers[429, "rate_limit_exceeded"]
    refused_for_slots = answers[429, "concurrency_limit_exceeded"]
    assert sum(answers.values()) == answers[200, ""] + refused_for_rate + refused_for_slots
    assert answers[200, ""] == crowd.calls - served_before == after.admitted_since(before)
    assert answers[200, ""] >= rpm - 40
    assert refused_for_rate
    assert refused_for_slots
    assert 1 < crowd.most <= concurrent
    assert own_redis.client.zcard(SLOTS) == 0


def test_slots_of_killed_workers_are_free_within_one_lease(
    open_shop: Any, own_redis: Any, provider: Any, completion: Any, eventually: Any
) -> None:
    lease, slots = 2.0, 4
    held = threading.Event()
    answer = provider.respond

    def hold(turn: Any) -> None:
        turn.hold(held)

    provider.respond = hold
    shop = open_shop(1, 2, {"concurrent": slots}, lease=lease)

    def expiries() -> list[float]:
        return [when for _, when in own_redis.client.zrange(SLOTS, 0, -1, withscores=True)]

    threads = [
        threading.Thread(target=_ask_in_vain, args=(shop, number)) for number in range(slots)
    ]
    for thread in threads:
        thread.start()
    first = eventually(lambda: len(found := expiries()) == slots and found)
    eventually(lambda: min(expiries()) > max(first))  # all have been renewed
    assert shop.ask(0) == (429, "concurrency_limit_exceeded")
    _kill_workers(shop.servers[0])
    killed = own_redis.client.time()
    assert len(expiries()) == slots
    assert max(expiries()) <= killed[0] * 10**6 + killed[1] + lease * 10**6
    provider.respond = answer
    held.set()
    for thread in threads:
        thread.join(20)
    eventually(lambda: shop.ask(0) == (200, ""))
    assert expiries() == []


def _ask_in_vain(shop: Shop, number: int) -> None:
    with pytest.raises((OSError, http.client.HTTPException)):
        shop.ask(number)


def _kill_workers(server: Any) -> None:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
