"""What providers do that would confuse the official clients, and what these see of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

ASKED = {"model": "bot", "messages": [{"role": "user", "content": "Say something"}]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


@pytest.fixture
def serve(
    listen: Any, make_app: Any, record: Any, provider: Any, asking_provider: Any
) -> Callable[..., Any]:
    """Serve a gateway before a provider that does as it is told; its base URL."""

    def serve(
        respond: Callable[[Any], None],
        on_item: Callable[[bytes], None] = lambda item: None,
        **settings: Any,
    ) -> str:
        provider.respond = respond
        recorder = record(make_app(**asking_provider, **settings))
        recorder.on_item = on_item
        return str(listen(recorder))

    return serve


# --- silence and text ---------------------------------------------------------------


@pytest.mark.parametrize("door", ["stream", "helper"])
def test_keep_alive_comments_are_no_chunks(serve: Any, sdk: Any, door: str) -> None:
    """Conformance 72 and 74."""
    comments: list[bytes] = []
    commented = threading.Event()

    def respond(turn: Any) -> None:
        turn.start_stream()
        turn.raw(b": provider's own comment\nid: 1\nretry: 5\n\n")
        for text, finish in [("at ", None), ("last", "stop")]:
            commented.clear()
            assert commented.wait(10)
            turn.text(text, finish)
        turn.event("[DONE]")

    def on_item(item: bytes) -> None:
        if item.startswith(b":"):
            comments.append(item)
            commented.set()

    seen = sdk(door, serve(respond, on_item, keep_alive=0.02), **ASKED)
    assert (seen.text, seen.error) == ("at last", None)
    assert set(comments) == {b": keep-alive\n\n"}


@pytest.mark.parametrize("door", ["create", "stream", "helper"])
def test_text_with_odd_line_breaks_arrives_whole(
    listen: Any, make_app: Any, sdk: Any, door: str
) -> None:
    """Conformance 76."""
    text = "a\u2028b\u2029c\u0085d\r\ne \U0001f600"
    seen = sdk(door, listen(make_app(echo={"text": text})), **{**ASKED, "model": "kimi"})
    if door != "create":
        assert seen.text == text
    if door != "stream":
        assert seen.answer["choices"][0]["message"]["content"] == text


# --- tool calls ---------------------------------------------------------------------


def _call(*pieces: dict[str, Any]) -> dict[str, Any]:
    """A choice whose delta holds pieces of tool calls."""
    return {"index": 0, "delta": {"tool_calls": list(pieces)}}


def _piece(arguments: Any, **fields: Any) -> dict[str, Any]:
    """A piece of a tool call; ``name`` goes where it belongs."""
    function = {"arguments": arguments}
    if "name" in fields:
        function["name"] = fields.pop("name")
    return {"index": 0, **fields, "function": function}


def _unplaced(piece: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in piece.items() if name != "index"}


WHO = {"id": "call_1", "type": "function", "name": "get_weather"}
OTHER = {"id": "call_2", "type": "function", "name": "get_weather"}
NULL: dict[str, Any] = dict.fromkeys(WHO)
EMPTY = dict.fromkeys(WHO, "")
FIRST, REST = '{"city": ', '"Paris"}'
ROLE = {"index": 0, "delta": {"role": "assistant", "content": None}}
END = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
BEGUN = _call(_piece(FIRST, **WHO))

# The choices of the stream, one a chunk.
FORMS: dict[str, list[dict[str, Any]]] = {
    "as it should be": [ROLE, BEGUN, _call(_piece(REST)), END],
    "named in every piece": [ROLE, BEGUN, _call(_piece(REST, **WHO)), END],
    "null in later pieces": [ROLE, BEGUN, _call(_piece(REST, **NULL)), END],
    "empty in later pieces": [ROLE, BEGUN, _call(_piece(REST, **EMPTY)), END],
    "without an index": [
        ROLE,
        _call(_unplaced(_piece(FIRST, **WHO))),
        _call(_unplaced(_piece(REST))),
        END,
    ],
    "with a role in every piece": [
        {**choice, "delta": {**choice["delta"], "role": "assistant"}}
        for choice in (ROLE, BEGUN, _call(_piece(REST)), END)
    ],
    "without a role": [BEGUN, _call(_piece(REST)), END],
    "two pieces in one chunk": [ROLE, _call(_piece(FIRST, **WHO), _piece(REST)), END],
    "arguments as an object": [ROLE, _call(_piece({"city": "Paris"}, **WHO)), END],
    "arguments of null first": [ROLE, _call(_piece(None, **WHO)), _call(_piece(FIRST + REST)), END],
    "the reason stop": [ROLE, BEGUN, _call(_piece(REST)), {**END, "finish_reason": "stop"}],
    "an empty reason": [
        *({**choice, "finish_reason": ""} for choice in (ROLE, BEGUN, _call(_piece(REST)))),
        END,
    ],
    "no reason": [ROLE, BEGUN, _call(_piece(REST))],
}


def _plays(choices: list[dict[str, Any]], **fields: Any) -> Callable[[Any], None]:
    def respond(turn: Any) -> None:
        turn.start_stream()
        for choice in choices:
            turn.event({"id": "up", "choices": [choice], **fields})
        turn.event("[DONE]")

    return respond


def assert_is_clean(chunks: list[Any]) -> None:
    """Every chunk names its object, one the role, and a call's names are said once."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    pieces = [piece for choice in choices for piece in choice["delta"].get("tool_calls", ())]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [choice["delta"]["role"] for choice in choices if "role" in choice["delta"]] == [
        "assistant"
    ]
    assert all(type(piece["index"]) is int for piece in pieces)
    named = [piece for piece in pieces if {"id", "type"} & set(piece)]
    assert len(named) == len({piece["index"] for piece in pieces})
    assert all(piece["id"] and piece["function"]["name"] for piece in named)
    assert [piece for piece in pieces if "name" in piece["function"]] == named
    assert [c["finish_reason"] for c in choices if c["finish_reason"] is not None] == ["tool_calls"]


