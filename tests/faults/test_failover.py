"""When the first route fails, the next one answers, as long as nothing has gone out."""

from __future__ import annotations

import threading
from typing import Any

import pytest

HALF = "half an "
BUSY, BAD = "model_overloaded", "upstream_error"


def role(line: Any) -> None:
    """A stream that has said who speaks, and nothing more."""
    line.stream()
    if line.streams:
        line.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


FAILURES: dict[str, Any] = {
    "a cut": lambda line: None,
    "a reset": lambda line: line.reset(),
    "a head and a cut": lambda line: line.stream(),
    "comments and a reset": lambda line: (
        line.stream(),
        line.send(b": wait\n\n"),
        line.reset(),
    ),
    "a role and a cut": role,
    "a role and a reset": lambda line: (role(line), line.reset()),
    "a role and an error": lambda line: (role(line), line.event({"error": {"message": "no"}})),
    "a role and nonsense": lambda line: (role(line), line.event("{oops")),
    "a role and an endless line": lambda line: (role(line), line.send(b"x" * (2 << 20))),
    "a role and done": lambda line: (role(line), line.event("[DONE]")),
    "a role and a stall": lambda line: (role(line), line.stall(0.5)),
    "a stall": lambda line: line.stall(0.5),
    "done at once": lambda line: (line.stream(), line.event("[DONE]")),
    "network_error": lambda line: (
        line.stream(),
        line.send(b'data: {"choices": [{"index": 0, "finish_reason": "network_error"}]}\n\n'),
    ),
    "no HTTP": lambda line: line.raw(b"220 smtp.example ESMTP\r\n"),
    "a web page": lambda line: line.whole(b"<html>"),
    "nothing": lambda line: line.whole(b""),
    "no choices": lambda line: line.whole({"choices": []}),
    "an error in a 200": lambda line: line.whole({"error": {"message": "no"}}),
    "a redirect": lambda line: line.whole({}, "Location: /", status="307 Moved"),
    "401": lambda line: line.whole({}, status="401 No"),
    "402": lambda line: line.whole({}, status="402 No"),
    "404": lambda line: line.whole({}, status="404 No"),
    "429": lambda line: line.whole({}, "Retry-After: 7", status="429 No"),
    "500": lambda line: line.whole({}, status="500 No"),
    "503": lambda line: line.whole({}, status="503 No"),
    "504": lambda line: line.whole({}, status="504 No"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_route_that_fails_before_output_is_followed_by_the_next_which_alone_is_paid(
    make_stage: Any, name: str
) -> None:
    """Conformance 90."""
    stage = make_stage(
        FAILURES[name],
        lambda line: line.well(),
        first_row={"timeouts": {"first_token": 5, "total": 5}},
        first_token_timeout=1e6,
    )
    for stream in (False, True):
        seen = stage.assert_answered(stream)
        assert stage.row_of(seen).provider == "p1"
    tried = stage.notes("dispatch")
    assert len(tried) == stage.asked[0] >= 2 == stage.asked[1]
    assert all("provider p0 failed: " in line and "; trying on" in line for line in tried)


@pytest.mark.parametrize("name", [name for name in FAILURES if "stall" not in name])
def test_what_fails_on_every_route_is_told_once_and_free(make_stage: Any, name: str) -> None:
    """Conformance 68 and 90."""
    stage = make_stage(*[FAILURES[name]] * 2)
    for stream in (False, True):
        seen = stage.ask(stream)
        assert seen.status in (502, 503, 504)
        assert (stage.row_of(seen).provider, stage.row_of(seen).cost) == ("p1", 0)


def test_the_first_route_is_asked_twice_at_most_and_every_other_once(make_stage: Any) -> None:
    stage = make_stage(*[lambda line: line.reset()] * 3)
    stage.assert_failed(False, BAD)
    assert stage.asked == [2, 1, 1]
    stage.assert_failed(True, BAD)
    assert stage.asked == [4, 2, 2]


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
def test_a_connection_that_breaks_once_is_made_good_by_the_same_route(
    make_stage: Any, stream: bool
) -> None:
    stage = make_stage(
        lambda line: line.reset() if len(stage.lines["p0"]) == 1 else line.well(),
        lambda line: line.well("of the second route"),
    )
    stage.assert_answered(stream)
    assert stage.asked == [2, 0]


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
def test_no_other_route_is_asked_for_what_the_caller_got_wrong(
    make_stage: Any, stream: bool
) -> None:
    stage = make_stage(
        lambda line: line.whole({"error": {"message": "bad top_p"}}, status="400 Bad"),
        lambda line: line.well(),
    )
    stage.assert_failed(stream, "invalid_value")
    assert stage.asked == [1, 0]


@pytest.mark.parametrize("name", ["cut", "reset", "error", "stall"])
def test_once_there_was_output_no_other_route_is_asked(make_stage: Any, name: str) -> None:
    """Conformance 69."""
    ends: dict[str, Any] = {
        "cut": lambda line: None,
        "reset": lambda line: line.reset(),
        "error": lambda line: line.event({"error": {"message": "no"}}),
        "stall": lambda line: line.stall(),
    }
    stage = make_stage(
        lambda line: (line.begin(), ends[name](line)), lambda line: line.well("another answer")
    )
    stage.assert_failed(True, "upstream_timeout" if name == "stall" else BAD, HALF)
    assert stage.asked == [1, 0]


def test_a_half_object_is_made_good_since_nothing_of_it_has_gone_out(make_stage: Any) -> None:
    stage = make_stage(lambda line: line.begin("length"), lambda line: line.well())
    stage.assert_answered(False)
    assert stage.asked == [1, 1]


@pytest.mark.parametrize("fails", ["by itself", "for good"])
def test_after_the_status_has_gone_out_in_silence_the_next_route_still_answers(
    make_stage: Any, fails: str
) -> None:
    """Conformance 72. The status is committed by then, and no more than that."""
    is_awaited = threading.Event()

    def play(line: Any) -> None:
        line.stream()
        line.turn.hold(until=is_awaited)

    last: Any = {"by itself": lambda line: line.well(), "for good": lambda line: line.reset()}
    stage = make_stage(play, last[fails], keep_alive=0.02)
    body, reply = stage.send(True)
    assert (reply.status, next(reply)) == (200, b": keep-alive\n\n")
    is_awaited.set()
    rest = reply.read()
    (row,) = stage.gateway.ledger.entries("alice")
    assert row.provider == "p1"
    if fails == "by itself":
        assert rest.endswith(b"data: [DONE]\n\n")
        assert (row.outcome, row.prompt_tokens, row.completion_tokens) == ("answered", 7, 3)
    else:
        assert rest.count(b"data: ") == rest.count(b'data: {"error":') == 1
        assert (row.outcome, row.cost) == (BAD, 0)
