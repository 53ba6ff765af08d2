"""The bytes of a body: chunked, lying, slow, compressed, huge."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.errors import (
    InvalidRequest,
    LengthRequired,
    RequestTooLarge,
    UnsupportedMediaType,
)
from oneai_middleware.protocol.payload import DEADLINE, PIECE, read_body

LIMIT = 100_000
BODY = b'{"a": 1}'
REFUSALS = (InvalidRequest, LengthRequired, RequestTooLarge, UnsupportedMediaType)
CHAT = b'{"model":"deepseek-v3","messages":[{"role":"user","content":"one two"}]}'


class Input(io.BytesIO):
    """A server's input that remembers how much of it was asked for."""

    def __init__(self, data=b"", *, clock=None, pause=0.0, piece=None):
        super().__init__(data)
        self._clock, self._pause, self._piece = clock, pause, piece

    def read(self, size=-1):
        assert 0 <= size <= PIECE
        if self._clock is not None:
            self._clock.advance(self._pause)
        return super().read(size if self._piece is None else min(size, self._piece))


def environ(data=BODY, **more):
    return {"wsgi.input": Input(data), "CONTENT_LENGTH": str(len(data)), **more}


def chunked(data=BODY, **more):
    """As a server hands over what came in chunks, when it says where it ends."""
    return {
        "wsgi.input": Input(data),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
        **more,
    }


# --- what is read -------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, LIMIT])
@pytest.mark.parametrize("make", [environ, chunked])
def test_a_body_up_to_the_limit_is_read(make, size):
    data = b"x" * size
    assert read_body(make(data), LIMIT) == data


@pytest.mark.parametrize("piece", [1, 7, PIECE])
def test_a_body_that_comes_in_pieces_is_put_together(piece):
    data = bytes(range(256)) * 4
    given = {"wsgi.input": Input(data, piece=piece), "CONTENT_LENGTH": str(len(data))}
    assert read_body(given, LIMIT) == data


def test_no_more_than_the_length_is_read():
    body = Input(BODY + b"GET / HTTP/1.1")
    given = {"wsgi.input": body, "CONTENT_LENGTH": str(len(BODY))}
    assert read_body(given, LIMIT) == BODY
    assert body.tell() == len(BODY)


@pytest.mark.parametrize("more", [{}, {"CONTENT_LENGTH": ""}])
def test_without_a_length_and_without_an_end_nothing_is_read(more):
    body = Input(BODY)
    assert read_body({"wsgi.input": body, **more}, LIMIT) == b""
    assert body.tell() == 0


def test_without_a_length_a_body_that_ends_is_read():
    assert read_body({"wsgi.input": Input(BODY), "wsgi.input_terminated": True}, LIMIT) == BODY


@pytest.mark.parametrize("encoding", ["chunked", "Chunked", " chunked "])
def test_a_chunked_body_is_read_where_the_server_ends_it(encoding):
    """Conformance 42."""
    assert read_body(chunked(HTTP_TRANSFER_ENCODING=encoding), LIMIT) == BODY


@pytest.mark.parametrize("more", [{}, {"wsgi.input_terminated": False}, {"CONTENT_LENGTH": ""}])
def test_a_chunked_body_without_an_end_is_411_at_once(more):
    """Conformance 42."""
    body = Input(BODY)
    given = {"wsgi.input": body, "HTTP_TRANSFER_ENCODING": "chunked", **more}
    with pytest.raises(LengthRequired):
        read_body(given, LIMIT)
    assert body.tell() == 0


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", " identity "])
def test_no_encoding_is_an_encoding(encoding):
    assert read_body(environ(HTTP_CONTENT_ENCODING=encoding), LIMIT) == BODY


# --- what is refused ----------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "identity, gzip", "x"])
def test_a_compressed_body_is_415_and_stays_unread(encoding):
    given = environ(HTTP_CONTENT_ENCODING=encoding)
    with pytest.raises(UnsupportedMediaType):
        read_body(given, LIMIT)
    assert given["wsgi.input"].tell() == 0


@pytest.mark.parametrize(
    "length",
    [
        "+8",
        "-8",
        "8, 8",
        "8,9",
        "0x8",
        "8.0",
        "8 ",
        " 8",
        "8\n",
        "1e1",
        "eight",
        "\u0668",
        "8" * 13,
    ],
)
def test_a_malformed_length_is_400_and_nothing_is_read(length):
    given = environ(CONTENT_LENGTH=length)
    with pytest.raises(InvalidRequest) as caught:
        read_body(given, LIMIT)
    assert caught.value.code == "invalid_body"
    assert given["wsgi.input"].tell() == 0


@pytest.mark.parametrize("encoding", ["chunked", "identity", "gzip, chunked", "x"])
@pytest.mark.parametrize("length", ["8", "0", "x"])
@pytest.mark.parametrize("ends", [True, False])
def test_a_length_beside_a_transfer_encoding_is_400(encoding, length, ends):
    given = chunked(
        CONTENT_LENGTH=length, HTTP_TRANSFER_ENCODING=encoding, **{"wsgi.input_terminated": ends}
    )
    with pytest.raises(InvalidRequest):
        read_body(given, LIMIT)
    assert given["wsgi.input"].tell() == 0


@pytest.mark.parametrize("encoding", ["xchunked", "chunked, chunked", "gzip, chunked", "identity"])
def test_an_unknown_transfer_encoding_is_400(encoding):
    given = chunked(HTTP_TRANSFER_ENCODING=encoding)
    with pytest.raises(InvalidRequest):
        read_body(given, LIMIT)
    assert given["wsgi.input"].tell() == 0


