"""Redis stopped, paused and started again under load: each policy does what its name says."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oneai_middleware.rate_limiters.guarded import FAILURES, PAUSE
from oneai_middleware.secret import new_secret

CALLERS = 4
BOBS_RPM = 3

SERVED = """
import json
import threading

from oneai_middleware import OneAIMiddleware
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.rate_limiters.redis import RedisRateLimiter

lock, waited = threading.Lock(), 0


class Counting(RedisRateLimiter):
    # Counts those who have waited for a Redis that did not answer.
    def _ask(self, *arguments, **more):
        global waited
        try:
            return super()._ask(*arguments, **more)
        except StoreUnavailable:
            with lock:
                waited += 1
            raise


def host(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(waited).encode()]


app = OneAIMiddleware(host, rate_limiter=Counting({url!r}), **{settings!r})
"""


class Shop:
    """A server for alice, whose limits are far away, and bob, whose are not."""

    def __init__(self, server: Any, secrets: dict[str, str]) -> None:
        self._server = server
        self._secrets = secrets

    @property
    def waited(self) -> int:
        """How many have waited for Redis in vain."""
        return int(self._server.get("/waited"))

    def log(self, words: str) -> int:
        """How many lines of the log have these words."""
        return sum(words in line for line in self._server.log.read_text().splitlines())

    def ask(self, account: str = "alice") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        body = {"model": "bot", "messages": [{"role": "user", "content": "Hi"}]}
        headers = {
            "Authorization": f"Bearer {self._secrets[account]}",
            "Content-Type": "application/json",
        }
        connection.request("POST", "/oneai/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        data = json.loads(reply.read())
        connection.close()
        return reply.status, data["error"]["code"] if "error" in data else ""


class Load:
    """Callers who never stop, and what they got in the present phase."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._over = threading.Event()
        self.answers: list[tuple[int, str]] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            answers = self.answers  # of the phase in which the call begins
            answers.append(self._shop.ask())

    def next_phase(self) -> list[tuple[int, str]]:
        """From now on answers are gathered here."""
        self.answers = []
        return self.answers

    def end(self) -> bool:
        """Whether all callers have come back."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        return not any(thread.is_alive() for thread in self._threads)


@pytest.fixture
def open_shop(start_gunicorn: Any, own_redis: Any) -> Callable[[str], Shop]:
    def open_shop(policy: str) -> Shop:
        secrets = {name: new_secret() for name in ("alice", "bob")}
        limits = {"alice": {"rpm": 10**6}, "bob": {"rpm": BOBS_RPM}}
        settings = {
            "providers": {"shop": {"backend": "echo"}},
            "models": {"bot": {"routes": ["shop/bot"], "input": "1", "output": "2"}},
            "accounts": {
                name: {"tier": "enterprise", "keys": [secrets[name]], "limits": limits[name]}
                for name in secrets
            },
            "ledger": "unlimited",
            "on_store_down": policy,
        }
        # Long enough for a machine at work, and much shorter than anybody's patience.
        url = f"{own_redis.url}?socket_timeout=1&socket_connect_timeout=1"
        source = SERVED.format(url=url, settings=settings)
        return Shop(start_gunicorn(source, "-k", "gthread", "--threads", "12"), secrets)

    return open_shop


@pytest.fixture
def put_under_load() -> Iterator[Callable[[Shop], Load]]:
    loads: list[Load] = []

    def put(shop: Shop) -> Load:
        loads.append(Load(shop))
        return loads[-1]

    yield put
    for load in loads:
        load.end()


@pytest.mark.parametrize("policy", ["closed", "open", "local"])
def test_while_redis_is_gone_callers_get_what_the_policy_says_and_nobody_hangs(
    open_shop: Any, put_under_load: Any, own_redis: Any, eventually: Any, policy: str
) -> None:
    shop = open_shop(policy)
    load = put_under_load(shop)
    troubles = [(own_redis.stop, own_redis.start), (own_redis.pause, own_redis.resume)]
    for number, (take_away, give_back) in enumerate(troubles, 1):
        well = load.next_phase()
        eventually(lambda well=well: len(well) >= 20)
        assert set(well) == {(200, "")}

        waited, began = shop.waited, time.monotonic()
        take_away()
        eventually(lambda number=number: shop.log("store is down") == number)
        down = load.next_phase()
        bobs = [shop.ask("bob") for _ in range(3 * BOBS_RPM)]
        eventually(lambda down=down: len(down) >= 100)
        _check_policy(policy, number, set(down), bobs)
        waited, seconds = shop.waited - waited, time.monotonic() - began
        # Each of those who called when it went, up to so often as it takes to know that it is
        # down, and once more for one whose answer came late; then one a second.
        assert 1 <= waited <= (FAILURES + 1) * (CALLERS + 1) + FAILURES + seconds / PAUSE

        load.next_phase()
        give_back()
        eventually(lambda number=number: shop.log("store answers again") == number)
    well = load.next_phase()
    eventually(lambda: len(well) >= 20)
    assert set(well) == {(200, "")}
    assert load.end()
    for words in ("store is down (Redis: ", "store answers again after "):
        assert shop.log(words) == len(troubles)
    assert shop.log("store failed (Redis: ") == 1  # within a minute


def _check_policy(
    policy: str, outage: int, alices: set[tuple[int, str]], bobs: list[tuple[int, str]]
) -> None:
    if policy == "closed":
        assert alices == set(bobs) == {(503, "store_unavailable")}
        return
    assert alices == {(200, "")}
    if policy == "open":
        assert set(bobs) == {(200, "")}
    else:
        granted = bobs.count((200, ""))
        assert granted == BOBS_RPM if outage == 1 else granted <= BOBS_RPM
        assert bobs.count((429, "rate_limit_exceeded")) == len(bobs) - granted > 0
