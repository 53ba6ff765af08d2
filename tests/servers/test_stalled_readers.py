"""Callers who open a stream and take nothing of it, while the provider sends fast."""

from __future__ import annotations

from typing import Any

import pytest

WRITE_TIMEOUT = 1.0
PATIENCE = WRITE_TIMEOUT + 5.0
"""Seconds in which what a caller holds must be free again once they take nothing."""

LITTLE = 4096
"""Bytes that the caller's system takes for them, about."""


def _pour(turn: Any) -> None:
    turn.start_stream()
    while True:  # until the gateway hangs up
        turn.text("x" * 60_000)


def _stall(place: Any) -> Any:
    caller = place.call(receive_buffer=LITTLE)
    caller.ask(stream=True)
    assert caller.status() == 200
    return caller


@pytest.mark.parametrize(
    "kind", ["gevent", "waitress", "uwsgi", "cheroot", "granian", "werkzeug", "pywsgi"]
)
def test_a_caller_who_takes_nothing_frees_what_they_held(
    serve: Any, eventually: Any, kind: str
) -> None:
    place = serve(kind, write_timeout=WRITE_TIMEOUT)
    place.provider.respond = _pour
    _stall(place)
    assert place.state()["used_slots"] == 1
    assert_all_is_freed(place, eventually, calls=1)


def test_callers_who_take_nothing_give_back_the_servers_threads(
    serve: Any, eventually: Any
) -> None:
    place = serve("gthread", threads=2, max_calls=2, write_timeout=WRITE_TIMEOUT)
    place.provider.respond = _pour
    for _ in range(2):
        _stall(place)
    # From here on no thread is left to say how it is.
    eventually(lambda: not place.provider_connections, PATIENCE)
    assert place.server.get("/any/page") == "the host's own page"
    assert_all_is_freed(place, eventually, calls=2)


def assert_all_is_freed(place: Any, eventually: Any, calls: int) -> None:
    state = eventually(place.settled, PATIENCE)
    eventually(lambda: not place.provider_connections, PATIENCE)
    assert [row["outcome"] for row in state["entries"]] == ["caller_left"] * calls
    place.assert_books_are_exact(state)
