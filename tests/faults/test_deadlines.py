"""The deadlines of a call and of its attempts, each apart from the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

HALF, LATE = "half an ", "upstream_timeout"
NEVER = 1e6


def event(text: str) -> bytes:
    return b'data: {"choices": [{"index": 0, "delta": {"content": %b}}]}\n\n' % (
        json.dumps(text).encode()
    )


def settings(**seconds: float) -> dict[str, float]:
    """All deadlines of the gateway so far away that only those given can pass."""
    return {f"{name}_timeout": NEVER for name in ("first_token", "idle", "total")} | {
        f"{name}_timeout": value for name, value in seconds.items()
    }


SLOW: dict[str, tuple[Any, dict[str, float], str]] = {
    "silence": (lambda line: line.stall(), {"first_token": 120}, "no first token in 120 s"),
    "comments": (
        lambda line: (line.stream(), line.repeat(b": wait\n\n")),
        {"first_token": 120, "idle": 60},
        "no first token in 120 s",
    ),
    "roles": (
        lambda line: (
            line.stream(),
            line.event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}),
            line.repeat(b": wait\n\n"),
        ),
        {"first_token": 120, "idle": 60},
        "no first token in 120 s",
    ),
    "an endless head": (
        lambda line: (line.raw(b"HTTP/1.1 200 OK\r\nX: "), line.repeat(b"x")),
        {"first_token": 120},
        "no first token in 120 s",
    ),
    "interim replies": (
        lambda line: line.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
        {"first_token": 120},
        "no first token in 120 s",
    ),
    "a first token that is all too late": (
        lambda line: line.stall(),
        {"total": 590},
        "the whole call took over 590 s",
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_stream_without_a_first_token_in_time_is_a_504_and_free(
    make_stage: Any, name: str
) -> None:
    """Conformance 68, 87 and 90."""
    play, seconds, words = SLOW[name]
    stage = make_stage(play, **settings(**seconds))
    stage.assert_failed(True, LATE)
    assert words in stage.notes()[-1]


SLOW_LATER: dict[str, tuple[Any, dict[str, float], str]] = {
    "silence": (lambda line: line.stall(), {"idle": 60}, "silent for 60 s"),
    "comments": (
        lambda line: line.repeat(b": wait\n\n"),
        {"first_token": 120, "idle": 100_000, "total": 590},
        "the whole call took over 590 s",
    ),
    "half an event": (
        lambda line: (line.send(b'data: {"cho'), line.stall()),
        {"idle": 60},
        "silent for 60 s",
    ),
    "an event byte by byte": (
        lambda line: (line.send(b"data: "), line.repeat(b" ")),
        {"idle": 60},
        "silent for 60 s",
    ),
}


@pytest.mark.parametrize("name", SLOW_LATER)
def test_a_stream_that_stops_in_mid_answer_ends_with_an_error_event(
    make_stage: Any, name: str
) -> None:
    """Conformance 69 and 73. What was handed over is paid."""
    play, seconds, words = SLOW_LATER[name]
    stage = make_stage(lambda line: (line.begin(), play(line)), **settings(**seconds))
    stage.assert_failed(True, LATE, HALF)
    assert words in stage.notes()[-1]


def test_a_stream_without_an_end_is_ended_and_paid_as_far_as_it_came(make_stage: Any) -> None:
    """Conformance 69."""
    stage = make_stage(
        lambda line: (line.stream(), line.repeat(event("and on "))),
        **settings(first_token=120, idle=100_000, total=590),
    )
    seen = stage.ask(True)
    assert seen.code == LATE
    assert seen.text.count("and on ") * len("and on ") == len(seen.text) > 0
    assert "the whole call took over 590 s" in stage.notes()[-1]


OBJECTS: dict[str, Any] = {
    "in silence": lambda line: line.stall(),
    "in blank lines": lambda line: (line.stream(), line.repeat(b"\n")),
    "in pieces of nothing": lambda line: (
        line.stream(framing="chunked"),
        line.repeat(b"1\r\n \r\n"),
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_has_the_whole_time_and_no_more(make_stage: Any, name: str) -> None:
    """Conformance 87 and 90."""
    stage = make_stage(OBJECTS[name], **settings(first_token=1, idle=1, total=590))
    stage.assert_failed(False, LATE)
    assert "the whole call took over 590 s" in stage.notes()[-1]


@pytest.mark.parametrize(
    ("stream", "limit", "words"),
    [
        (True, "first_token", "no first token in 5 s"),
        (True, "total", "the whole answer took over 5 s"),
        (False, "total", "the whole answer took over 5 s"),
    ],
)
def test_a_provider_that_is_given_less_time_makes_way_for_the_next(
    make_stage: Any, stream: bool, limit: str, words: str
) -> None:
    stage = make_stage(
        lambda line: line.stall(0.5),
        lambda line: line.well(),
        first_row={"timeouts": {limit: 5}},
        **settings(),
    )
    stage.assert_answered(stream)
    assert stage.asked == [1, 1]
    (tried,) = stage.notes("dispatch")
    assert f"provider p0 failed: {LATE}: {words}" in tried


def test_a_providers_own_patience_in_mid_answer_ends_the_call(make_stage: Any) -> None:
    """Conformance 73."""
    stage = make_stage(
        lambda line: (line.begin(), line.stall(0.5)),
        lambda line: line.well(),
        first_row={"timeouts": {"idle": 5}},
        **settings(),
    )
    stage.assert_failed(True, LATE, HALF)
    assert stage.asked == [1, 0]
    assert "silent for 5 s" in stage.notes()[-1]


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
def test_a_provider_that_is_given_more_time_has_it(
    make_stage: Any, clock: Any, stream: bool
) -> None:
    def play(line: Any) -> None:
        clock.advance(800)
        line.turn.hold(patience=0.6)  # the watch has looked by then
        line.well()

    stage = make_stage(play, row={"timeouts": {"first_token": 1000, "total": 1000}})
    stage.assert_answered(stream)


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
def test_no_further_route_is_tried_when_the_time_for_a_first_token_is_over(
    make_stage: Any, clock: Any, stream: bool
) -> None:
    def play(line: Any) -> None:
        clock.advance(121)
        line.reset()

    stage = make_stage(
        play, lambda line: line.well(), first_row={"timeouts": {"first_token": 1000}}
    )
    stage.assert_failed(stream, "upstream_error")
    assert stage.asked == [1, 0]
