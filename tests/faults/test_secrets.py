"""What a provider knows of us, and what it sends beside an answer, reach no caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from oneai_middleware.backends.openai.transports import TRANSPORTS

HALF = "half an "

over_each = pytest.mark.parametrize("transport", TRANSPORTS)
both = pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])


def refusing(status: str, make: Callable[[str], Any], *headers: str) -> Any:
    return lambda line: line.whole(
        make(line.private), *(header.format(line.private) for header in headers), status=status
    )


ECHOES: dict[str, tuple[Any, str]] = {
    "a message": (
        refusing("400 Bad", lambda private: {"error": {"message": f"temperature for {private}"}}),
        "invalid_value",
    ),
    "every field of an error": (
        refusing(
            "422 Bad",
            lambda private: {"error": dict.fromkeys(("message", "type", "param", "code"), private)},
        ),
        "invalid_value",
    ),
    "a list of details": (
        refusing(
            "422 Bad",
            lambda private: {"detail": [{"loc": ["body", private, 0], "msg": f"no {private}"}]},
        ),
        "invalid_value",
    ),
    "a refused key": (
        refusing("401 No", lambda private: {"error": {"message": f"{private} is revoked"}}),
        "provider_unavailable",
    ),
    "a page": (
        refusing("502 Bad", lambda private: f"<html>{private} is down".encode()),
        "upstream_error",
    ),
    "headers": (
        refusing(
            "429 Busy", lambda private: {}, "Retry-After: {}", "WWW-Authenticate: {}", "Via: {}"
        ),
        "model_overloaded",
    ),
    "the reason of the status": (
        lambda line: line.whole({}, status=f"500 {line.private}"),
        "upstream_error",
    ),
    "a status that is none": (
        lambda line: line.raw(f"HTTP/1.1 {line.private}\r\n\r\n".encode()),
        "upstream_error",
    ),
    "no HTTP": (lambda line: line.raw(f"{line.private}\r\n".encode()), "upstream_error"),
    "a header that is none": (
        lambda line: line.raw(f"HTTP/1.1 200 OK\r\nno header, {line.private}\r\n\r\n".encode()),
        "upstream_error",
    ),
    "the size of a piece": (
        lambda line: (line.stream("Transfer-Encoding: chunked"), line.raw(line.private.encode())),
        "upstream_error",
    ),
    "a length": (
        lambda line: line.whole({}, "Content-Length: 7", f"Content-Length: {line.private}"),
        "upstream_error",
    ),
    "a coding": (
        lambda line: line.whole(line.private.encode(), f"Content-Encoding: {line.private}, gzip"),
        "upstream_error",
    ),
    "an error under status 200": (
        refusing("200 OK", lambda private: {"error": {"message": private, "code": private}}),
        "upstream_error",
    ),
    "base_resp": (
        refusing(
            "200 OK", lambda private: {"base_resp": {"status_code": private, "status_msg": private}}
        ),
        "upstream_error",
    ),
}


@over_each
@pytest.mark.parametrize("place", ECHOES)
def test_a_provider_that_echoes_our_key_and_its_address_gives_nothing_away(
    make_stage: Any, place: str
) -> None:
    """Conformance 89. What is looked for, and that no line of the log has the key, is
    checked with every call."""
    play, code = ECHOES[place]
    stage = make_stage(play)
    stage.assert_failed(False, code)
    stage.assert_failed(True, code)


LATE_ECHOES: dict[str, Any] = {
    "an error": lambda line: line.event({"error": {"message": line.private}}),
    "an error of text": lambda line: line.event({"error": line.private}),
    "an error event": lambda line: line.send(
        f'event: error\ndata: {{"message": "{line.private}"}}\n\n'.encode()
    ),
    "no JSON": lambda line: line.event(line.private),
    "a comment": lambda line: line.send(f": {line.private}\n\n".encode()),
    "a name": lambda line: line.send(f"event: {line.private}\nid: {line.private}\n\n".encode()),
}


@pytest.mark.parametrize("place", LATE_ECHOES)
def test_a_stream_that_echoes_our_key_and_its_address_gives_nothing_away(
    make_stage: Any, place: str
) -> None:
    """Conformance 71, 74 and 89."""
    make_stage(lambda line: (line.begin(), LATE_ECHOES[place](line))).assert_failed(
        True, "upstream_error", HALF
    )


@both
def test_the_headers_of_a_provider_reach_no_caller(make_stage: Any, stream: bool) -> None:
    """Conformance 13. Every play sends them, and every answer is looked through; here
    that they are none of ours in disguise."""
    stage = make_stage(lambda line: line.well())
    well = stage.assert_answered(stream)
    stage.plays["p0"] = lambda line: line.whole({}, status="429 Busy")
    refused = stage.assert_failed(stream, "model_overloaded")
    assert well.headers.get("x-accel-buffering") == ("no" if stream else None)
    for left, seen in (199, well), (198, refused):
        assert seen.headers["x-ratelimit-limit-requests"] == "200"
        assert seen.headers["x-ratelimit-remaining-requests"] == str(left)
        assert int(seen.headers["x-ratelimit-remaining-tokens"]) > 0
    asked = [dict(line.turn.headers) for line in stage.lines["p0"]]
    assert [headers.get("Cookie") for headers in asked] == [None, None]


@pytest.fixture(scope="module")
def elsewhere(start_provider: Callable[[], Any]) -> Any:
    """A server that nobody should ask."""
    return start_provider()


@over_each
@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
def test_no_redirect_is_followed_and_the_key_goes_nowhere_else(
    make_stage: Any, elsewhere: Any, status: int
) -> None:
    """The provider's own server, or whoever speaks in its place, may send one."""
    place = f"Location: {elsewhere.url}/chat/completions"
    stage = make_stage(lambda line: line.whole({}, place, status=f"{status} Moved"))
    stage.assert_failed(False, "upstream_error").assert_tells_nothing(elsewhere.url)
    stage.assert_failed(True, "upstream_error").assert_tells_nothing(elsewhere.url)
    assert elsewhere.turns == []
    assert {line.turn.path for line in stage.lines["p0"]} == {"/v1/p0/chat/completions"}
