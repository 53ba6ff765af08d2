"""Answers that are complete, in forms that are not as they should be: they succeed."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from oneai_middleware.backends.openai.transports import TRANSPORTS

over_each = pytest.mark.parametrize("transport", TRANSPORTS)
TEXT = "hello there, all is well"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
BOM = b"\xef\xbb\xbf"


def chunk(content: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "up", "choices": [choice], **fields}


def event(value: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


# --- bytes --------------------------------------------------------------------------

DONE = b"data: [DONE]\n\n"
VALUES = [
    chunk("hello"),
    chunk(" there, all is well"),
    chunk(finish="stop"),
    {"choices": [], "usage": USAGE},
]
EVENTS = b"".join(map(event, VALUES))
GOOD = EVENTS + DONE


def before_each(data: bytes) -> bytes:
    return GOOD.replace(b"data:", data + b"data:")


STREAMS = {
    "ends in CRLF": GOOD.replace(b"\n", b"\r\n"),
    "ends in CR": GOOD.replace(b"\n", b"\r"),
    "ends of all kinds": GOOD.replace(b"\n\n", b"\r\n\n"),
    "a BOM": BOM + GOOD,
    "comments": before_each(b": wait\n\n:\n: and wait\n"),
    "ids and times": before_each(b"id: 7\nretry: 3000\n"),
    "names": before_each(b"event: message\n"),
    "names alone": before_each(b"event: ping\n\n"),
    "fields nobody knows": before_each(b"x: y\nz\n"),
    "blank lines": before_each(b"\n\n\n"),
    "no space": GOOD.replace(b"data: ", b"data:"),
    "many spaces": GOOD.replace(b"data: {", b"data:   {"),
    "data on many lines": b"".join(
        b"data: " + json.dumps(value, indent=1).replace("\n", "\ndata: ").encode() + b"\n\n"
        for value in VALUES
    )
    + DONE,
    "done with a space": EVENTS + b"data: [DONE] \n\n",
    "done without a blank line": EVENTS + b"data: [DONE]\n",
    "done without a line end": EVENTS + b"data: [DONE]",
    "no done": EVENTS,
    "no done, no blank line": EVENTS[:-1],
    "an object after done": GOOD + event(chunk(" and more")),
    "nonsense after done": GOOD + b"data: {oops\n\n\xff",
    "an error after done": GOOD + event({"error": {"message": "too late"}}),
    "done twice": GOOD + DONE,
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_in_an_odd_form_is_read_and_nothing_of_the_form_is_relayed(
    make_stage: Any, name: str
) -> None:
    """Conformance 74 and 75."""

    def play(line: Any) -> None:
        line.stream()
        line.send(STREAMS[name])

    stage = make_stage(play)
    stage.assert_answered(True)
    stage.assert_answered(True, stream_options={"include_usage": True})


BODY = json.dumps({"choices": [{"message": {"content": TEXT}}], "usage": USAGE}).encode()
OBJECTS = {
    "blank lines before": b"\n\n \r\n\t" + BODY,
    "blank lines after": BODY + b"\n\n",
    "many lines": json.dumps(json.loads(BODY), indent=4).encode(),
    "a name given twice": BODY[:-1]
    + b', "choices": [{"message": {"content": "%b"}}]}' % TEXT.encode(),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_in_an_odd_form_is_read(make_stage: Any, name: str) -> None:
    """Conformance 54."""
    stage = make_stage(lambda line: line.whole(OBJECTS[name]))
    stage.assert_answered(False)
    stage.assert_answered(True)


# --- framing ------------------------------------------------------------------------


def pieces(data: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"%x;of=%d\r\n%b\r\n" % (len(data), len(data), data) + end


FRAMES: dict[str, tuple[list[str], Any]] = {
    "its length": ([], lambda data: data),
    "pieces": (["Transfer-Encoding: chunked"], pieces),
    "pieces and a trailer": (
        ["Transfer-Encoding: chunked", "Trailer: x"],
        lambda data: pieces(data, b"0\r\nX: y\r\nSet-Cookie: a=b\r\n\r\n"),
    ),
    "pieces of one byte": (
        ["Transfer-Encoding: chunked"],
        lambda data: b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n",
    ),
    "gzip": (["Content-Encoding: gzip"], gzip.compress),
    "gzip in pieces": (
        ["Content-Encoding: gzip", "Transfer-Encoding: chunked"],
        lambda data: pieces(gzip.compress(data)),
    ),
    "gzip twice": (
        ["Content-Encoding: gzip, gzip"],
        lambda data: gzip.compress(gzip.compress(data)),
    ),
    "deflate": (["Content-Encoding: deflate"], zlib.compress),
    "gzip of several parts": (
        ["Content-Encoding: gzip"],
        lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    ),
}


@over_each
@pytest.mark.parametrize("name", FRAMES)
def test_an_answer_comes_whole_in_whatever_frame(make_stage: Any, name: str) -> None:
    headers, frame = FRAMES[name]

    def play(line: Any) -> None:
        line.stream(*headers)
        line.raw(frame(GOOD if line.streams else BODY))

    stage = make_stage(play)
    stage.assert_answered(False)
    stage.assert_answered(True)


@over_each
def test_an_answer_that_drips_in_comes_whole(make_stage: Any) -> None:
    """Conformance 75. Status and headers drip as well."""

    def play(line: Any) -> None:
        kind = b"text/event-stream" if line.streams else b"application/json"
        head = b"HTTP/1.0 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n"
        for byte in head + (GOOD if line.streams else BODY):
            line.raw(bytes([byte]))

    stage = make_stage(play)
    stage.assert_answered(False)
    stage.assert_answered(True)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_characters_cut_at_every_byte_come_together(make_stage: Any, end: str) -> None:
    """Conformance 75 and 76."""
    text = "né 你好 🙂🏳️‍🌈 \u2028\u2029\u0085 \ufeff end"

    def play(line: Any) -> None:
        line.stream(framing="chunked")
        values = [chunk(text), chunk(finish="stop", usage=USAGE)] if line.streams else []
        texts = [json.dumps(value, ensure_ascii=False, indent=0) for value in values]
        events = "".join("data: {}\n\n".format(t.replace("\n", "\ndata: ")) for t in texts)
        whole = json.dumps(line.completion(text), ensure_ascii=False)
        for byte in (events.replace("\n", end) if line.streams else whole).encode():
            line.send(bytes([byte]))
        line.send(b"")

    stage = make_stage(play)
    stage.assert_answered(False, text)
    stage.assert_answered(True, text)


@pytest.mark.parametrize("kind", ["Text/Event-Stream", "text/event-stream;charset=UTF-8"])
def test_the_type_of_a_stream_is_known_however_it_is_written(make_stage: Any, kind: str) -> None:
    def play(line: Any) -> None:
        line.head(f"Content-Type: {kind}")
        line.raw(GOOD)

    make_stage(play).assert_answered(True)


# --- values -------------------------------------------------------------------------

MESSAGE = {"choices": [{"index": 0, "message": {"content": TEXT}, "finish_reason": "stop"}]}
FIRST, SECOND, FINISH, USED = VALUES
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}

SEQUENCES: dict[str, list[Any]] = {
    "a role first": [ROLE, FIRST, SECOND, FINISH, USED],
    "a role every time": [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": each}}]}
        for each in ("hello", " there, all is well")
    ]
    + [FINISH, USED],
    "chunks of nothing first": [{"choices": []}] * 40 + VALUES,
    "no choices in between": [FIRST, {"id": "up"}, {"choices": None}, SECOND, FINISH, USED],
    "no errors": [{**value, "error": None, "base_resp": {"status_code": 0}} for value in VALUES],
    "another object": [{**value, "object": "message", "id": n} for n, value in enumerate(VALUES)],
    "no index": [
        {"choices": [{"delta": {"content": TEXT}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        USED,
    ],
    "reasons of nothing": [
        chunk("hello", ""),
        chunk(SECOND_TEXT := " there, all is well", "null"),
        FINISH,
        USED,
    ],
    "the reason twice": [FIRST, SECOND, FINISH, FINISH, USED],
    "no reason": [FIRST, SECOND, USED],
    "contents of null": [
        FIRST,
        {"choices": [{"index": 0, "delta": {"content": None}}]},
        SECOND,
        FINISH,
        USED,
    ],
    "a delta of null": [FIRST, {"choices": [{"index": 0, "delta": None}]}, SECOND, FINISH, USED],
    "usage before the reason": [FIRST, SECOND, USED, FINISH],
    "a whole answer as its only event": [{**MESSAGE, "usage": USAGE}],
    "a whole answer as its last event": [FIRST, SECOND, {**MESSAGE, "usage": USAGE}],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_stream_of_odd_chunks_is_mended(make_stage: Any, name: str) -> None:
    """Conformance 60, 61, 62, 64 and 65."""

    def play(line: Any) -> None:
        line.stream()
        for value in [*SEQUENCES[name], "[DONE]"]:
            line.event(value)

    stage = make_stage(play)
    stage.assert_answered(True)
    stage.assert_answered(True, stream_options={"include_usage": True})


def test_a_whole_answer_in_place_of_a_stream_is_streamed(make_stage: Any) -> None:
    stage = make_stage(lambda line: line.whole(line.completion()))
    stage.assert_answered(True)
    stage.assert_answered(True, stream_options={"include_usage": True})


# --- complete, although the connection broke ----------------------------------------

TORN: dict[str, Any] = {
    "reset": lambda line: (line.stream(), line.send(EVENTS), line.reset()),
    "cut within a piece": lambda line: (
        line.stream(framing="chunked"),
        line.send(EVENTS),
        line.raw(b"400\r\ndata: {"),
    ),
    "cut before the last piece": lambda line: (line.stream(framing="chunked"), line.send(EVENTS)),
    "shorter than announced": lambda line: (line.stream(framing="length"), line.send(EVENTS)),
    "within an event": lambda line: (line.stream(), line.send(EVENTS + b'data: {"ch')),
}


@over_each
@pytest.mark.parametrize("name", TORN)
def test_what_breaks_after_the_finish_reason_is_a_complete_answer(
    make_stage: Any, name: str
) -> None:
    """The caller has every word of it and was told that it is over."""
    make_stage(TORN[name]).assert_answered(True)


def test_of_two_answers_a_half_one_is_not_passed_off_as_whole(make_stage: Any) -> None:
    """Conformance 70."""

    def play(line: Any) -> None:
        line.stream()
        for index, text in enumerate(["whole", "half an "]):
            line.event({"choices": [{"index": index, "delta": {"content": text}}]})
        line.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})

    make_stage(play).assert_failed(True, "upstream_error", "wholehalf an ", n=2)