@pytest.mark.parametrize("length", [LIMIT + 1, 10**9, 10**12 - 1])
def test_a_length_over_the_limit_is_413_and_nothing_is_read(length):
    """Conformance 41."""
    given = environ(CONTENT_LENGTH=str(length))
    with pytest.raises(RequestTooLarge):
        read_body(given, LIMIT)
    assert given["wsgi.input"].tell() == 0


def test_of_a_chunked_body_over_the_limit_one_byte_too_many_is_read():
    """Conformance 41."""
    given = chunked(b"x" * (10 * LIMIT))
    with pytest.raises(RequestTooLarge):
        read_body(given, LIMIT)
    assert given["wsgi.input"].tell() == LIMIT + 1


def test_a_body_shorter_than_its_length_is_400():
    """Conformance 41."""
    with pytest.raises(InvalidRequest) as caught:
        read_body(environ(CONTENT_LENGTH=str(len(BODY) + 1)), LIMIT)
    assert caught.value.code == "invalid_body"


@pytest.mark.parametrize(
    "error", [OSError("reset"), ValueError("chunk"), TimeoutError(), EOFError()]
)
def test_a_body_that_cannot_be_read_is_400(error):
    class Broken:
        def read(self, size):
            raise error

    with pytest.raises(InvalidRequest) as caught:
        read_body(environ(**{"wsgi.input": Broken()}), LIMIT)
    assert caught.value.message == "The body could not be read."


def test_a_body_that_drips_is_given_up_at_its_deadline(clock):
    began = clock()
    dripping = Input(b"x" * LIMIT, clock=clock, pause=1.0, piece=10)
    given = environ(**{"wsgi.input": dripping, "CONTENT_LENGTH": str(LIMIT)})
    with pytest.raises(InvalidRequest) as caught:
        read_body(given, LIMIT, clock)
    assert caught.value.message == "The body came too slowly."
    assert DEADLINE < clock() - began <= DEADLINE + 1


def test_a_body_that_is_slow_but_in_time_is_read(clock):
    data = b"x" * 590
    slow = Input(data, clock=clock, pause=1.0, piece=10)
    given = {"wsgi.input": slow, "CONTENT_LENGTH": str(len(data))}
    assert read_body(given, LIMIT, clock) == data


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "CONTENT_LENGTH": st.text(max_size=14) | st.integers(0, 300).map(str),
            "HTTP_TRANSFER_ENCODING": st.text(max_size=10) | st.sampled_from(["chunked", ""]),
            "HTTP_CONTENT_ENCODING": st.text(max_size=10) | st.sampled_from(["identity", "gzip"]),
            "wsgi.input_terminated": st.booleans(),
        },
    ),
    st.binary(max_size=300),
)
def test_whatever_a_server_says_no_more_than_the_limit_is_read(headers, data):
    body = Input(data)
    try:
        read = read_body({"wsgi.input": body, **headers}, 100)
    except REFUSALS:
        assert body.tell() <= 101
    else:
        assert data.startswith(read)
        assert len(read) <= 100


# --- through the gateway ------------------------------------------------------


def chat(send, gateway, headers, body=CHAT, **more):
    return send(gateway, "POST", "/v1/chat/completions", body, headers, **more)


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/x-www-form-urlencoded",
        "text/plain; charset=latin-1",
        "multipart/form-data; boundary=x",
        "nonsense",
    ],
)
def test_any_content_type_is_taken_for_json(make_gateway, send, headers, kind):
    """Conformance 46."""
    assert chat(send, make_gateway(), headers, CONTENT_TYPE=kind).status == 200


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"CONTENT_LENGTH": str(21 * 2**20)}, 413, "request_too_large"),
        ({"CONTENT_LENGTH": "x"}, 400, "invalid_body"),
        ({"CONTENT_LENGTH": "5000"}, 400, "invalid_body"),
        ({"CONTENT_LENGTH": "7"}, 400, "invalid_json"),
        ({"CONTENT_LENGTH": "0"}, 400, "invalid_json"),
        ({"CONTENT_LENGTH": None}, 400, "invalid_json"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, 400, "invalid_body"),
        ({"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}, 411, "length_required"),
        ({"HTTP_CONTENT_ENCODING": "gzip"}, 415, "unsupported_media_type"),
    ],
)
def test_a_body_that_is_refused_consumes_nothing(make_gateway, send, headers, more, status, code):
    """Conformance 41, 42 and 99."""
    gateway = make_gateway()
    reply = chat(send, gateway, headers, **more)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (status, code, None)
    good = chat(send, gateway, headers)
    assert good.headers["x-ratelimit-remaining-requests"] == "199"
    assert good.headers["x-ratelimit-limit-requests"] == "200"


def test_the_limit_is_the_operators_to_set(make_gateway, send, headers):
    """Conformance 41."""
    gateway = make_gateway(max_body_bytes=len(CHAT))
    assert chat(send, gateway, headers).status == 200
    assert chat(send, gateway, headers, CHAT + b" ").error["code"] == "request_too_large"


def test_a_huge_body_is_answered_without_being_read(make_gateway, send, headers):
    """Conformance 41."""

    class Endless:
        def read(self, size=-1):
            raise AssertionError("read")

    huge = {"wsgi.input": Endless(), "CONTENT_LENGTH": "999999999999"}
    assert chat(send, make_gateway(), headers, **huge).status == 413
    assert chat(send, make_gateway(), {}, **huge).status == 401
