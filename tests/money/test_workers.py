"""Gateways that share a database: what one learns, decides or changes, the others see."""

from __future__ import annotations

from typing import Any

import pytest

from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import FakeClock

CHAT = {"model": "bot", "messages": [{"role": "user", "content": "Say something"}]}


class Cached(CachedKeyStore):
    """One that is taken as it is, on the clock of the test."""

    cacheable = False


@pytest.fixture
def workers(shop: Any, connect: Any, clock: FakeClock) -> list[Any]:
    """Two gateways, each with connections and a memory of its own."""
    shop.top_up(10**9)
    databases = [connect(shop.database.url) for _ in range(2)]
    return [
        shop.gateway(key_store=Cached(SQLKeyStore(each), clock=clock), ledger=SQLLedger(each))
        for each in databases
    ]


def status(send: Any, gateway: Any, headers: dict[str, str]) -> int:
    reply = send(gateway, "GET", "/v1/models", headers=headers)
    if reply.status != 200:
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    return int(reply.status)


def test_a_revoked_key_is_refused_at_once_here_and_within_seconds_elsewhere(
    shop: Any, workers: Any, send: Any, clock: FakeClock
) -> None:
    """Conformance 19."""
    here, elsewhere = workers
    assert [status(send, each, shop.headers) for each in workers] == [200, 200]
    here.key_store.update(shop.key.id, revoked=True)
    assert status(send, here, shop.headers) == 401
    assert status(send, elsewhere, shop.headers) == 200
    clock.advance(5)
    assert [status(send, each, shop.headers) for each in workers] == [401, 401]


def test_a_new_key_opens_everywhere_within_seconds_though_it_was_asked_for_before(
    shop: Any, workers: Any, send: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = workers
    new, secret = shop.key_store.create("alice")
    shop.key_store.update(new.id, revoked=True)
    headers = {"Authorization": f"Bearer {secret}"}
    assert [status(send, each, headers) for each in workers] == [401, 401]
    here.key_store.update(new.id, revoked=False)
    assert status(send, here, headers) == 200
    clock.advance(5)
    assert status(send, elsewhere, headers) == 200


def test_the_last_use_is_seen_once_a_minute_whoever_served_it(
    shop: Any, workers: Any, send: Any, eventually: Any
) -> None:
    for each in workers * 3:
        assert status(send, each, shop.headers) == 200
    first = eventually(lambda: shop.key_store.keys()[0].last_used)
    for each in workers:
        assert status(send, each, shop.headers) == 200
    assert shop.key_store.keys()[0].last_used == first


def test_a_change_of_price_alters_no_row_that_is_written(
    shop: Any, workers: Any, send: Any, connect: Any
) -> None:
    """Conformance 106."""
    cheap = workers[0]
    bot = shop.options["models"]["bot"]
    dear = shop.gateway(models={"bot": {**bot, "input": "10", "output": "20.5"}})
    for gateway in (cheap, dear, cheap):
        reply = send(gateway, "POST", "/v1/chat/completions", CHAT, shop.headers)
        assert reply.status == 200
        reply.read()
        if gateway is cheap and len(shop.rows) == 1:
            before = shop.rows
    rows = shop.rows
    assert rows[:1] == before
    assert [row.cost for row in rows] == [13_000, 131_500, 13_000]
    assert [(row.input_price, row.output_price) for row in rows] == [
        (1_000, 2_000),
        (10_000, 20_500),
        (1_000, 2_000),
    ]
    assert sum(group.cost for group in shop.ledger.usage("alice")) == shop.balance.spent == 157_500


def test_a_change_of_price_under_way_is_not_for_a_call_that_has_begun(
    shop: Any, workers: Any, send: Any, provider: Any, completion: Any
) -> None:
    """Conformance 106."""
    bot = shop.options["models"]["bot"]
    dear = shop.gateway(models={"bot": {**bot, "input": "10", "output": "20"}})

    def respond(turn: Any) -> None:
        provider.respond = lambda turn: turn.answer(completion("dear"))
        send(dear, "POST", "/v1/chat/completions", CHAT, shop.headers).read()
        turn.answer(completion("cheap"))

    provider.respond = respond
    send(workers[0], "POST", "/v1/chat/completions", CHAT, shop.headers).read()
    assert sorted(row.cost for row in shop.rows) == [13_000, 130_000]
    assert shop.ledger.audit() == []