@pytest.mark.parametrize("form", FORMS)
def test_a_tool_call_in_any_form_is_put_together(serve: Any, sdk: Any, form: str) -> None:
    """Conformance 61, 62 and 77."""
    seen = sdk("helper", serve(_plays(FORMS[form])), **ASKED, tools=[TOOL])
    assert seen.error is None
    assert_is_clean(seen.chunks)
    (choice,) = seen.answer["choices"]
    assert (choice["finish_reason"], choice["message"]["role"]) == ("tool_calls", "assistant")
    assert calls_in(choice) == [("call_1", "get_weather", {"city": "Paris"})]


@pytest.mark.parametrize("place", ["by index", "by id"])
def test_two_tool_calls_are_kept_apart(serve: Any, sdk: Any, place: str) -> None:
    """Conformance 77."""
    pieces = [
        _piece(FIRST, **WHO),
        _piece(REST, id="call_1"),
        {**_piece(FIRST, **OTHER), "index": 1},
        {**_piece('"Rome"}', id="call_2"), "index": 1},
    ]
    if place == "by id":
        pieces = [_unplaced(piece) for piece in pieces]
    choices = [ROLE, *(_call(piece) for piece in pieces), END]
    seen = sdk("helper", serve(_plays(choices)), **ASKED, tools=[TOOL])
    assert seen.error is None
    assert_is_clean(seen.chunks)
    assert calls_in(seen.answer["choices"][0]) == [
        ("call_1", "get_weather", {"city": "Paris"}),
        ("call_2", "get_weather", {"city": "Rome"}),
    ]


def calls_in(choice: Any) -> list[tuple[str, str, Any]]:
    calls = choice["message"]["tool_calls"]
    return [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]


@pytest.mark.parametrize("object", ["chat.completion", "", None])
def test_a_wrong_or_missing_object_is_put_right(serve: Any, sdk: Any, object: str | None) -> None:
    """Conformance 60 and 77."""
    fields = {} if object is None else {"object": object}
    seen = sdk("helper", serve(_plays(FORMS["as it should be"], **fields)), **ASKED, tools=[TOOL])
    assert seen.error is None
    assert_is_clean(seen.chunks)
