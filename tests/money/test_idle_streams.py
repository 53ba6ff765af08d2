"""Streams that are silent for long: they hold money, and nothing of the database."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STREAMS = 200
FEW = 25
"""Connections that a process opens at most, of which it keeps five."""

CHAT = {
    "model": "bot",
    "stream": True,
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Say something"}],
}


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    go_on = threading.Event()
    yield go_on
    go_on.set()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
def test_two_hundred_idle_streams_hold_no_connection(
    shop: Any, send: Any, go_on: threading.Event
) -> None:
    def answer(request: Any) -> Iterator[str]:
        yield "one "
        go_on.wait(60)
        yield "two"

    shop.top_up(10**9)
    gateway = shop.gateway(providers={"scripted": {"backend": answer}})
    replies = []
    for _ in range(STREAMS):
        reply = send(gateway, "POST", "/v1/chat/completions", CHAT, shop.headers)
        while b"one" not in next(reply):
            pass
        replies.append(reply)
    assert shop.database.engine.pool.checkedout() == 0
    assert len(connections(shop.database)) <= FEW
    assert set(connections(shop.database)) <= {"idle"}
    assert shop.balance.held > 0
    go_on.set()
    assert all(reply.read().endswith(b"data: [DONE]\n\n") for reply in replies)
    assert [row.outcome for row in shop.rows] == ["answered"] * STREAMS
    shop.assert_books_are_exact()


def connections(database: Any) -> list[str]:
    """What every connection to the database is doing, less the one that asks."""
    if database.kind == "sqlite":
        opened = [file.resolve() for file in Path("/proc/self/fd").iterdir() if file.exists()]
        return ["idle"] * opened.count(Path(database.url.database).resolve())
    with database.reading() as connection:
        ours = "datname = current_database() AND pid <> pg_backend_pid()"
        ask = f"SELECT state FROM pg_stat_activity WHERE {ours}"
        return list(connection.exec_driver_sql(ask).scalars())
