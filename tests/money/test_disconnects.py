"""Callers who leave a real server at random points: they pay for what was handed over."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from oneai_middleware.tokens import TextCounter, estimate_prompt

CALLERS = 10
PROMPT = estimate_prompt({"messages": [{"role": "user", "content": "Say something"}]})
WORDS = 12

# Between the gateway and the server, which takes one piece after the other.
LISTENING = """
class Listening:
    def __init__(self, body, heard):
        self.body, self.heard = body, heard

    def __iter__(self):
        return self

    def __next__(self):
        item = next(self.body)
        for line in item.splitlines():
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:]).get("choices", ()):
                    self.heard.append(choice["delta"].get("content") or "")
        return item

    def close(self):
        self.body.close()

def page():
    return heard

def listening(environ, start_response):
    sent = {}
    body = oneai(environ, lambda *head: (sent.update(head[1]), start_response(*head))[1])
    if not sent["Content-Type"].startswith("text/event-stream"):
        return body
    return Listening(body, heard.setdefault(sent["x-request-id"], []))

heard = {}
oneai, app = app, listening
"""

on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@on_both
def test_who_leaves_pays_for_the_prompt_and_what_was_handed_over(
    shop: Any, serve: Any, call: Any, provider: Any, eventually: Any
) -> None:
    """Conformance 78."""
    _leave_many_times(100, shop, serve, call, provider, eventually)


@pytest.mark.soak
@on_both
def test_however_many_leave_each_pays_for_what_was_handed_over(
    shop: Any, serve: Any, call: Any, provider: Any, eventually: Any
) -> None:
    """Conformance 78."""
    _leave_many_times(1_000, shop, serve, call, provider, eventually)


def _leave_many_times(
    count: int, shop: Any, serve: Any, call: Any, provider: Any, eventually: Any
) -> None:
    provider.respond = _respond
    shop.top_up(10**12)
    server = serve("-k", "gthread", "--threads", "32", more=LISTENING)
    with ThreadPoolExecutor(CALLERS) as pool:
        left = list(pool.map(lambda number: _leave_at_random(call(server), number), range(count)))
    eventually(lambda: not shop.has_open_holds(), 30)
    shop.assert_books_are_exact()
    rows, heard = {row.request_id: row for row in shop.rows}, server.get("/heard")
    assert sorted(rows) == sorted(left) == sorted(heard)  # none is missing, none is there twice
    assert {row.outcome for row in rows.values()} == {"caller_left"}
    assert {row.prompt_tokens for row in rows.values()} == {PROMPT}
    paid = {id: row.completion_tokens for id, row in rows.items()}
    assert paid == {id: _tokens(pieces) for id, pieces in heard.items()}
    assert len(set(paid.values())) > WORDS / 2  # they left at different points


def _leave_at_random(caller: Any, number: int) -> str:
    choice = random.Random(number)
    while (status := caller.ask(stream=True)) != 200:
        assert (status, caller.json["error"]["code"]) == (503, "gateway_overloaded")
        time.sleep(0.05)  # others who left are still in their places
    for _ in range(choice.randrange(WORDS)):
        assert "word" in caller.event()
    choice.choice([caller.leave, caller.vanish])()
    return str(caller.request_id)


def _respond(turn: Any) -> None:
    """Some words, and then nothing more until the caller has left."""
    turn.start_stream()
    for _ in range(WORDS):
        if turn.hold(patience=0.01):
            return
        turn.text("word and word ")
    turn.hold()


def _tokens(pieces: list[str]) -> int:
    counter = TextCounter()
    for piece in pieces:
        counter.add(piece)
    return counter.tokens
