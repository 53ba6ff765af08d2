"""Connections that break or stall, wherever an answer has got to."""

from __future__ import annotations

import gc
import socket
from typing import Any

import pytest

from oneai_middleware.backends.openai.transports import TRANSPORTS

PLACES = {
    "before the status": lambda line: None,
    "within the status": lambda line: line.raw(b"HTTP/1.1 20"),
    "within the headers": lambda line: line.raw(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "after the headers": lambda line: line.stream(),
    "after the headers, with a length": lambda line: line.stream(framing="length"),
    "before the first piece": lambda line: line.stream(framing="chunked"),
    "in mid-answer": lambda line: line.begin(),
    "in mid-answer, with a length": lambda line: line.begin("length"),
    "in mid-answer, after a piece": lambda line: line.begin("chunked"),
    "within a piece": lambda line: (line.begin("chunked"), line.raw(b"400\r\ndata: {")),
}
ENDS = {
    "a cut": (lambda line: None, "upstream_error"),
    "a reset": (lambda line: line.reset(), "upstream_error"),
    "a stall": (lambda line: line.stall(), "upstream_timeout"),
}

over_each = pytest.mark.parametrize("transport", TRANSPORTS)
both = pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])


@over_each
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_connection_that_fails_is_told_and_only_what_came_is_paid(
    make_stage: Any, place: str, end: str
) -> None:
    """Conformance 69, 70, 73, 87 and 90."""
    fail, code = ENDS[end]
    stage = make_stage(lambda line: (PLACES[place](line), fail(line)))
    stage.assert_failed(False, code)
    handed = "half an " if "mid" in place or "a piece" in place else ""
    stage.assert_failed(True, code, handed)


@over_each
@both
def test_a_refused_connection_is_a_502(make_stage: Any, stream: bool) -> None:
    """Conformance 87."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        stage = make_stage(lambda line: None, row={"base_url": f"http://{address}/v1"})
        stage.assert_failed(stream, "upstream_error").assert_tells_nothing(address)
    assert stage.asked == [0]


@over_each
@both
def test_a_host_that_does_not_exist_is_a_502(make_stage: Any, stream: bool) -> None:
    """Conformance 87."""
    stage = make_stage(lambda line: None, row={"base_url": "http://provider.invalid/v1"})
    stage.assert_failed(stream, "upstream_error").assert_tells_nothing("provider.invalid")


@over_each
@both
def test_an_idle_connection_that_its_provider_closes_costs_the_caller_no_call(
    make_stage: Any, stream: bool
) -> None:
    stage = make_stage(lambda line: line.well())
    stage.assert_answered(False)
    stage.plays["p0"] = lambda line: line.reset() if len(stage.lines["p0"]) == 2 else line.well()
    stage.assert_answered(stream)
    assert stage.asked == [3]


@over_each
def test_closing_the_gateway_closes_its_idle_connections_at_once(
    make_stage: Any, playhouse: Any, eventually: Any
) -> None:
    before = set(playhouse.connections)
    stage = make_stage(lambda line: line.well())
    gc.disable()  # which would come some time later, and close what nobody knows any more
    try:
        stage.assert_answered(False)
        assert len(playhouse.connections - before) == 1
        stage.gateway.close()
        eventually(lambda: playhouse.connections <= before)
    finally:
        gc.enable()
