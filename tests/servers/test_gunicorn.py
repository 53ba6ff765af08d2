"""The gateway behind gunicorn: real sockets, real workers, a provider on a real port."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

WORKERS = {
    "gthread": ["-k", "gthread", "--threads", "8"],
    "gevent": ["-k", "gevent"],
    "preload": ["-k", "gthread", "--threads", "8", "--preload"],
}

# `/state` is a page of the host that says what only its own process can know.
SERVED = """
import dataclasses
import json
import threading

from werkzeug.test import Client

from oneai_middleware import OneAIMiddleware
from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.rate_limiters.base import Claim

SETTINGS = {settings!r}
SECRET = {secret!r}
LIMITS = Limits(concurrent={concurrent!r})


class CountingLedger(MemoryLedger):
    renewals = 0

    def checkpoint(self, draft, *, lease):
        super().checkpoint(draft, lease=lease)
        self.renewals += 1


def free_slots():
    grants = []
    try:
        while len(grants) < 50:
            grants.append(limiter.acquire("alice", [Claim("account:alice", LIMITS)], 0))
    except RateLimitExceeded:
        pass
    for grant in grants:
        limiter.cancel(grant)
    return len(grants)


def state():
    rows = [row._asdict() for row in ledger.entries("alice")]
    return {{
        "balance": ledger.balance("alice")._asdict(),
        "entries": [{{**row, "settled_at": None}} for row in rows],
        "faults": ledger.audit(),
        "free_slots": free_slots(),
        "renewals": ledger.renewals,
        "pumps": [t.name for t in threading.enumerate() if t.name == "oneai-pump"],
    }}


def host(environ, start_response):
    value = state() if environ["PATH_INFO"] == "/state" else "the host's own page"
    body = json.dumps(value).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


ledger = CountingLedger({{"alice": 10**10}})
app = OneAIMiddleware(
    host,
    ledger=ledger,
    accounts={{"alice": {{"tier": "enterprise", "keys": [SECRET],
                        "limits": {{"concurrent": LIMITS.concurrent}}}}}},
    **SETTINGS,
)
limiter = app.gateway.rate_limiter
"""

# In the parent of the workers: its connections, threads and locks must not cross the fork.
WARM_UP = """
for stream in (False, True):
    Client(app).post(
        "/oneai/v1/chat/completions",
        headers={{"Authorization": "Bearer " + SECRET}},
        json={{"model": "bot", "stream": stream,
              "messages": [{{"role": "user", "content": "hi"}}]}},
    )
"""


@pytest.fixture
def serve(
    start_gunicorn: Any, asking_provider: Any, provider: Any, secret: str
) -> Callable[..., Any]:
    """Start the app on a kind of worker and wait for it; the options are settings."""

    def serve(kind: str, *arguments: str, concurrent: int = 4, **options: Any) -> Any:
        source = SERVED + (WARM_UP if kind == "preload" else "")
        settings = {**asking_provider, **options}
        server = start_gunicorn(
            source.format(settings=settings, secret=secret, concurrent=concurrent),
            *WORKERS[kind],
            *arguments,
        )
        assert server.get("/state")["entries"] == []
        provider.turns.clear()
        return server

    return serve


# --- a client that knows nothing but bytes ----------------------------------------


class Caller:
    """One connection to the server."""

    def __init__(self, port: int, secret: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._secret = secret
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, *, stream: bool) -> None:
        self.send(chat_request(self._secret, stream=stream))

    def status(self) -> int:
        """The status of the next reply, its head read off; 0 if there is none."""
        line = self.file.readline()
        while self.file.readline().strip():
            pass
        return int(line.split()[1]) if line else 0

    def event(self) -> Any:
        """The next event of a stream, decoded; None at its end."""
        for line in self.file:
            if line.startswith(b"data: "):
                return line[6:].strip().decode()
        return None

    def reply(self) -> tuple[int, Any]:
        """A whole JSON reply."""
        status, length = int(self.file.readline().split()[1]), 0
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(":")
            length = int(value) if name.lower() == "content-length" else length
        return status, json.loads(self.file.read(length))

    def leave(self) -> None:
        """Close the connection in good order."""
        self.file.close()
        self.socket.close()

    def vanish(self) -> None:
        """Reset the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()


def chat_request(secret: str, *, stream: bool = False, headers: str = "") -> bytes:
    body = json.dumps(
        {
            "model": "bot",
            "stream": stream,
            "messages": [{"role": "user", "content": "Say something"}],
        }
    )
    return head(secret, f"Content-Length: {len(body)}\r\n{headers}") + body.encode()


def head(secret: str, headers: str = "", line: str = "POST /oneai/v1/chat/completions") -> bytes:
    fields = f"Host: test\r\nAuthorization: Bearer {secret}\r\n{headers}"
    return f"{line} HTTP/1.1\r\n{fields}\r\n".encode()


@pytest.fixture
def call(secret: str) -> Iterator[Callable[..., Caller]]:
    """Connections to a server, closed at the end."""
    callers: list[Caller] = []

    def call(server: Any) -> Caller:
        callers.append(Caller(server.port, secret))
        return callers[-1]

    yield call
    for caller in callers:
        caller.leave()


