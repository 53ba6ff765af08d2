"""Each way a provider can break a stream, as programs with the official clients see it.

The clients take a stream that merely stops for a complete answer. So whatever the
provider does, they must be told: by a status while there is no output yet, and by an
error event after it.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from oneai_middleware.tokens import TextCounter, estimate_prompt

ASKED = {"model": "bot", "messages": [{"role": "user", "content": "Say something"}]}
INPUT, OUTPUT = 1_000, 2_000  # nano-dollars per token

CLIENTS = ["python", "node"]
PATIENCE = 0.3
"""Seconds of silence that end a call, in the tests of silence."""

Break = Callable[[Any, bytes], None]


# --- the table ------------------------------------------------------------------


def _chunk(**choice: Any) -> bytes:
    chunk = {"id": "up", "choices": [{"index": 0, "delta": {}, **choice}]}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


HALF = _chunk(delta={"content": "half an "})

# What follows the output, or stands in its place, before the connection is closed.
TAILS = {
    "nothing": b"",
    "half an event": b'data: {"choices": [{"ind',
    "half a character": b'data: {"choices": [{"index": 0, "delta": {"content": "\xf0\x9f',
    "no JSON": b"data: oops\n\n",
    "two objects at once": b"data: {}{}\n\n",
    "a list": b"data: []\n\n",
    "a string": b'data: "oops"\n\n',
    "a number": b"data: 7\n\n",
    "null": b"data: null\n\n",
    "invalid UTF-8": _chunk(delta={"content": "?"}).replace(b"?", b"\xff\xfe"),
    "half a surrogate": _chunk(delta={"content": "\ud83d"}),
    "choices of null": b'data: {"id": "up", "choices": null}\n\n',
    "no choices": b'data: {"id": "up"}\n\n',
    "an error event": b'event: error\ndata: {"message": "sk-upstream-secret is empty"}\n\n',
    "an error event without data": b"event: error\n\n",
    "an error": b'data: {"error": {"message": "sk-upstream-secret is empty", "code": 500}}\n\n',
    "an error beside choices": b'data: {"error": {"message": "no"}, "choices": []}\n\n',
    "an error of text": b'data: {"error": "sk-upstream-secret is empty"}\n\n',
    "a web page": b"<!doctype html>\n<title>Bad gateway</title>\n",
    "an endless line": b"data: " + b"x" * (2 << 20),
    "an endless event": b"data: x\n" * (1 << 18),
    "the reason network_error": _chunk(finish_reason="network_error"),
    "the reason insufficient_system_resource": _chunk(finish_reason="insufficient_system_resource"),
}


def _tail(data: bytes) -> Break:
    def play(turn: Any, first: bytes) -> None:
        turn.start_stream()
        turn.raw(first + data)

    return play


def _head(turn: Any, *headers: str) -> None:
    """The head of a stream whose end is told by ``headers``."""
    turn._handler.close_connection = True
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", *headers, "", ""]
    turn.raw("\r\n".join(lines).encode())


def _reset(turn: Any) -> None:
    turn._handler.close_connection = True
    connection = turn._handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _resets(turn: Any, first: bytes) -> None:
    turn.start_stream()
    turn.raw(first)
    _reset(turn)


def _is_silent(turn: Any, first: bytes) -> None:
    turn.start_stream()
    turn.raw(first)
    turn.hold()


def _sends_less_than_announced(turn: Any, first: bytes) -> None:
    _head(turn, "Content-Length: 9999")
    turn.raw(first)


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _cuts_a_piece(turn: Any, first: bytes) -> None:
    _head(turn, "Transfer-Encoding: chunked")
    turn.raw(_piece(first) + b"400\r\ndata: {")


def _misses_the_last_piece(turn: Any, first: bytes) -> None:
    _head(turn, "Transfer-Encoding: chunked")
    turn.raw(_piece(first))


def _sends_a_piece_of_no_size(turn: Any, first: bytes) -> None:
    _head(turn, "Transfer-Encoding: chunked")
    turn.raw(_piece(first) + b"zz\r\ndata: {}\r\n")


def _cuts_the_compressed(turn: Any, first: bytes) -> None:
    turn.start_stream({"Content-Encoding": "gzip"})
    # Stored and not packed, so that what comes before the cut can be read.
    turn.raw(gzip.compress(first + _chunk(finish_reason="stop"), 0)[: 15 + len(first)])


BREAKS: dict[str, Break] = {
    **{name: _tail(data) for name, data in TAILS.items()},
    "a reset": _resets,
    "silence": _is_silent,
    "less than announced": _sends_less_than_announced,
    "a cut piece": _cuts_a_piece,
    "no last piece": _misses_the_last_piece,
    "a piece of no size": _sends_a_piece_of_no_size,
    "cut gzip": _cuts_the_compressed,
}

OUTCOMES = {
    "silence": (504, "upstream_timeout"),
    "the reason network_error": (503, "model_overloaded"),
    "the reason insufficient_system_resource": (503, "model_overloaded"),
}
"""Status and code where they are not 502 and ``upstream_error``."""

# --- what can only come instead of a stream -----------------------------------------

Instead = Callable[[Any], None]


def _closes(turn: Any) -> None:
    turn._handler.close_connection = True


def _talks_nonsense(turn: Any) -> None:
    turn._handler.close_connection = True
    turn.raw(b"220 smtp.example ESMTP\r\n")


def _says(value: Any, status: int = 200, **headers: str) -> Instead:
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda turn: turn.answer(value, status, headers)


def _only_says_done(turn: Any) -> None:
    turn.start_stream()
    turn.event("[DONE]")


PAGE = b"<!doctype html><title>Bad gateway of sk-upstream-secret</title>"
REFUSAL = {"error": {"message": "sk-upstream-secret is empty", "code": "arrears"}}
BAD, BUSY, TIRED, SHUT = (
    (502, "upstream_error"),
    (503, "model_overloaded"),
    (504, "upstream_timeout"),
    (503, "provider_unavailable"),
)

INSTEAD: dict[str, tuple[Instead, tuple[int, str]]] = {
    "a closed connection": (_closes, BAD),
    "a reset connection": (_reset, BAD),
    "silence": (lambda turn: turn.hold(), TIRED),
    "nonsense": (_talks_nonsense, BAD),
    "done at once": (_only_says_done, BAD),
    "a web page": (_says(PAGE, Content_Type="text/html"), BAD),
    "a web page called a stream": (_says(PAGE, Content_Type="text/event-stream"), BAD),
    "an empty body": (_says(b""), BAD),
    "an error": (_says(REFUSAL), BAD),
    "an error of text": (_says({"error": "sk-upstream-secret is empty"}), BAD),
    "an error called a stream": (_says(REFUSAL, Content_Type="text/event-stream"), BAD),
    "a busy one's error": (_says({"error": {"message": "busy", "code": 429}}), BUSY),
    "an answer without choices": (_says({"id": "up", "choices": []}), BAD),
    "what is no gzip": (_says(HALF, Content_Encoding="gzip"), BAD),
    "a redirect": (_says(b"", 302, Location="/elsewhere"), BAD),
    "a page of status 500": (_says(PAGE, 500, Content_Type="text/html"), BAD),
    "a page of status 503": (_says(PAGE, 503, Content_Type="text/html"), BUSY),
    "status 429": (_says(REFUSAL, 429, Retry_After="7"), BUSY),
    "status 504": (_says(REFUSAL, 504), TIRED),
    "status 401": (_says(REFUSAL, 401), SHUT),
    "status 402": (_says(REFUSAL, 402), SHUT),
    "status 404": (_says(REFUSAL, 404), SHUT),
}


# --- the tests ----------------------------------------------------------------------


@pytest.fixture
def serve(
    listen: Any, make_app: Any, provider: Any, asking_provider: Any
) -> Callable[..., tuple[str, Any]]:
    """Serve a gateway whose provider does as it is told; its base URL and its ledger.

    One call at a time: a slot that is not given back refuses the next.
    """

    def serve(respond: Callable[[Any], None], **settings: Any) -> tuple[str, Any]:
        provider.respond = respond
        account = {"limits": {"concurrent": 1}}
        app = make_app(account=account, **asking_provider, **settings)
        return listen(app), app.gateway.ledger

    return serve


def _patience(name: str) -> float:
    return PATIENCE if name == "silence" else 30.0


def assert_told(error: Any, kind: str, status: int | None, code: str) -> None:
    assert error is not None, "the stream ended as if it were complete"
    assert (error["class"], error["status"], error["code"]) == (kind, status, code)
    assert "sk-upstream" not in error["message"]


def tokens_of(text: str) -> int:
    counter = TextCounter()
    counter.add(text)
    return counter.tokens


@pytest.mark.parametrize("sdk", CLIENTS, indirect=True)
@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_breaks_after_output_ends_in_an_error_and_costs_what_came(
    serve: Any, sdk: Any, provider: Any, eventually: Any, name: str
) -> None:
    """Conformance 69, 70, 71 and 73."""
    base_url, ledger = serve(lambda turn: BREAKS[name](turn, HALF), idle_timeout=_patience(name))
    code = OUTCOMES.get(name, BAD)[1]
    for door in ("stream", "helper"):
        seen = sdk(door, base_url, **ASKED)
        assert_told(seen.error, "APIError", None, code)
        assert (seen.text, seen.answer) == ("half an ", None)
    cost = estimate_prompt(ASKED) * INPUT + tokens_of("half an ") * OUTPUT
    assert [(row.outcome, row.cost) for row in ledger.entries("alice")] == [(code, cost)] * 2
    balance = ledger.balance("alice")
    assert (balance.held, balance.spent) == (0, 2 * cost)
    eventually(lambda: not provider.connections)


@pytest.mark.parametrize("sdk", CLIENTS, indirect=True)
@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_breaks_before_output_is_an_error_with_a_status_and_free(
    serve: Any, sdk: Any, provider: Any, eventually: Any, name: str
) -> None:
    """Conformance 68 and 90."""
    base_url, ledger = serve(
        lambda turn: BREAKS[name](turn, b""), first_token_timeout=_patience(name)
    )
    seen = sdk("stream", base_url, **ASKED)
    assert_told(seen.error, "InternalServerError", *OUTCOMES.get(name, BAD))
    assert seen.chunks == []
    balance = ledger.balance("alice")
    assert (balance.held, balance.spent) == (0, 0)
    eventually(lambda: not provider.connections)


@pytest.mark.parametrize("sdk", CLIENTS, indirect=True)
@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_no_stream_at_all_is_an_error_with_a_status_and_free(
    serve: Any, sdk: Any, name: str
) -> None:
    """Conformance 68, 82, 87 and 90."""
    respond, outcome = INSTEAD[name]
    base_url, ledger = serve(respond, first_token_timeout=_patience(name))
    seen = sdk("stream", base_url, **ASKED)
    assert_told(seen.error, "InternalServerError", *outcome)
    assert (seen.error["retry_after"] is not None) == (outcome == BUSY)
    assert seen.chunks == []
    balance = ledger.balance("alice")
    assert (balance.held, balance.spent) == (0, 0)


@pytest.mark.parametrize("sdk", CLIENTS, indirect=True)
@pytest.mark.parametrize("door", ["create", "stream"])
def test_a_provider_that_cannot_be_reached_is_a_502(
    make_app: Any, listen: Any, asking_provider: Any, sdk: Any, door: str
) -> None:
    """Conformance 87."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and nobody listens
        row = asking_provider["providers"]["scripted"]
        row["base_url"] = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        app = make_app(**asking_provider)
        seen = sdk(door, listen(app), **ASKED)
    assert_told(seen.error, "InternalServerError", *BAD)
    balance = app.gateway.ledger.balance("alice")
    assert (balance.held, balance.spent) == (0, 0)


@pytest.mark.parametrize("sdk", CLIENTS, indirect=True)
def test_a_provider_that_never_answers_is_a_504(
    make_app: Any, listen: Any, provider: Any, asking_provider: Any, sdk: Any
) -> None:
    """Conformance 87."""
    provider.respond = lambda turn: turn.hold()
    app = make_app(**asking_provider, total_timeout=PATIENCE)
    seen = sdk("create", listen(app), **ASKED)
    assert_told(seen.error, "InternalServerError", *TIRED)
    balance = app.gateway.ledger.balance("alice")
    assert (balance.held, balance.spent) == (0, 0)
