"""Callers who leave at random, many at a time: nothing of theirs is left behind."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

PLACES = 32
"""Callers at a time: all that there is room for, so that a place that one kept is missed."""


@pytest.fixture(params=["gthread", "gevent", "waitress"])
def place(request: pytest.FixtureRequest, serve: Any) -> Any:
    return serve(request.param, threads=PLACES + 4, max_calls=PLACES, concurrent=PLACES)


def test_after_many_callers_left_at_random_nothing_of_theirs_is_left(
    place: Any, eventually: Any
) -> None:
    """Conformance 78."""
    _leave_many_times(place, 100, eventually)


@pytest.mark.soak
def test_after_a_great_many_callers_left_at_random_nothing_of_theirs_is_left(
    place: Any, eventually: Any
) -> None:
    """Conformance 78."""
    _leave_many_times(place, 1_000, eventually)


def _leave_many_times(place: Any, count: int, eventually: Any) -> None:
    place.provider.respond = _respond
    with ThreadPoolExecutor(PLACES) as pool:
        for first in range(0, count, PLACES):
            numbers = range(first, min(first + PLACES, count))
            list(pool.map(lambda number: _leave_at_random(place, number), numbers))
            state = eventually(place.settled, 30)
    eventually(lambda: not place.provider_connections)
    assert {row["outcome"] for row in state["entries"]} == {"caller_left"}
    # Who leaves before the server has looked at the request has not called.
    assert count / 2 < len(place.provider.turns) <= len(state["entries"]) <= count
    place.assert_books_are_exact(state)
    _take_every_place(place)


def _respond(turn: Any) -> None:
    """Say as many words as asked for, then nothing more, or go on for ever."""
    words, _, manner = turn.json["messages"][0]["content"].partition(" ")
    if turn.json["stream"]:
        turn.start_stream()
        for _ in range(int(words)):
            turn.text("word ")
    while manner == "talkative" and not turn.left.is_set():
        turn.text("more ")
        turn.hold(patience=0.02)
    turn.hold()


def _leave_at_random(place: Any, number: int) -> None:
    """One call: its caller takes some of it, and leaves in one way or the other."""
    choice = random.Random(number)
    stream = choice.random() < 0.8
    words = choice.randrange(1, 5)
    manner = choice.choice(["silent", "talkative"]) if stream else "silent"
    caller = place.call()
    caller.ask(stream=stream, content=f"{words} {manner}")
    if stream and choice.random() < 0.8:
        assert caller.status() == 200
        for _ in range(choice.randint(1, words)):
            assert "word" in caller.event()
    choice.choice([caller.leave, caller.vanish])()


def _take_every_place(place: Any) -> None:
    callers = [place.call() for _ in range(PLACES)]
    for caller in callers:
        caller.ask(stream=True, content="1 silent")
    assert [caller.status() for caller in callers] == [200] * PLACES
