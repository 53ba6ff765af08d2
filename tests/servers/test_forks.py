"""Many callers over several processes: each gets their own answer, and nobody else's."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

CALLERS = 8
"""Callers at a time."""

PIECES = 3
"""How often an answer repeats what was asked."""


@pytest.fixture(params=["preload", "uwsgi"])
def place(request: pytest.FixtureRequest, serve: Any) -> Any:
    """Four processes made by forks, of a parent that has made calls before if it could."""
    processes = {"preload": "--workers", "uwsgi": "--processes"}[request.param]
    return serve(request.param, processes, "4", threads=32, concurrent=50, allow_memory_ledger=True)


def test_nobody_gets_what_another_has_asked_for(place: Any) -> None:
    _exchange(place, 500)


@pytest.mark.soak
def test_in_a_long_time_nobody_gets_what_another_has_asked_for(place: Any) -> None:
    _exchange(place, 10_000)


def _exchange(place: Any, calls: int) -> None:
    place.provider.respond = _echo
    with ThreadPoolExecutor(CALLERS) as pool:
        heard = list(pool.map(lambda number: _ask(place, number), range(calls)))
    foreign = [(number, said) for number, said in enumerate(heard) if set(said) - {str(number)}]
    assert foreign == []
    complete = sum(len(said) == PIECES for said in heard)
    assert complete > calls / 2, "hardly anybody was answered"


def _ask(place: Any, number: int) -> list[str]:
    """The numbers that the answer to ``number`` names; some callers do not wait for all."""
    choice = random.Random(number)
    stream, patient = choice.random() < 0.5, choice.random() < 0.75
    # The provider is at work on some calls for so long that the gateway gives them up.
    slow = not patient and choice.random() < 0.1
    caller = place.call()
    caller.ask(stream=stream, content=f"{number} slowly" if slow else str(number))
    said: list[str] = []
    if patient and not stream:
        status, body = caller.reply()
        assert status == 200, body
        said = body["choices"][0]["message"]["content"].split()
    elif stream and not slow:
        assert caller.status() == 200
        said = _listen(caller, PIECES if patient else choice.randrange(PIECES))
    choice.choice([caller.leave, caller.vanish])()
    return said


def _listen(caller: Any, pieces: int) -> list[str]:
    """The first words of a stream; if it is to be heard out, with its end."""
    said: list[str] = []
    while len(said) < pieces:
        event = json.loads(caller.event())
        assert "choices" in event, event
        for choice in event["choices"]:
            said += choice["delta"].get("content", "").split()
    if pieces == PIECES:
        list(iter(caller.event, "[DONE]"))
    return said


def _echo(turn: Any) -> None:
    """Repeat what was asked, over a connection that stays open for the next call."""
    number, _, slowly = turn.json["messages"][0]["content"].partition(" ")
    if slowly and turn.hold(patience=0.5):
        return
    if not turn.json["stream"]:
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        message = {"role": "assistant", "content": f"{number} " * PIECES}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        turn.answer({"object": "chat.completion", "choices": [choice], "usage": usage})
        return
    turn.raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for piece in range(PIECES):
        finish = "stop" if piece == PIECES - 1 else None
        delta = {"index": 0, "delta": {"content": f"{number} "}, "finish_reason": finish}
        _chunk(turn, json.dumps({"object": "chat.completion.chunk", "choices": [delta]}))
    _chunk(turn, "[DONE]")
    turn.raw(b"0\r\n\r\n")


def _chunk(turn: Any, event: str) -> None:
    data = f"data: {event}\n\n".encode()
    turn.raw(b"%x\r\n%s\r\n" % (len(data), data))