def assert_books_are_exact(state: Any) -> None:
    balance = state["balance"]
    assert state["faults"] == []
    assert balance["held"] == 0
    assert balance["available"] + balance["spent"] == 10**10
    assert balance["spent"] == sum(row["cost"] for row in state["entries"])
    for row in state["entries"]:
        assert row["cost"] == 1_000 * row["prompt_tokens"] + 2_000 * row["completion_tokens"]


# --- the answer as it comes ---------------------------------------------------------


@pytest.mark.parametrize("kind", WORKERS)
def test_the_first_event_arrives_before_the_provider_has_sent_its_second(
    serve: Any, call: Any, provider: Any, eventually: Any, kind: str
) -> None:
    """Conformance 59."""
    seen = threading.Event()

    def respond(turn: Any) -> None:
        turn.start_stream()
        turn.text("first ")
        assert seen.wait(20)
        turn.text("second", "stop", usage={"prompt_tokens": 7, "completion_tokens": 2})
        turn.event("[DONE]")

    server = serve(kind)
    provider.respond = respond
    caller = call(server)
    caller.ask(stream=True)
    assert caller.status() == 200
    assert json.loads(caller.event())["choices"][0]["delta"]["content"] == "first "
    seen.set()
    rest = list(iter(caller.event, "[DONE]"))
    assert "second" in "".join(rest)
    state = eventually(lambda: settled(server))
    assert state["balance"]["spent"] == 7 * 1_000 + 2 * 2_000
    assert_books_are_exact(state)


def settled(server: Any) -> Any:
    """What the server says of itself, once nothing is held or running."""
    state = server.get("/state")
    done = not state["balance"]["held"] and state["free_slots"] == 4 and not state["pumps"]
    return done and state


# --- the caller leaves ----------------------------------------------------------------


def _before_the_status(turn: Any) -> None:
    turn.hold()


def _in_silence(turn: Any) -> None:
    turn.start_stream()
    turn.text("one ")
    turn.hold()


def _in_mid_stream(turn: Any) -> None:
    turn.start_stream()
    while not turn.left.is_set():
        turn.text("more ")
        turn.hold(patience=0.01)


def _in_mid_answer(turn: Any) -> None:
    turn.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{")
    turn.hold()


MOMENTS: list[tuple[bool, Callable[[Any], None]]] = [
    (True, _before_the_status),
    (True, _in_silence),
    (True, _in_mid_stream),
    (False, _before_the_status),
    (False, _in_mid_answer),
]

AT_ONCE = 1.0
"""Seconds in which what a caller held must be free again once they have left."""


@pytest.mark.parametrize("how", [Caller.leave, Caller.vanish], ids=["FIN", "RST"])
@pytest.mark.parametrize("kind", WORKERS)
def test_a_caller_who_leaves_frees_all_they_held_at_once(
    serve: Any, call: Any, provider: Any, eventually: Any, kind: str, how: Any
) -> None:
    """Conformance 78."""
    # With a single place a call that kept it would refuse all further ones.
    server = serve(kind, max_calls=1)
    for number, (stream, respond) in enumerate(MOMENTS, 1):
        provider.respond = respond
        caller = call(server)
        caller.ask(stream=stream)
        turn = eventually(lambda number=number: provider.turns[number - 1 : number])[0]
        if stream and respond is not _before_the_status:
            assert caller.status() == 200
            assert "content" in caller.event()
        state = server.get("/state")
        assert state["balance"]["held"] > 0
        assert state["free_slots"] == 3
        how(caller)
        assert eventually(turn.left.is_set, AT_ONCE), "the provider still works for nobody"
        state = eventually(lambda: settled(server), AT_ONCE)
        assert [row["outcome"] for row in state["entries"]] == ["caller_left"] * number
        assert_books_are_exact(state)
    assert provider.turns[number:] == []


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_many_callers_who_leave_at_once_leave_nothing_behind(
    serve: Any, call: Any, provider: Any, eventually: Any, kind: str
) -> None:
    """Conformance 78."""
    server = serve(kind)
    provider.respond = _in_silence
    for turn in (1, 2):
        callers = [call(server) for _ in range(4)]
        for caller in callers:
            caller.ask(stream=True)
        for caller in callers:
            assert caller.status() == 200
        for caller in callers:
            (caller.vanish if turn == 1 else caller.leave)()
        state = eventually(lambda: settled(server), AT_ONCE)
        assert len(state["entries"]) == 4 * turn
        assert_books_are_exact(state)
    eventually(lambda: all(turn.left.is_set() for turn in provider.turns), AT_ONCE)


# --- long answers, full houses ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_an_answer_that_outlasts_its_lease_keeps_slot_and_hold(
    serve: Any, call: Any, provider: Any, completion: Any, eventually: Any, kind: str
) -> None:
    """Conformance 93."""
    done = threading.Event()

    def respond(turn: Any) -> None:
        turn.hold(done)
        turn.answer(completion("at last"))

    server = serve(kind, concurrent=1, lease=0.6)
    provider.respond = respond
    slow = call(server)
    slow.ask(stream=False)
    # At most one renewal a quarter of a second: six of them take two leases and more.
    state = eventually(lambda: (s := server.get("/state"))["renewals"] >= 6 and s, 20)
    assert state["free_slots"] == 0
    assert state["balance"]["held"] > 0
    second = call(server)
    second.ask(stream=False)
    status, body = second.reply()
    assert (status, body["error"]["code"]) == (429, "concurrency_limit_exceeded")
    done.set()
    status, body = slow.reply()
    assert (status, body["choices"][0]["message"]["content"]) == (200, "at last")
    state = server.get("/state")
    assert state["free_slots"] == 1
    assert [row["outcome"] for row in state["entries"]] == ["answered"]
    assert state["balance"]["spent"] == 7 * 1_000 + 3 * 2_000
    assert_books_are_exact(state)


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_the_hosts_own_page_is_served_while_all_places_are_taken(
    serve: Any, call: Any, provider: Any, kind: str
) -> None:
    server = serve(kind, max_calls=3)
    provider.respond = _in_silence
    callers = [call(server) for _ in range(3)]
    for caller in callers:
        caller.ask(stream=True)
        assert caller.status() == 200
    one_too_many = call(server)
    one_too_many.ask(stream=True)
    status, body = one_too_many.reply()
    assert (status, body["error"]["code"]) == (503, "gateway_overloaded")
    assert [server.get("/any/page") for _ in range(5)] == ["the host's own page"] * 5
    assert server.get("/oneai/health") == {"status": "ok"}


