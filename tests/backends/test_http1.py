"""How an answer of HTTP/1.1 is read: the same however its bytes come, and strictly."""

from http.client import HTTPException, RemoteDisconnected

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.backends.openai.http1 import MAX_HEAD, WAITING, Answer, Inlet

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = 1 << 20


def read(*pieces):
    """Status, headers, body, whether it is over, and whether another may follow."""
    coming = iter(pieces)
    inlet = Inlet(lambda size: next(coming, b""), 64 * 1024)
    answer = Answer(inlet)
    body = b""
    while data := answer.read1(1000):
        assert len(data) <= 1000
        body += data
    assert answer.is_over
    return answer.status, dict(answer.headers), body, not answer.is_last and inlet.is_empty


GOOD = {
    "a length": (OK + b"Content-Length: 4\r\n\r\nword", b"word", True),
    "a length of nothing": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "a length said twice": (OK + b"Content-Length: 4, 4\r\n\r\nword", b"word", True),
    "a length in two headers": (OK + b"Content-Length: 4\r\n" * 2 + b"\r\nword", b"word", True),
    "until it closes": (OK + b"\r\nword", b"word", False),
    "it will close": (OK + b"Connection: Close\r\nContent-Length: 1\r\n\r\nw", b"w", False),
    "an old one": (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nword", b"word", False),
    "an old one that stays": (
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 4\r\n\r\nword",
        b"word",
        True,
    ),
    "chunks": (CHUNKED + b"2\r\nwo\r\n02;a=b\r\nrd\r\n0\r\n\r\n", b"word", True),
    "capitals": (
        OK + b"transfer-ENCODING:Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        b"0123456789",
        True,
    ),  # fmt: skip
    "trailers": (CHUNKED + b"4\r\nword\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n", b"word", True),
    "line feeds alone": (b"HTTP/1.1 200 OK\nContent-Length: 4\n\nword", b"word", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 4\r\n\r\nword", b"word", True),
    "early hints": (
        b"HTTP/1.1 103 Early\r\nContent-Length: 9\r\n\r\n" + OK + b"\r\nword",
        b"word",
        False,
    ),  # fmt: skip
    "no coding": (
        OK + b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n\r\nword",
        b"word",
        True,
    ),  # fmt: skip
    "two minds": (
        CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n4\r\nword\r\n0\r\n\r\n",
        b"word",
        False,
    ),
    "more than was announced": (OK + b"Content-Length: 4\r\n\r\nwordHTTP", b"word", False),
    "a length of much": (OK + b"Content-Length: 99999\r\n\r\n" + b"x" * 99999, b"x" * 99999, True),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_answer_is_read_whole_and_it_is_known_whether_another_can_follow(name):
    raw, body, is_kept = GOOD[name]
    assert read(raw)[2:] == (body, is_kept)


@given(name=st.sampled_from(sorted(GOOD)), cuts=st.sets(st.integers(0, 150)))
def test_an_answer_is_the_same_wherever_its_bytes_are_cut(name, cuts):
    raw, body, _ = GOOD[name]
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(raw)), len(raw)]
    pieces = [raw[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    assert read(*pieces)[:3] == (200, read(raw)[1], body)


def test_little_is_set_aside_while_little_comes_and_much_while_much_does():
    """Thousands of streams may wait for their next event."""
    head, words, asked = OK + b"Content-Length: 9999\r\n\r\n", [4, 4, WAITING, 4000, 4], []
    coming = iter([head, *(b"x" * size for size in words), head])

    def receive(size):
        asked.append(size)
        return next(coming)

    inlet = Inlet(receive, 4000)
    answer = Answer(inlet)
    assert [len(answer.read1(4000)) for _ in words] == words
    Answer(inlet)
    assert asked == [4000, WAITING, WAITING, WAITING, 4000, 4000, 4000]


def test_much_is_asked_for_though_tls_never_gives_as_much():
    """A record of 16 KB is not to be read in two."""
    record, left, asked = 16 * 1024, 0, []
    coming = [OK + b"Content-Length: 999999\r\n\r\n"]

    def receive(size):
        nonlocal left
        asked.append(size)
        if coming:
            return coming.pop()
        left = left or record
        given = min(size, left)
        left -= given
        return b"x" * given

    answer = Answer(Inlet(receive, 64 * 1024))
    for _ in range(9):
        answer.read1(64 * 1024)
    assert asked == [64 * 1024, WAITING, *[64 * 1024] * 8]


@pytest.mark.parametrize("status", [204, 304])
def test_some_statuses_have_no_body(status):
    raw = b"HTTP/1.1 %d X\r\nContent-Length: 7\r\n\r\n" % status
    assert read(raw) == (status, {"content-length": "7"}, b"", True)


def test_nothing_follows_a_switch_of_protocols():
    assert read(b"HTTP/1.1 101 Switching\r\n\r\n")[2:] == (b"", False)


def test_headers_are_found_in_any_case_and_joined_where_there_are_several():
    raw = OK + b"X-A:  one\t\r\nx-b:\r\nX-a: t\xf6o\r\nContent-Length: 0\r\n\r\n"
    headers = Answer(Inlet(lambda size: raw, 1)).headers
    assert headers["x-A"] == headers.get("X-a") == "one, töo"
    assert (headers["x-b"], headers.get("x-c"), len(headers)) == ("", None, 3)
    assert list(headers) == ["x-a", "x-b", "content-length"]


BAD = {
    "half a status": b"HTTP/1.1 20",
    "half a head": OK + b"Content-Length: 4\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "another protocol": b"220 smtp.example ESMTP\r\n\r\n",
    "an empty line": b"\r\n",
    "an empty line before": b"\r\n" + OK + b"\r\n",
    "a header without a colon": OK + b"no header\r\n\r\n",
    "a name with a space": OK + b"Content-Length : 4\r\n\r\nword",
    "no name": OK + b": 4\r\n\r\nword",
    "a folded header": OK + b"X: a\r\n b\r\n\r\n",
    "a lonely carriage return": OK + b"X: a\rContent-Length: 4\r\n\r\n",
    "a zero": OK + b"X: a\0b\r\n\r\n",
    "too many headers": OK + b"X: y\r\n" * 101 + b"\r\n",
    "an endless header": OK + b"X: " + b"x" * MAX_HEAD,
    "a long head": OK + b"X: " + b"x" * MAX_HEAD + b"\r\n\r\n",
    "only early hints": b"HTTP/1.1 103 Early\r\n\r\n" * 101 + OK + b"\r\n",
    "two lengths": OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nword",
    "a negative length": OK + b"Content-Length: -4\r\n\r\nword",
    "a length of letters": OK + b"Content-Length: four\r\n\r\nword",
    "a length of odd digits": OK + "Content-Length: ４\r\n\r\nword".encode(),
    "a length too long": OK + b"Content-Length: 5\r\n\r\nword",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nword\r\n0\r\n\r\n",
    "two codings": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n4\r\nword\r\n0\r\n\r\n",
    "a chunk of negative size": CHUNKED + b"-4\r\nword\r\n0\r\n\r\n",
    "a chunk of signed size": CHUNKED + b"+4\r\nword\r\n0\r\n\r\n",
    "a chunk of odd size": CHUNKED + b"0x4\r\nword\r\n0\r\n\r\n",
    "a chunk of no size": CHUNKED + b"\r\nword\r\n0\r\n\r\n",
    "a chunk of endless size": CHUNKED + b"0" * 70_000,
    "a chunk without an end": CHUNKED + b"4\r\nwords\r\n0\r\n\r\n",
    "half a chunk": CHUNKED + b"5\r\nword",
    "no last chunk": CHUNKED + b"4\r\nword\r\n",
    "half of the last chunk": CHUNKED + b"4\r\nword\r\n0\r\n",
    "endless trailers": CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_malformed_is_refused_and_not_told(name):
    with pytest.raises(HTTPException) as caught:
        read(BAD[name])
    assert "word" not in str(caught.value)
    with pytest.raises(HTTPException):
        read(*(bytes([byte]) for byte in BAD[name][:3000]))


def test_nothing_at_all_is_no_answer_but_a_connection_that_broke():
    with pytest.raises(RemoteDisconnected):
        read()


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [b"HTTP/1.1 200 OK", b"\r\n", b"\n", b": ", b"Content-Length", b"Connection",
                 b"Transfer-Encoding", b"chunked", b"close", b"4", b"0", b";", b"word", b"103"]
            ),
            st.binary(max_size=4),
        )
    )
)  # fmt: skip
def test_whatever_comes_is_an_answer_or_is_refused(parts):
    raw = b"".join(parts)
    try:
        outcome = read(raw)
    except HTTPException:
        outcome = None
    try:
        again = read(*(bytes([byte]) for byte in raw))
    except HTTPException:
        again = None
    assert (outcome and outcome[:3]) == (again and again[:3])
