"""A database in trouble, seen from outside: nobody is served for nothing, nobody hangs."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from oneai_middleware import Gateway
from oneai_middleware.database.tables import BALANCES
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.secret import new_secret
from oneai_middleware.testing import draft, hold

CHAT = {"model": "bot", "messages": [{"role": "user", "content": "Say something"}]}
SOON = 4.0
"""Seconds in which a caller knows: two are promised, and a machine may be busy."""


def assert_refused_soon(send: Any, gateway: Any, headers: dict[str, str]) -> str:
    """Ask for an answer and for a stream; all that the caller was told."""
    told = ""
    for stream in (False, True):
        began = time.monotonic()
        chat = {**CHAT, "stream": stream}
        reply = send(gateway, "POST", "/v1/chat/completions", chat, headers)
        assert time.monotonic() - began < SOON
        assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
        assert reply.headers["retry-after"] == "1"
        told += f"{reply.error} {reply.header_list}"
    return told


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_no_key_opens_anything_while_the_database_is_down(
    asking_provider: Any, provider: Any, send: Any, tmp_path: Any, caplog: Any, kind: str
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"{kind}://shop:geheim@127.0.0.1:{nobody.getsockname()[1]}/shop"
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path}/no/such/folder/oneai.db"
        gateway = Gateway(key_store=url, **asking_provider)
        told = assert_refused_soon(send, gateway, {"Authorization": f"Bearer {new_secret()}"})
        assert send(gateway, "GET", "/health").status == 200
    assert provider.turns == []
    for secret in ("geheim", "127.0.0.1", "folder", kind):
        assert secret not in told
    (line, *_) = [line for line in caplog.messages if "store_unavailable" in line]
    assert ("unable to open" if kind == "sqlite" else "refused") in line
    assert kind in line
    assert "geheim" not in caplog.text


def test_no_call_is_made_that_cannot_be_held_and_none_is_free(
    shop: Any, provider: Any, send: Any, caplog: Any
) -> None:
    shop.top_up(10**9)
    gateway = shop.gateway()
    assert send(gateway, "GET", "/v1/models", headers=shop.headers).status == 200
    with shop.database.transaction() as other:
        other.execute(sa.update(BALANCES).values(held=BALANCES.c.held))
        assert_refused_soon(send, gateway, shop.headers)
    assert provider.turns == []
    assert shop.balance == Balance(available=10**9, topped_up=10**9)
    assert any(shop.database.kind in line for line in caplog.messages)
    assert send(gateway, "POST", "/v1/chat/completions", CHAT, shop.headers).status == 200
    assert [row.outcome for row in shop.rows] == ["answered"]
    shop.assert_books_are_exact()


def test_an_answer_that_came_while_the_books_were_locked_is_paid_all_the_same(
    shop: Any, provider: Any, send: Any, completion: Any
) -> None:
    shop.top_up(10**9)
    gateway = shop.gateway()
    is_locked = threading.Event()

    def lock_for_longer_than_a_hold_waits() -> None:
        with shop.database.transaction() as other:
            other.execute(sa.update(BALANCES).values(held=BALANCES.c.held))
            is_locked.set()
            with pytest.raises(StoreUnavailable):
                hold(shop.ledger, draft("another"), 1, 1)

    with ThreadPoolExecutor() as pool:

        def respond(turn: Any) -> None:
            pool.submit(lock_for_longer_than_a_hold_waits)
            assert is_locked.wait(30)
            turn.answer(completion("hello"))

        provider.respond = respond
        reply = send(gateway, "POST", "/v1/chat/completions", CHAT, shop.headers)
    assert reply.json["choices"][0]["message"]["content"] == "hello"
    assert gateway._control.retry_settlements() == 0
    (row,) = shop.rows
    assert (row.outcome, row.cost) == ("answered", 13_000)
    shop.assert_books_are_exact()


@pytest.mark.parametrize(
    "key",
    [
        "oneai-sk-' OR '1'='1",
        "oneai-sk-" + "x" * 46,
        "oneai-sk-%",
        "' UNION SELECT digest FROM oneai_keys --",
        "\\'; DROP TABLE oneai_keys; --",
        "a" * 100_000,
    ],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_no_key_never_reaches_the_database(shop: Any, send: Any, key: str) -> None:
    gateway = shop.gateway()
    said = []
    note = lambda *arguments: said.append(arguments[2:4])  # noqa: E731
    sa.event.listen(shop.database.engine, "before_cursor_execute", note)
    for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        assert send(gateway, "GET", "/v1/models", headers=headers).status == 401
    sa.event.remove(shop.database.engine, "before_cursor_execute", note)
    # An earlier call of the fixture's own key may only now be noted, aside.
    assert [what for what, _ in said if "SET last_used" not in what] == []


def test_no_key_reaches_the_database_by_way_of_a_call(
    shop: Any, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.top_up(10**9)
    gateway = shop.gateway()
    said: list[str] = []
    note = lambda *arguments: said.append(str(arguments[2:4]))  # noqa: E731
    sa.event.listen(shop.database.engine, "before_cursor_execute", note)
    # What is said past SQLAlchemy, too.
    if shop.database.kind == "sqlite":
        trace = lambda raw, *_: raw.set_trace_callback(said.append)  # noqa: E731
        sa.event.listen(shop.database.engine, "checkout", trace)
    else:
        execute = psycopg.Connection.execute
        noted = lambda *arguments: (said.append(str(arguments[1:])), execute(*arguments))[1]  # noqa: E731
        monkeypatch.setattr(psycopg.Connection, "execute", noted)
    for stream in (False, True):
        chat = {**CHAT, "stream": stream}
        reply = send(gateway, "POST", "/v1/chat/completions", chat, shop.headers)
        assert reply.status == 200
        reply.read()
    for path in ("key", "balance", "usage"):
        assert send(gateway, "GET", f"/v1/{path}", headers=shop.headers).status == 200
    sa.event.remove(shop.database.engine, "before_cursor_execute", note)
    if shop.database.kind == "sqlite":
        sa.event.remove(shop.database.engine, "checkout", trace)
    assert len(said) > 10
    assert not [line for line in said if shop.secret in line or "Say something" in line]
