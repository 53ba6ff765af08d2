"""What is the lean transport's own: how it keeps its connections, and what it refuses."""

import contextlib
import threading

import pytest

from oneai_middleware.backends.openai import connections
from oneai_middleware.backends.openai.http_client_transport import HTTPClientTransport
from oneai_middleware.errors import BackendUnavailable
from oneai_middleware.protocol.chat import Timeouts


@pytest.fixture
def transport():
    transport = HTTPClientTransport()
    yield transport
    transport.close()


@pytest.fixture
def begin(transport, provider):
    """Begin a call."""

    def begin(path=""):
        reply = transport.open(provider.url + path, {}, b"{}", Timeouts())
        reply.begin()
        return reply

    return begin


def end(reply):
    """Read it whole."""
    with contextlib.closing(reply):
        while reply.read1():
            pass


def test_the_connection_that_was_used_last_is_used_next(begin, provider):
    replies = [begin() for _ in range(3)]
    for reply in replies:
        end(reply)
    end(begin())
    assert provider.turns[3].peer == provider.turns[2].peer


def test_so_many_idle_connections_are_kept_and_no_more(begin, provider, monkeypatch, eventually):
    monkeypatch.setattr(connections, "IDLE_CONNECTIONS", 2)
    replies = [begin() for _ in range(4)]
    for reply in replies:
        end(reply)
    eventually(lambda: len(provider.connections) == 2)


def test_a_connection_is_free_as_soon_as_the_last_byte_is_read(begin, provider):
    first, second = begin(), None
    assert first.read1()
    second = begin()
    assert len({turn.peer for turn in provider.turns}) == 1
    first.close()
    end(second)


@pytest.mark.parametrize("late", [False, True])
def test_what_comes_unasked_is_no_answer_to_the_next_call(begin, provider, eventually, late):
    """Whether it comes along with an answer or some time after."""
    unasked = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nunsaid"
    go_on, gone = threading.Event(), threading.Event()

    def respond(turn):
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nword"
        if len(provider.turns) > 1 or not late:
            turn.raw(answer + unasked)
        else:
            turn.raw(answer)
            assert go_on.wait(10)
            turn.raw(unasked)
            gone.set()

    provider.respond = respond
    end(begin())
    go_on.set()
    assert not late or gone.wait(10)
    second = begin()
    assert second.read1() == b"word"
    second.close()
    assert len({turn.peer for turn in provider.turns}) == 2


@pytest.mark.parametrize(
    "head",
    [
        b"Connection: close\r\nContent-Length: 4\r\n\r\nword",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n4\r\nword\r\n0\r\n\r\n",
    ],
)
def test_a_connection_that_ends_or_whose_answer_has_two_ends_serves_no_other_call(
    begin, provider, head
):
    provider.respond = lambda turn: turn.raw(b"HTTP/1.1 200 OK\r\n" + head)
    for _ in range(2):
        end(begin())
    assert len({turn.peer for turn in provider.turns}) == 2


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///v1", "127.0.0.1", "http://a:b/"])
def test_what_is_no_address_of_http_is_unavailable(transport, url):
    with pytest.raises(BackendUnavailable):
        transport.open(url, {}, None, Timeouts()).begin()
