"""Books that are out of reach when a call ends, or have given it up: it is paid all the same."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from oneai_middleware import Gateway
from oneai_middleware.database.engine import Database
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger

CHAT = {
    "model": "bot",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Say something"}],
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
COST = 13_000

on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


class Line:
    """What lies between a gateway and its database. It can be cut."""

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._is_cut = False
        sa.event.listen(self._engine, "connect", self._break)

    def cut(self) -> None:
        self._is_cut = True
        self._engine.dispose()

    def mend(self) -> None:
        self._is_cut = False

    def _break(self, connection: Any, record: Any) -> None:
        if self._is_cut:
            connection.close()
            raise OperationalError("", None, ConnectionError("no way there"))


@pytest.fixture
def seen(shop: Any, connect: Callable[..., Database]) -> Database:
    """The shop's database, as its gateway sees it."""
    return connect(shop.database.url)


@pytest.fixture
def gateway(shop: Any, seen: Database) -> Iterator[Gateway]:
    """A gateway on whose renewals nothing depends."""
    shop.top_up(10**9)
    gateway = shop.gateway(key_store=SQLKeyStore(seen), ledger=SQLLedger(seen))
    yield gateway
    gateway.close()


@pytest.fixture
def sweeper(shop: Any, connect: Callable[..., Database]) -> SQLLedger:
    """Another process, for which every lease is over."""
    return SQLLedger(connect(shop.database.url), clock=lambda: time.time() + 3_600)


@on_both
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_ends_while_the_books_are_away_is_paid_when_they_are_back(
    shop: Any,
    provider: Any,
    send: Any,
    gateway: Gateway,
    seen: Database,
    sweeper: SQLLedger,
    completion: Any,
    stream: bool,
) -> None:
    line = Line(seen)

    def respond(turn: Any) -> None:
        line.cut()
        if not stream:
            turn.answer(completion("hello", usage=USAGE))
            return
        turn.start_stream()
        turn.text("hello")
        turn.text("", "stop", usage=USAGE)
        turn.event("[DONE]")

    provider.respond = respond
    body = {**CHAT, "stream": stream}
    reply = send(gateway, "POST", "/v1/chat/completions", body, shop.headers)
    assert reply.status == 200
    assert b"hello" in reply.read()
    assert not stream or reply.read().endswith(b"data: [DONE]\n\n")
    assert b"error" not in reply.read()
    assert gateway._control.retry_settlements() == 1
    refused = send(gateway, "POST", "/v1/chat/completions", CHAT, shop.headers)
    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")

    assert sweeper.sweep() == 1
    assert [(row.outcome, row.cost) for row in shop.rows] == [("abandoned", 0)]
    assert shop.balance == Balance(available=10**9, topped_up=10**9)

    line.mend()
    assert gateway._control.retry_settlements() == 0
    assert [(row.outcome, row.cost) for row in shop.rows] == [("answered", COST)]
    assert shop.balance == Balance(available=10**9 - COST, spent=COST, topped_up=10**9)
    shop.assert_books_are_exact()


@on_both
def test_a_gateway_that_is_closed_settles_what_it_can_once_more(
    shop: Any, provider: Any, send: Any, gateway: Gateway, seen: Database, completion: Any
) -> None:
    line = Line(seen)

    def respond(turn: Any) -> None:
        line.cut()
        turn.answer(completion("hello", usage=USAGE))

    provider.respond = respond
    assert send(gateway, "POST", "/v1/chat/completions", CHAT, shop.headers).status == 200
    assert shop.rows == []
    line.mend()
    gateway.close()
    assert [(row.outcome, row.cost) for row in shop.rows] == [("answered", COST)]
    shop.assert_books_are_exact()


def test_a_stream_whose_hold_was_swept_ends_with_an_error_and_is_paid_so_far(
    shop: Any, provider: Any, send: Any, sweeper: SQLLedger, eventually: Any
) -> None:
    never = threading.Event()

    def respond(turn: Any) -> None:
        turn.start_stream()
        turn.text("one two three")
        turn.hold(never)

    provider.respond = respond
    shop.top_up(10**9)
    gateway = shop.gateway(lease=0.6)
    body = {**CHAT, "stream": True}
    reply = send(gateway, "POST", "/v1/chat/completions", body, shop.headers)
    while b"one two three" not in next(reply):
        pass
    assert sweeper.sweep() == 1
    assert [row.outcome for row in shop.rows] == ["abandoned"]
    rest = reply.read()
    [error] = [json.loads(line[6:]) for line in rest.splitlines() if b'"error"' in line]
    assert error["error"]["code"] == "store_unavailable"
    assert b"[DONE]" not in rest
    eventually(provider.turns[0].left.is_set)
    [row] = shop.rows
    assert (row.outcome, row.estimated) == ("store_unavailable", True)
    assert row.completion_tokens > 0
    assert row.cost > 0
    assert shop.balance.spent == row.cost
    shop.assert_books_are_exact()
