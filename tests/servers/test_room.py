"""Full houses: calls are turned away before the host's own pages have to wait."""

from __future__ import annotations

from typing import Any

import pytest


def _hold_on(turn: Any) -> None:
    turn.start_stream()
    turn.text("one ")
    turn.hold()


def _fill(place: Any, calls: int) -> None:
    """Have so many streams run."""
    place.provider.respond = _hold_on
    callers = [place.call() for _ in range(calls)]
    for caller in callers:
        caller.ask(stream=True)
    assert [caller.status() for caller in callers] == [200] * calls


def assert_one_too_many(place: Any) -> None:
    caller = place.call()
    caller.ask(stream=True)
    status, body = caller.reply()
    assert (status, body["error"]["code"]) == (503, "gateway_overloaded")
    assert 1 <= int(caller.headers["retry-after"]) <= 5


def assert_all_else_is_served(place: Any) -> None:
    assert [place.server.get("/any/page") for _ in range(5)] == ["the host's own page"] * 5
    assert place.server.get("/oneai/health") == {"status": "ok"}
    assert place.reply(place.head(line="GET /oneai/v1/models"))[0] == 200


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_the_hosts_own_page_is_served_while_all_places_are_taken(serve: Any, kind: str) -> None:
    place = serve(kind, max_calls=3)
    _fill(place, 3)
    assert_one_too_many(place)
    assert_all_else_is_served(place)


@pytest.mark.parametrize("kind", ["gthread", "waitress", "uwsgi", "cheroot"])
def test_two_of_the_servers_threads_are_left_to_the_host(serve: Any, kind: str) -> None:
    place = serve(kind, threads=8, concurrent=20)
    _fill(place, 6)
    assert_one_too_many(place)
    assert_all_else_is_served(place)