@pytest.mark.parametrize(("allowed", "expected"), [(False, 503), (True, 200)])
def test_several_workers_serve_money_in_memory_only_if_allowed(
    serve: Any, call: Any, allowed: bool, expected: int
) -> None:
    server = serve("gthread", "--workers", "2", allow_memory_ledger=allowed)
    caller = call(server)
    caller.ask(stream=False)
    status, body = caller.reply()
    assert status == expected
    if not allowed:
        assert body["error"]["code"] == "store_unavailable"
        assert "memory" not in body["error"]["message"]
        assert "allow_memory_ledger" in server.log.read_text()


# --- bad bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_odd_and_lying_requests_are_answered_and_never_hang(
    serve: Any, call: Any, secret: str, kind: str
) -> None:
    """Conformance 41 and 42."""
    server = serve(kind, max_body_bytes=100_000)

    def first_reply(data: bytes, *, end: bool = False) -> int:
        caller = call(server)
        caller.send(data)
        if end:
            caller.socket.shutdown(socket.SHUT_WR)
        status: int = caller.status()
        caller.leave()
        return status

    whole = chat_request(secret)
    body = whole.partition(b"\r\n\r\n")[2]
    chunked = head(secret, "Transfer-Encoding: chunked\r\n")
    piece = b"%x\r\n%s\r\n" % (len(body), body)
    assert first_reply(chunked + piece + b"0\r\n\r\n") == 200
    assert first_reply(chunked + piece, end=True) in (0, 400)
    assert first_reply(chunked + b"zz\r\nnonsense\r\n0\r\n\r\n") in (0, 400)
    huge = b"%x\r\n%s\r\n" % (200_000, b" " * 200_000)
    assert first_reply(chunked + huge + b"0\r\n\r\n") == 413
    # A length that is a lie: too much is never read, too little is never waited for.
    assert first_reply(head(secret, "Content-Length: 99999999999\r\n") + body) == 413
    assert first_reply(head(secret, "Content-Length: 500\r\n") + body, end=True) in (0, 400)
    assert first_reply(head(secret, "Content-Length: 5\r\n") + body) == 400
    assert first_reply(head(secret)) == 400
    assert first_reply(chat_request(secret, headers="Transfer-Encoding: chunked\r\n")) == 400
    assert first_reply(chat_request(secret, headers="Content-Encoding: gzip\r\n")) == 415
    assert first_reply(whole) == 200
    state = server.get("/state")
    assert [row["outcome"] for row in state["entries"]] == ["answered"] * 2
    assert_books_are_exact(state)


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_a_request_sent_behind_a_refused_one_is_answered_or_cut_off(
    serve: Any, call: Any, secret: str, kind: str
) -> None:
    refused = {
        401: chat_request("oneai-sk-wrong"),
        413: head(secret, "Content-Length: 200000\r\n") + b" " * 200_000,
        404: head(secret, line="GET /oneai/v1/nothing"),
        405: head(secret, line="DELETE /oneai/v1/models"),
    }
    server = serve(kind, max_body_bytes=100_000)
    for expected, first in refused.items():
        caller = call(server)
        caller.send(first + head(secret, "Connection: close\r\n", line="GET /oneai/health"))
        status, body = caller.reply()
        assert status == expected
        assert set(body["error"]) == {"message", "type", "param", "code"}
        rest = caller.file.read()
        assert not rest or rest.startswith(b"HTTP/1.1 200 ") and rest.endswith(b'{"status":"ok"}')
        caller.leave()
