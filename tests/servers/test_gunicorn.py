"""What only gunicorn has: leases in its workers, bad bytes as it passes them on, its grace."""

from __future__ import annotations

import signal
import socket
import threading
from typing import Any

import pytest

# --- long answers, several workers ------------------------------------------------------


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_an_answer_that_outlasts_its_lease_keeps_slot_and_hold(
    serve: Any, completion: Any, eventually: Any, kind: str
) -> None:
    """Conformance 93."""
    done = threading.Event()

    def respond(turn: Any) -> None:
        turn.hold(done)
        turn.answer(completion("at last"))

    place = serve(kind, concurrent=1, lease=1.5)
    place.provider.respond = respond
    slow = place.call()
    slow.ask(stream=False)
    # One renewal in a third of a lease: four of them take more than a lease.
    state = eventually(lambda: (s := place.state())["renewals"] >= 4 and s, 20)
    assert state["used_slots"] == 1
    assert state["balance"]["held"] > 0
    status, body = place.reply(place.chat_request())
    assert (status, body["error"]["code"]) == (429, "concurrency_limit_exceeded")
    done.set()
    status, body = slow.reply()
    assert (status, body["choices"][0]["message"]["content"]) == (200, "at last")
    state = place.settled()
    assert [row["outcome"] for row in state["entries"]] == ["answered"]
    assert state["balance"]["spent"] == 7 * 1_000 + 3 * 2_000
    place.assert_books_are_exact(state)


@pytest.mark.parametrize(("allowed", "expected"), [(False, 503), (True, 200)])
def test_several_workers_serve_money_in_memory_only_if_allowed(
    serve: Any, allowed: bool, expected: int
) -> None:
    place = serve("gthread", "--workers", "2", allow_memory_ledger=allowed)
    status, body = place.reply(place.chat_request())
    assert status == expected
    if not allowed:
        assert body["error"]["code"] == "store_unavailable"
        assert "memory" not in body["error"]["message"]
        assert "allow_memory_ledger" in place.server.log.read_text()


def test_a_stream_runs_out_within_the_grace_of_a_server_told_to_stop(
    serve: Any, eventually: Any
) -> None:
    told = threading.Event()

    def respond(turn: Any) -> None:
        turn.start_stream()
        turn.text("before ")
        assert told.wait(20)
        turn.text("after", "stop")
        turn.event("[DONE]")

    place = serve("gthread", "--graceful-timeout", "20")
    place.provider.respond = respond
    caller = place.call()
    caller.ask(stream=True)
    assert caller.status() == 200
    assert "before" in caller.event()
    place.server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "Handling signal: term" in place.server.log.read_text())
    told.set()
    assert "after" in "".join(iter(caller.event, "[DONE]"))
    caller.leave()
    assert place.server.process.wait(20) == 0


# --- bad bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_odd_and_lying_requests_are_answered_and_never_hang(
    serve: Any, eventually: Any, kind: str
) -> None:
    """Conformance 41 and 42."""
    place = serve(kind, max_body_bytes=100_000)

    def first_reply(data: bytes, *, end: bool = False) -> int:
        caller = place.call()
        caller.send(data)
        if end:
            caller.socket.shutdown(socket.SHUT_WR)
        status: int = caller.status()
        caller.leave()
        return status

    whole = place.chat_request()
    body = whole.partition(b"\r\n\r\n")[2]
    chunked = place.head("Transfer-Encoding: chunked\r\n")
    piece = b"%x\r\n%s\r\n" % (len(body), body)
    assert first_reply(chunked + piece + b"0\r\n\r\n") == 200
    assert first_reply(chunked + piece, end=True) in (0, 400)
    assert first_reply(chunked + b"zz\r\nnonsense\r\n0\r\n\r\n") in (0, 400)
    huge = b"%x\r\n%s\r\n" % (200_000, b" " * 200_000)
    assert first_reply(chunked + huge + b"0\r\n\r\n") == 413
    # A length that is a lie: too much is never read, too little is never waited for.
    assert first_reply(place.head("Content-Length: 99999999999\r\n") + body) == 413
    assert first_reply(place.head("Content-Length: 500\r\n") + body, end=True) in (0, 400)
    assert first_reply(place.head("Content-Length: 5\r\n") + body) == 400
    assert first_reply(place.head()) == 400
    assert first_reply(place.chat_request(headers="Transfer-Encoding: chunked\r\n")) == 400
    assert first_reply(place.chat_request(headers="Content-Encoding: gzip\r\n")) == 415
    assert first_reply(whole) == 200
    state = eventually(place.settled)
    assert [row["outcome"] for row in state["entries"]] == ["answered"] * 2
    place.assert_books_are_exact(state)


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_a_request_sent_behind_a_refused_one_is_answered_or_cut_off(serve: Any, kind: str) -> None:
    place = serve(kind, max_body_bytes=100_000)
    refused = {
        401: place.chat_request().replace(b"Bearer ", b"Bearer oneai-sk-wrong"),
        413: place.head("Content-Length: 200000\r\n") + b" " * 200_000,
        404: place.head(line="GET /oneai/v1/nothing"),
        405: place.head(line="DELETE /oneai/v1/models"),
    }
    for expected, first in refused.items():
        caller = place.call()
        caller.send(first + place.head("Connection: close\r\n", line="GET /oneai/health"))
        status, body = caller.reply()
        assert status == expected
        assert set(body["error"]) == {"message", "type", "param", "code"}
        rest = caller.file.read()
        assert not rest or rest.startswith(b"HTTP/1.1 200 ") and rest.endswith(b'{"status":"ok"}')
        caller.leave()
