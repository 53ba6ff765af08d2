"""Whole gateways over a database: a shop with one customer, and servers that serve it."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from oneai_middleware import Gateway
from oneai_middleware.accounts import Account
from oneai_middleware.database.engine import Database
from oneai_middleware.database.tables import HOLDS
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.ledgers.base import Balance, Entry
from oneai_middleware.ledgers.sql import SQLLedger

INPUT, OUTPUT = 1_000, 2_000
"""Nano-dollars for a token of the model ``bot``."""


class Shop:
    """The database of a shop and alice, who has a key; ``options`` say who answers."""

    def __init__(self, database: Database, options: dict[str, Any]) -> None:
        self.database = database
        self.options = options
        self.ledger = SQLLedger(database)
        self.key_store = SQLKeyStore(database)
        self.key_store.save_account(Account("alice", "enterprise"))
        self.key, self.secret = self.key_store.create("alice")
        self.headers = {"Authorization": f"Bearer {self.secret}"}

    @property
    def url(self) -> str:
        """The database's address, as a setting."""
        return self.database.url.set(drivername=self.database.kind).render_as_string(False)

    @property
    def balance(self) -> Balance:
        return self.ledger.balance("alice")

    @property
    def rows(self) -> list[Entry]:
        return list(self.ledger.entries("alice"))

    def gateway(self, **options: Any) -> Gateway:
        stores = {"key_store": self.key_store, "ledger": self.ledger}
        return Gateway(**{**self.options, **stores, **options})

    def top_up(self, nano: int) -> None:
        assert self.ledger.top_up("alice", nano, f"top-up to {self.balance.topped_up + nano}")

    def has_open_holds(self) -> bool:
        with self.database.reading() as connection:
            return bool(connection.scalar(sa.select(sa.func.count()).select_from(HOLDS)))

    def assert_books_are_exact(self) -> None:
        """Nothing is held, nothing is missing, and every row costs what its tokens do."""
        assert self.ledger.audit() == []
        assert not self.has_open_holds()
        balance, rows = self.balance, self.rows
        assert balance.held == 0
        assert balance.available + balance.spent == balance.topped_up
        assert balance.spent == sum(row.cost for row in rows)
        assert len({row.request_id for row in rows}) == len(rows)
        for row in rows:
            cost = INPUT * row.prompt_tokens + OUTPUT * row.completion_tokens
            assert row.cost == cost or (row.outcome, row.cost) == ("abandoned", 0)


@pytest.fixture
def shop(empty_database: Database, asking_provider: dict[str, Any]) -> Shop:
    """A shop whose model ``bot`` is answered by the scripted provider."""
    prices = {"input": "1", "output": "2"}
    models = {"bot": {**asking_provider["models"]["bot"], **prices}}
    return Shop(empty_database, {**asking_provider, "models": models})


# --- over a network ---------------------------------------------------------------


SERVED = """
import json
from oneai_middleware import OneAIMiddleware

def host(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(page()).encode()]

def page():
    return "the host's own page"

app = OneAIMiddleware(host, **{settings!r})
"""

# In the parent of the workers: its connections must not cross the fork.
WARM_UP = """
app.gateway.ledger.balance("alice")
"""


@pytest.fixture
def serve(shop: Shop, start_gunicorn: Any, eventually: Any) -> Callable[..., Any]:
    """Start gunicorn on the shop's gateway; ``more`` is further source."""

    def serve(*arguments: str, more: str = "", **options: Any) -> Any:
        settings = {**shop.options, "key_store": shop.url, **options}
        source = SERVED.format(settings=settings)
        if "--preload" in arguments:
            source += WARM_UP
        server = start_gunicorn(source + more, *arguments)
        assert server.get("/page") == "the host's own page" or more
        return server

    return serve


class Caller:
    """One connection to a server and the reply that comes over it."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = {**headers, "Content-Type": "application/json"}
        self._reply: Any = None

    def ask(self, **body: Any) -> int:
        """Send a chat request; the status of the reply."""
        messages = [{"role": "user", "content": "Say something"}]
        data = json.dumps({"model": "bot", "messages": messages, **body})
        self._connection.request("POST", "/oneai/v1/chat/completions", data, self._headers)
        self._reply = self._connection.getresponse()
        status: int = self._reply.status
        return status

    @property
    def request_id(self) -> str:
        return str(self._reply.headers["x-request-id"])

    @property
    def json(self) -> Any:
        return json.loads(self._reply.read())

    def event(self) -> str | None:
        """The data of the next event of a stream; None at its end."""
        for line in iter(self._reply.readline, b""):
            if line.startswith(b"data: "):
                return bytes(line[6:]).strip().decode()
        return None

    def leave(self) -> None:
        """Close the connection in good order."""
        if self._reply is not None:
            self._reply.close()
        self._connection.close()

    def vanish(self) -> None:
        """Reset the connection."""
        if self._connection.sock is not None:
            linger = struct.pack("ii", 1, 0)
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.leave()


@pytest.fixture
def call(shop: Shop) -> Iterator[Callable[[Any], Caller]]:
    """Callers of a server with alice's key."""
    callers: list[Caller] = []

    def call(server: Any) -> Caller:
        callers.append(Caller(server.port, shop.headers))
        return callers[-1]

    yield call
    for caller in callers:
        caller.leave()
