"""What is the lean transport's own: how it keeps its connections, and what it refuses."""

import contextlib

import pytest

from oneai_middleware.backends.openai import connections
from oneai_middleware.backends.openai.exchange import IDLE
from oneai_middleware.backends.openai.http_client_transport import HTTPClientTransport
from oneai_middleware.errors import BackendUnavailable
from oneai_middleware.protocol.chat import Timeouts


@pytest.fixture
def transport(clock):
    transport = HTTPClientTransport(clock=clock)
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


def test_those_that_nobody_needs_any_more_are_closed(begin, provider, clock, eventually):
    """Though the one that was used last is used all the time."""
    replies = [begin() for _ in range(3)]
    for reply in replies:
        end(reply)
    for _ in range(3):
        clock.advance(0.6 * IDLE)
        end(begin())
    eventually(lambda: len(provider.connections) == 1)
    assert len({turn.peer for turn in provider.turns}) == 3


def test_a_connection_is_free_as_soon_as_the_last_byte_is_read(begin, provider):
    first, second = begin(), None
    assert first.read1()
    second = begin()
    assert len({turn.peer for turn in provider.turns}) == 1
    first.close()
    end(second)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///v1", "127.0.0.1", "http://a:b/"])
def test_what_is_no_address_of_http_is_unavailable(transport, url):
    with pytest.raises(BackendUnavailable):
        transport.open(url, {}, None, Timeouts()).begin()
