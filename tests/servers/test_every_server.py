"""One app on every server: real sockets, and a provider on a real port."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

AT_ONCE = 1.0
"""Seconds in which what a caller held must be free again once they have left."""

PLACES = 5


@pytest.fixture
def place(serve: Any, kind: str, eventually: Any) -> Any:
    """A server of each kind with so few places that a call that kept its would be missed."""
    place = serve(kind, max_calls=PLACES)
    assert eventually(place.idle)  # the callers of the test before may just have left
    return place


# --- answers ----------------------------------------------------------------------------


def test_the_api_and_the_hosts_own_pages_are_served(place: Any, completion: Any) -> None:
    place.provider.respond = lambda turn: turn.answer(completion("hello"))
    assert place.server.get("/any/page") == "the host's own page"

    status, body = place.reply(place.head(line="GET /oneai/v1/models"))
    assert (status, "bot" in [model["id"] for model in body["data"]]) == (200, True)
    status, body = place.reply(place.chat_request())
    assert (status, body["choices"][0]["message"]["content"]) == (200, "hello")
    status, body = place.reply(place.chat_request().replace(b'"bot"', b'"bat"'))
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    state = place.settled()
    assert [row["outcome"] for row in state["entries"]] == ["answered"]
    assert state["balance"]["spent"] == 7 * 1_000 + 3 * 2_000
    place.assert_books_are_exact(state)


def test_a_providers_refusal_keeps_its_status(place: Any) -> None:
    refusal = {"error": {"message": "No such thing.", "type": "invalid_request_error"}}
    place.provider.respond = lambda turn: turn.answer(refusal, status=400)
    for stream in (False, True):
        status, body = place.reply(place.chat_request(stream=stream))
        assert (status, set(body["error"])) == (400, {"message", "type", "param", "code"})
    state = place.settled()
    assert state["balance"]["spent"] == 0
    place.assert_books_are_exact(state)


def test_the_first_event_arrives_before_the_provider_has_sent_its_second(
    place: Any, eventually: Any
) -> None:
    """Conformance 59."""
    seen = threading.Event()

    def respond(turn: Any) -> None:
        turn.start_stream()
        turn.text("first ")
        assert seen.wait(20)
        turn.text("second", "stop", usage={"prompt_tokens": 7, "completion_tokens": 2})
        turn.event("[DONE]")

    place.provider.respond = respond
    caller = place.call()
    caller.ask(stream=True)
    assert caller.status() == 200
    assert json.loads(caller.event())["choices"][0]["delta"]["content"] == "first "
    seen.set()
    rest = list(iter(caller.event, "[DONE]"))
    assert "second" in "".join(rest)
    caller.leave()
    state = eventually(place.settled)
    assert state["balance"]["spent"] == 7 * 1_000 + 2 * 2_000
    place.assert_books_are_exact(state)


# --- the caller leaves ------------------------------------------------------------------


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


MOMENTS: dict[str, tuple[bool, Callable[[Any], None]]] = {
    "before the status": (True, _before_the_status),
    "in silence": (True, _in_silence),
    "in mid-stream": (True, _in_mid_stream),
    "before the answer": (False, _before_the_status),
    "in mid-answer": (False, _in_mid_answer),
}


def _respond(turn: Any) -> None:
    """Do what the moment wants that the question names."""
    MOMENTS[turn.json["messages"][0]["content"]][1](turn)


@pytest.mark.parametrize("how", ["leave", "vanish"])
def test_a_caller_who_leaves_frees_all_they_held_at_once(
    place: Any, eventually: Any, how: str
) -> None:
    """Conformance 78."""
    place.provider.respond = _respond
    moments = [name for name, (stream, _) in MOMENTS.items() if stream or not place.is_blind]
    size = 1 if place.is_alone else PLACES
    for start in range(0, len(moments), size):
        callers = [_ask(place, moment, eventually) for moment in moments[start : start + size]]
        if not place.is_alone:
            state = place.state()
            assert state["balance"]["held"] > 0
            assert state["used_slots"] == len(callers)
        for caller in callers:
            getattr(caller, how)()
        # Where only comments tell, it takes two of them.
        patience = AT_ONCE + (2 * 0.3 if place.is_blind else 0)
        gone = eventually(
            lambda: all(turn.left.is_set() for turn in place.provider.turns), patience
        )
        assert gone, "the provider still works for nobody"
        state = eventually(place.idle, patience)
    assert [row["outcome"] for row in state["entries"]] == ["caller_left"] * len(moments)
    assert len(place.provider.turns) == len(moments)
    place.assert_books_are_exact(state)


def _ask(place: Any, moment: str, eventually: Any) -> Any:
    """A caller whose call has come to ``moment``."""
    number, stream = len(place.provider.turns), MOMENTS[moment][0]
    caller = place.call()
    caller.ask(stream=stream, content=moment)
    eventually(lambda: len(place.provider.turns) > number)
    if stream and moment != "before the status":
        assert caller.status() == 200
        assert "content" in caller.event()
    return caller
