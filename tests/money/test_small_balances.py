"""Two calls on a balance for little more than one, and one that needs more than it held."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from oneai_middleware.tokens import estimate_prompt

try:  # what the SDK travels on
    import httpx2 as httpx
except ImportError:  # older versions of it
    import httpx

INPUT, OUTPUT = 1_000, 2_000

CHAT: dict[str, Any] = {
    "model": "bot",
    "messages": [{"role": "user", "content": "Say something"}],
    "max_tokens": 100,
}
PROMPT = estimate_prompt(CHAT)
WHOLE = PROMPT * INPUT + 100 * OUTPUT
"""What is held for such a call, in nano-dollars."""


class Recorder:
    """Counts the requests that reach an app, and keeps the headers of its replies."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.heads: list[tuple[int, dict[str, str]]] = []

    def __call__(self, environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            lowered = {name.lower(): value for name, value in headers}
            self.heads.append((int(status[:3]), lowered))
            return start_response(status, headers, *more)

        return self._app(environ, start)


@pytest.fixture
def connect_sdk(shop: Any) -> Iterator[Callable[[Any], tuple[openai.OpenAI, Recorder]]]:
    """The stock client on a gateway, without a network in between."""
    opened: list[httpx.Client] = []

    def connect(gateway: Any) -> tuple[openai.OpenAI, Recorder]:
        recorder = Recorder(gateway)
        opened.append(httpx.Client(transport=httpx.WSGITransport(app=recorder)))
        client = openai.OpenAI(
            api_key=shop.secret, base_url="http://test/v1", http_client=opened[-1]
        )
        return client, recorder

    yield connect
    for each in opened:
        each.close()


def test_the_second_call_is_served_with_what_the_first_leaves(
    shop: Any, provider: Any, send: Any, eventually: Any, completion: Any
) -> None:
    go = threading.Event()

    def respond(turn: Any) -> None:
        turn.hold(go)
        usage = {"prompt_tokens": PROMPT, "completion_tokens": turn.json["max_tokens"]}
        turn.answer(completion("hello", usage=usage))

    provider.respond = respond
    shop.top_up(WHOLE + PROMPT * INPUT + 40 * OUTPUT + 1)
    gateway = shop.gateway()
    with ThreadPoolExecutor() as pool:
        ask = (send, gateway, "POST", "/v1/chat/completions", CHAT, shop.headers)
        first = pool.submit(*ask)
        eventually(lambda: provider.turns)
        second = pool.submit(*ask)
        eventually(lambda: len(provider.turns) == 2)
        assert shop.balance.available == 0
        go.set()
        first, second = first.result(), second.result()
    assert [turn.json["max_tokens"] for turn in provider.turns] == [100, 40]
    assert (first.status, second.status) == (200, 200)
    assert "x-oneai-changed" not in first.headers
    assert second.headers["x-oneai-changed"] == "max_tokens"
    assert (shop.balance.available, shop.balance.spent) == (1, shop.balance.topped_up - 1)
    shop.assert_books_are_exact()


def test_a_call_on_hold_is_served_at_the_sdks_own_retry(
    shop: Any, provider: Any, connect_sdk: Any, eventually: Any, completion: Any
) -> None:
    go = threading.Event()

    def respond(turn: Any) -> None:
        turn.hold(go)
        usage = {"prompt_tokens": PROMPT, "completion_tokens": turn.json["max_tokens"] // 2}
        turn.answer(completion("hello", usage=usage))

    provider.respond = respond
    shop.top_up(WHOLE)  # all of it held by the first, half of it spent
    client, seen = connect_sdk(shop.gateway())
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lambda: client.chat.completions.create(**CHAT))
        eventually(lambda: provider.turns)
        second = pool.submit(lambda: client.chat.completions.create(**CHAT))
        status, headers = eventually(lambda: seen.heads)[0]
        assert (status, headers["retry-after"]) == (429, "1")
        assert headers.get("x-should-retry") != "false"
        assert shop.balance.held == WHOLE
        go.set()
        assert first.result().choices[0].message.content == "hello"
        assert second.result().choices[0].message.content == "hello"
    assert sorted(status for status, _ in seen.heads) == [200, 200, 429]
    assert len(provider.turns) == 2
    shop.assert_books_are_exact()


def test_a_call_is_refused_for_good_when_the_money_is_gone(
    shop: Any, provider: Any, connect_sdk: Any, completion: Any
) -> None:
    """Conformance 81."""
    provider.respond = lambda turn: turn.answer(
        completion("hello", usage={"prompt_tokens": PROMPT, "completion_tokens": 100})
    )
    shop.top_up(WHOLE + 1)
    client, seen = connect_sdk(shop.gateway())
    assert client.chat.completions.create(**CHAT).choices[0].message.content == "hello"
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**CHAT)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_balance")
    assert [status for status, _ in seen.heads] == [200, 402]
    assert shop.balance.available == 1
    shop.assert_books_are_exact()


def test_of_two_at_once_one_gets_the_last_cent(
    shop: Any, provider: Any, send: Any, eventually: Any, completion: Any
) -> None:
    """Conformance 105."""
    usage = {"prompt_tokens": PROMPT, "completion_tokens": 100}
    provider.respond = lambda turn: turn.answer(completion("hello", usage=usage))
    gateway = shop.gateway()
    ask = (send, gateway, "POST", "/v1/chat/completions", CHAT, shop.headers)
    for last in range(1, 9):
        shop.top_up(WHOLE)
        together = threading.Barrier(4)

        def call(together: threading.Barrier = together) -> Any:
            together.wait(30)
            return ask[0](*ask[1:])

        with ThreadPoolExecutor(4) as pool:
            replies = [future.result() for future in [pool.submit(call) for _ in range(4)]]
        assert sorted(reply.status for reply in replies)[0] == 200
        assert {reply.status for reply in replies[1:]} <= {200, 402, 429}
        assert [reply.status for reply in replies].count(200) == 1
        assert len(provider.turns) == last
        assert shop.balance.available == 0
    shop.assert_books_are_exact()


def test_a_stream_that_outgrows_its_hold_goes_on_as_long_as_the_money_does(
    shop: Any, provider: Any, send: Any, eventually: Any
) -> None:
    def respond(turn: Any) -> None:
        turn.start_stream()
        while not turn.left.is_set():
            turn.text("word " * 30)
            turn.hold(patience=0.02)

    provider.respond = respond
    least = PROMPT * INPUT + 16 * OUTPUT
    shop.top_up(least + 1_000 * OUTPUT)
    gateway = shop.gateway(default_output=16, lease=0.3)
    chat = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    reply = send(gateway, "POST", "/v1/chat/completions", {**chat, "stream": True}, shop.headers)
    assert reply.status == 200
    held = []
    events = []
    for item in reply.body:
        held.append(shop.balance.held)
        lines = [line for line in item.splitlines() if line.startswith(b"data: {")]
        events += [json.loads(line[6:]) for line in lines]
    reply.close()
    assert held[0] == least
    assert least < held[len(held) // 2] < max(held)
    assert "max_tokens" not in provider.turns[0].json
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    eventually(lambda: provider.turns[0].left.is_set())
    (row,) = shop.rows
    assert row.outcome == "balance_exhausted"
    assert shop.balance.available == 0
    assert row.cost == shop.balance.topped_up
    assert shop.ledger.audit() == []
