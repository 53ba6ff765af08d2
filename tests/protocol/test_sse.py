"""Events out of bytes that are cut anywhere, and bytes that any client can split."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.protocol import json
from oneai_middleware.protocol.sse import (
    DONE,
    KEEP_ALIVE,
    MAX_EVENT,
    Event,
    EventSplitter,
    EventTooLong,
    event,
)


def read(*pieces):
    """Every event of a stream that arrives in ``pieces`` and then ends."""
    splitter = EventSplitter()
    events = [found for piece in pieces for found in splitter.feed(piece)]
    return [*events, *splitter.close()], splitter.pending


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


LINES = st.one_of(
    st.sampled_from(
        [b"", b"", b"data", b"data:", b"data: ", b"data:  x", b"data: [DONE]", b":", b": alive",
         b"event: error", b"event", b"id: 7", b"retry: 3000", b"nonsense", b"\xef\xbb\xbfdata: x"]
    ),
    st.text(max_size=8).map(lambda text: b"data: " + text.encode()),
    st.binary(max_size=8),
)  # fmt: skip
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=8))
def test_a_stream_holds_the_same_events_wherever_it_is_cut(data, places):
    """Conformance 75."""
    whole = read(data)
    assert read(*cut(data, places)) == whole
    assert read(*(data[i : i + 1] for i in range(len(data)))) == whole


@given(
    st.lists(st.lists(st.text(alphabet="aé😀 :", max_size=6), min_size=1, max_size=3), max_size=5),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_data_comes_out_as_it_was_written_with_any_line_end(events, end, places):
    data = b"".join(
        b"".join(b"data: " + line.encode() + end for line in lines) + end for lines in events
    )
    expected = [Event("\n".join(lines).encode()) for lines in events]
    assert read(*cut(data, places)) == (expected, False)


def test_an_event_is_delivered_by_the_bytes_that_complete_it():
    """Conformance 59."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n\ndata: 2\n") == [Event(b"1")]
    assert splitter.feed(b"\n") == [Event(b"2")]
    assert splitter.feed(b"data: 3\r\n\r") == [Event(b"3")]
    assert splitter.feed(b"\n") == []
    assert not splitter.pending


def test_a_crlf_cut_between_two_feeds_is_one_line_end():
    assert read(b"data: 1\r", b"\ndata: 2\r", b"", b"\n\r", b"\n") == ([Event(b"1\n2")], False)


def test_one_space_after_the_colon_belongs_to_the_form_and_a_second_to_the_data():
    assert read(b"data:x\n\ndata: x\n\ndata:  x\n\n")[0] == [
        Event(b"x"),
        Event(b"x"),
        Event(b" x"),
    ]


def test_a_byte_order_mark_is_ignored_at_the_very_start_only():
    assert read(b"\xef", b"\xbb", b"\xbfdata: 1\n\n")[0] == [Event(b"1")]
    assert read(b"data: 1\n\n", b"\xef\xbb\xbfdata: 2\n\n")[0] == [Event(b"1")]


def test_a_comment_is_a_sign_of_life_even_in_the_middle_of_an_event():
    assert read(b"data: 1\n: alive\ndata: 2\n\n")[0] == [Event(None), Event(b"1\n2")]
    assert read(KEEP_ALIVE)[0] == [Event(None)]


def test_id_and_retry_say_nothing_and_the_name_of_an_event_is_kept():
    """Conformance 74."""
    assert read(b"id: 1\nretry: 3000\n\n") == ([], False)
    assert read(b"event: error\nid: 1\ndata: {}\n\ndata: {}\n\n")[0] == [
        Event(b"{}", "error"),
        Event(b"{}"),
    ]
    assert read(b"event: ping\n\n")[0] == [Event(None, "ping")]


def test_empty_data_is_an_event_and_a_blank_line_is_none():
    assert read(b"\n\n\r\n") == ([], False)
    assert read(b"data\n\ndata:\n\n")[0] == [Event(b""), Event(b"")]


@pytest.mark.parametrize("end", [b"data: {", b"data: {}\n\ndata", b"data: 1\ndata: 2", b": ali"])
def test_an_event_cut_within_a_line_is_not_delivered_and_stays_pending(end):
    events, pending = read(b"data: 0\n\n", end)
    assert pending
    assert events[0] == Event(b"0")
    assert all(found.data in {b"0", b"{}"} for found in events)


def test_a_last_event_that_lacks_only_its_blank_line_is_delivered_at_the_end():
    splitter = EventSplitter()
    assert splitter.feed(b"data: [DONE]\n") == []
    assert splitter.pending
    assert splitter.close() == [Event(b"[DONE]")]
    assert not splitter.pending
    assert splitter.close() == []


def test_an_event_of_the_greatest_length_passes_and_one_byte_more_does_not():
    line = b"data: ".ljust(MAX_EVENT, b"x")
    assert read(line + b"\n\n")[0] == [Event(line[6:])]
    with pytest.raises(EventTooLong):
        read(line + b"x\n\n")
    with pytest.raises(EventTooLong):
        read(line, b"x")
    with pytest.raises(EventTooLong):
        read(b":".ljust(MAX_EVENT + 1) + b"\n")
    with pytest.raises(EventTooLong):
        read(line + b"\ndata:\n\n")


@pytest.mark.parametrize("line", [b"data:\n", b"data: x\r\n"])
def test_an_event_that_never_ends_is_refused_however_short_its_lines_are(line):
    with pytest.raises(EventTooLong):
        read(*itertools.repeat(line, MAX_EVENT))


def test_a_long_life_of_comments_and_names_is_no_long_event():
    splitter = EventSplitter()
    block = b": alive\nevent: ping\n" * 1000
    for _ in range(MAX_EVENT // len(block) + 2):
        splitter.feed(block)
    assert splitter.feed(b"data: x\n\n") == [Event(b"x", "ping")]


def test_a_line_that_drips_in_byte_by_byte_is_put_together():
    splitter = EventSplitter()
    data = b"data: " + b"x" * 200_000 + b"\n\n"
    found = [e for i in range(len(data)) for e in splitter.feed(data[i : i + 1])]
    assert found == [Event(b"x" * 200_000)]


BREAKS = st.text(alphabet='ab\n\r\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x00\\"é😀')
TEXTS = st.one_of(BREAKS, st.text())


@given(st.lists(TEXTS, max_size=4))
def test_any_text_survives_the_way_out_and_in_again(texts):
    """Conformance 58."""
    sent = b"".join(event(json.encode({"content": text})) for text in texts) + DONE
    *events, done = read(sent)[0]
    assert done == Event(b"[DONE]")
    assert [json.decode(found.data)["content"] for found in events] == texts


@given(TEXTS)
def test_any_text_survives_a_client_that_splits_at_every_line_break_of_unicode(text):
    """Conformance 76."""
    lines = event(json.encode({text: text})).decode().splitlines()
    assert len(lines) == 2
    assert lines[1] == ""
    assert json.decode(lines[0].removeprefix("data: ").encode()) == {text: text}


def test_what_is_written_has_the_exact_form():
    """Conformance 58."""
    assert event(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert DONE == b"data: [DONE]\n\n"
    assert KEEP_ALIVE == b": keep-alive\n\n"
