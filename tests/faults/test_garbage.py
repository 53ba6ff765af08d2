"""Replies that make no sense: not HTTP, not JSON, or not an answer."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from oneai_middleware.backends.openai.transports import TRANSPORTS

BAD, BUSY, SHUT = "upstream_error", "model_overloaded", "provider_unavailable"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SAID = b'{"choices":[{"index":0,"message":{"content":"hello"},"finish_reason":"stop"}]}'

# What is sent in place of a status, headers and a body.
NO_HTTP = {
    "another protocol": b"220 smtp.example ESMTP\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "zeros": b"\0" * 1000,
    "a body alone": SAID,
    "an empty line": b"\r\n",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a version from the future": b"HTTP/9.9 200 OK\r\n\r\n",
    "an endless status": b"HTTP/1.1 200 " + b"x" * 70_000,
    "an endless header": JSON + b"X: " + b"x" * 70_000,
    "too many headers": JSON + b"X: y\r\n" * 200 + b"\r\n",
    "two lengths": JSON + b"Content-Length: 7\r\nContent-Length: 8\r\n\r\n" + SAID,
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "a part": b"HTTP/1.1 206 Partial Content\r\nContent-Length: 78\r\n\r\n" + SAID,
    "a length too short": JSON + b"Content-Length: 20\r\n\r\n" + SAID,
    "a length too long": JSON + b"Content-Length: 999\r\n\r\n" + SAID,
    "a piece of no size": JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + SAID,
    "a piece of negative size": JSON + b"Transfer-Encoding: chunked\r\n\r\n-4e\r\n" + SAID,
    "an endless piece size": JSON + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 70_000,
    "no last piece": JSON + b"Transfer-Encoding: chunked\r\n\r\n4e\r\n" + SAID + b"\r\n",
    "what is no gzip": JSON + b"Content-Encoding: gzip\r\n\r\n" + SAID,
    "an unknown coding": JSON + b"Content-Encoding: br\r\n\r\n\x8b\x02\x80",
}

# What a reply of status 200 holds, and what it means.
NO_ANSWERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", BAD),
    "blank lines": (b"\n\n\n", BAD),
    "a web page": (b"<!doctype html><title>Welcome</title>", BAD),
    "half an object": (SAID[:-9], BAD),
    "two objects": (SAID + SAID, BAD),
    "an object and a word": (SAID + b" done", BAD),
    "an event stream": (b"data: " + SAID + b"\n\ndata: [DONE]\n\n", BAD),
    "a list": (b"[" + SAID + b"]", BAD),
    "a string": (b'"hello"', BAD),
    "a number": (b"42", BAD),
    "null": (b"null", BAD),
    "an empty object": (b"{}", BAD),
    "no choices": (b'{"id": "up", "object": "chat.completion"}', BAD),
    "empty choices": (b'{"choices": []}', BAD),
    "choices of null": (b'{"choices": null}', BAD),
    "choices of text": (b'{"choices": "hello"}', BAD),
    "a choice of null": (b'{"choices": [null]}', BAD),
    "a choice of nothing": (b'{"choices": [{}]}', BAD),
    "a message of null": (b'{"choices": [{"message": null}]}', BAD),
    "a message of text": (b'{"choices": [{"message": "hello"}]}', BAD),
    "what is no UTF-8": (SAID.replace(b"hello", b"\xff\xfe"), BAD),
    "half a character": (SAID.replace(b"hello", "é".encode()[:1]), BAD),
    "half a surrogate pair": (SAID.replace(b"hello", rb"\ud83d"), BAD),
    "a control character": (SAID.replace(b"hello", b"\x00"), BAD),
    "not a number": (SAID.replace(b"0", b"NaN"), BAD),
    "a deep nest": (b"[" * 100_000, BAD),
    "an error": (b'{"error": {"message": "it broke"}}', BAD),
    "an error of text": (b'{"error": "it broke"}', BAD),
    "an error of a number": (b'{"error": 500}', BAD),
    "an error beside choices": (SAID[:-1] + b', "error": {"message": "no"}}', BAD),
    "an error of a busy one": (b'{"error": {"message": "wait", "code": 429}}', BUSY),
    "an error about the key": (b'{"error": {"code": "invalid_api_key"}}', SHUT),
    "a detail": (b'{"detail": "it broke"}', BAD),
    "a bare code": (b'{"code": 50000, "message": "it broke"}', BAD),
    "base_resp": (b'{"base_resp": {"status_code": 1000}, "choices": null}', BAD),
    "network_error": (SAID.replace(b'"stop"', b'"network_error"'), BUSY),
    "insufficient_system_resource": (
        SAID.replace(b'"stop"', b'"insufficient_system_resource"'),
        BUSY,
    ),
}

over_each = pytest.mark.parametrize("transport", TRANSPORTS)
both = pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])


@over_each
@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_reply_of_http_is_a_502_and_free(make_stage: Any, name: str) -> None:
    """Conformance 90."""
    stage = make_stage(lambda line: line.raw(NO_HTTP[name]))
    stage.assert_failed(False, BAD)
    stage.assert_failed(True, BAD)


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_a_200_without_an_answer_is_the_error_it_is_and_free(make_stage: Any, name: str) -> None:
    """Conformance 55, 56, 68 and 90."""
    body, code = NO_ANSWERS[name]

    def play_an_event(line: Any) -> None:
        line.stream()
        line.send(b"data: " + body + b"\n\n")

    stage = make_stage(lambda line: line.whole(body))
    stage.assert_failed(False, code)
    stage.assert_failed(True, code)
    stage.plays["p0"] = play_an_event
    stage.assert_failed(True, code)


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_an_event_without_an_answer_ends_an_answer_that_has_begun(
    make_stage: Any, name: str
) -> None:
    """Conformance 69, 70 and 71."""
    body, code = NO_ANSWERS[name]

    def play(line: Any) -> None:
        line.stream()
        line.say("half an ")
        line.send(b"data: " + body + b"\n\n")

    make_stage(play).assert_failed(True, code, "half an ")


@over_each
@both
@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_an_interim_reply_gives_no_caller_the_answer_to_another(
    make_stage: Any, status: str, stream: bool
) -> None:
    """The final reply comes late: perhaps when the connection serves another call."""
    is_asked_again = threading.Event()

    def play(line: Any) -> None:
        asked = line.turn.json["messages"][0]["content"]
        if asked == "the first":
            line.raw(f"HTTP/1.1 {status}\r\n\r\n".encode())
            line.turn.hold(until=is_asked_again, patience=0.3)
        line.well(f"for {asked}")

    stage = make_stage(play)
    first = stage.ask(stream, messages=[{"role": "user", "content": "the first"}])
    assert first.code == "upstream_error" or first.text == "for the first"
    threading.Timer(0.05, is_asked_again.set).start()
    second = stage.ask(False, messages=[{"role": "user", "content": "the second"}])
    assert (second.error, second.text) == (None, "for the second")
