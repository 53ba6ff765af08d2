import contextlib
import socket
import struct

import pytest

from oneai_middleware.relay.presence import is_connected, presence_of


@pytest.fixture
def tcp():
    """The server's and the caller's end of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with server, caller:
        yield server, caller


@pytest.fixture
def unix():
    server, caller = socket.socketpair(socket.AF_UNIX)
    with server, caller:
        yield server, caller


@pytest.fixture(params=["tcp", "unix"])
def ends(request):
    return request.getfixturevalue(request.param)


def test_a_caller_who_waits_is_there(ends):
    server, _ = ends
    assert is_connected(server)


def test_a_caller_who_has_sent_more_is_there_and_loses_nothing(ends):
    server, caller = ends
    caller.sendall(b"next request")
    assert is_connected(server)
    assert server.recv(100) == b"next request"
    assert is_connected(server)


def test_a_caller_who_closed_is_gone(ends, eventually):
    server, caller = ends
    caller.close()
    eventually(lambda: not is_connected(server))


def test_a_caller_who_closed_one_way_is_taken_to_have_left(ends, eventually):
    server, caller = ends
    caller.shutdown(socket.SHUT_WR)
    eventually(lambda: not is_connected(server))


def test_a_caller_who_hung_up_with_answers_unread_is_gone(ends, eventually):
    server, caller = ends
    server.sendall(b"an answer nobody reads")
    caller.close()
    eventually(lambda: not is_connected(server))


def test_a_caller_who_was_reset_is_gone(tcp, eventually):
    server, caller = tcp
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()
    eventually(lambda: not is_connected(server))


def test_a_caller_who_left_with_bytes_on_the_way_is_gone(tcp, eventually):
    server, caller = tcp
    caller.sendall(b"more")
    caller.close()
    eventually(lambda: not is_connected(server))


def test_a_connection_that_we_closed_is_gone(ends):
    server, _ = ends
    server.close()
    assert not is_connected(server)


def test_a_write_after_the_caller_left_changes_nothing(tcp, eventually):
    server, caller = tcp
    caller.close()
    eventually(lambda: not is_connected(server))
    with contextlib.suppress(OSError):
        for _ in range(3):
            server.sendall(b"x")
    assert not is_connected(server)


def test_a_blocking_socket_stays_a_blocking_socket(ends):
    server, _ = ends
    server.settimeout(7)
    assert is_connected(server)
    assert server.gettimeout() == 7


@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
def test_the_servers_socket_is_found(tcp, eventually, name):
    server, caller = tcp
    is_present = presence_of({name: server})
    assert is_present()
    caller.close()
    eventually(lambda: not is_present())


def test_without_a_socket_there_is_nothing_to_look_at():
    assert presence_of({}) is None
    assert presence_of({"gunicorn.socket": None}) is None


@pytest.mark.parametrize("strange", [object(), 5, "socket"])
def test_what_is_no_socket_is_never_taken_for_a_caller_who_left(strange):
    """A server may change what it hands out; then only a failing write tells."""
    assert presence_of({"gunicorn.socket": strange})()


def test_under_gevent_nobody_is_waited_for():
    """There, even a recv that must not wait gives way until bytes come."""
    gevent = pytest.importorskip("gevent")
    from gevent import socket as cooperative

    server, caller = cooperative.socketpair(socket.AF_UNIX)
    with server, caller, gevent.Timeout(10):
        assert is_connected(server)
        caller.close()
        assert not is_connected(server)
