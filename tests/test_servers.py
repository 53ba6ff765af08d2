import contextlib
import errno
import os
import socket
import ssl
import struct
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from oneai_middleware.servers import Connection, connection_of, threads_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")


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


@pytest.fixture
def connection(ends):
    return Connection(ends[0].fileno())


# --- is the caller there? ---------------------------------------------------------


def test_a_caller_who_waits_is_there(connection):
    assert connection.is_present()


def test_a_caller_who_has_sent_more_is_there_and_loses_nothing(ends, connection):
    server, caller = ends
    caller.sendall(b"next request")
    assert connection.is_present()
    assert server.recv(100) == b"next request"
    assert connection.is_present()


def test_a_caller_who_closed_is_gone(ends, connection, eventually):
    ends[1].close()
    eventually(lambda: not connection.is_present())


def test_a_caller_who_closed_one_way_is_taken_to_have_left(ends, connection, eventually):
    ends[1].shutdown(socket.SHUT_WR)
    eventually(lambda: not connection.is_present())


def test_a_caller_who_hung_up_with_answers_unread_is_gone(ends, connection, eventually):
    server, caller = ends
    server.sendall(b"an answer nobody reads")
    caller.close()
    eventually(lambda: not connection.is_present())


def test_a_caller_who_was_reset_is_gone(tcp, eventually):
    server, caller = tcp
    connection = Connection(server.fileno())
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()
    eventually(lambda: not connection.is_present())


@linux
def test_a_caller_who_left_with_bytes_on_the_way_is_gone(tcp, eventually):
    server, caller = tcp
    connection = Connection(server.fileno())
    caller.sendall(b"more")
    caller.close()
    eventually(lambda: not connection.is_present())


def test_a_connection_that_the_server_closed_is_gone(ends, connection):
    ends[0].close()
    assert not connection.is_present()


def test_a_write_after_the_caller_left_changes_nothing(tcp, eventually):
    server, caller = tcp
    connection = Connection(server.fileno())
    caller.close()
    eventually(lambda: not connection.is_present())
    with contextlib.suppress(OSError):
        for _ in range(3):
            server.sendall(b"x")
    assert not connection.is_present()


def test_a_caller_is_not_given_up_because_no_descriptor_is_to_be_had(connection, monkeypatch):
    def dup(descriptor):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "dup", dup)
    assert connection.is_present()
    connection.cut()
    connection.limit_writes(1)
    connection.restore_writes()
    assert connection.taken() is None


# --- the server's socket stays as it was --------------------------------------------


@pytest.mark.parametrize("timeout", [None, 7.0])
def test_looking_changes_nothing_about_the_servers_socket(ends, connection, timeout):
    server, _ = ends
    socket.setdefaulttimeout(5)
    try:
        server.settimeout(timeout)
        is_blocking = os.get_blocking(server.fileno())
        assert connection.is_present()
        assert os.get_blocking(server.fileno()) is is_blocking
    finally:
        socket.setdefaulttimeout(None)


def test_no_descriptor_is_kept(ends, connection):
    server, caller = ends
    lowest_free = os.dup(server.fileno())
    os.close(lowest_free)
    connection.is_present()
    connection.limit_writes(3)
    connection.taken()
    connection.restore_writes()
    connection.cut()
    again = os.dup(server.fileno())
    os.close(again)
    assert again == lowest_free
    server.close()
    assert caller.recv(1) == b""  # which nobody could see while a duplicate were open


def test_a_number_that_has_become_another_connections_is_left_alone(ends, connection):
    server, _ = ends
    other, peer = socket.socketpair(socket.AF_UNIX)
    with other, peer:
        os.dup2(other.fileno(), server.fileno())
        assert not connection.is_present()
        connection.cut()
        connection.limit_writes(1)
        connection.restore_writes()
        assert connection.taken() is None
        peer.sendall(b"still open")
        assert server.recv(100) == b"still open"


# --- a caller who takes nothing -------------------------------------------------------


def fill(server):
    """Send until the caller's side takes no more; how many bytes that were."""
    server.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += server.send(b"x" * 2**16)
    server.setblocking(True)
    return sent


def writes_are_limited_to(server):
    return server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


@linux
@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(30.0, 30_000), (0.5, 500), (0, 0), (9_999_999, 2**31 - 1)]
)
def test_the_system_is_told_how_long_a_caller_may_take_nothing(tcp, seconds, milliseconds):
    server, _ = tcp
    Connection(server.fileno()).limit_writes(seconds)
    assert writes_are_limited_to(server) == milliseconds


@linux
@pytest.mark.parametrize("found", [0, 12_345])
def test_what_the_server_had_set_holds_again_afterwards(tcp, found):
    server, _ = tcp
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, found)
    for _ in range(2):
        connection = Connection(server.fileno())
        connection.limit_writes(30)
        assert writes_are_limited_to(server) == 30_000
        connection.restore_writes()
        assert writes_are_limited_to(server) == found


@linux
def test_what_was_never_limited_is_not_restored(tcp):
    server, _ = tcp
    connection = Connection(server.fileno())
    connection.limit_writes(30)
    connection.restore_writes()
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
    connection.restore_writes()
    Connection(server.fileno()).restore_writes()
    assert writes_are_limited_to(server) == 5000


@linux
def test_another_connection_of_the_same_number_is_not_restored(tcp):
    server, _ = tcp
    connection = Connection(server.fileno())
    connection.limit_writes(30)
    with socket.socket() as other:
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
        os.dup2(other.fileno(), server.fileno())
        connection.restore_writes()
        assert writes_are_limited_to(other) == 5000


@linux
def test_what_the_callers_machine_has_taken_is_counted(tcp, eventually):
    server, caller = tcp
    connection = Connection(server.fileno())
    before = connection.taken()
    server.sendall(b"x" * 1000)
    eventually(lambda: connection.taken() == before + 1000)
    sent = 1000 + fill(server)
    assert connection.taken() < before + sent  # the rest waits on our side
    unread = sent
    while unread:
        unread -= len(caller.recv(unread))
    eventually(lambda: connection.taken() == before + sent)


def test_where_that_cannot_be_known_nothing_is_said(unix):
    server, _ = unix
    connection = Connection(server.fileno())
    server.sendall(b"x")
    assert connection.taken() is None


@linux
def test_the_system_breaks_a_connection_whose_caller_takes_nothing(tcp):
    server, _ = tcp
    Connection(server.fileno()).limit_writes(0.2)
    fill(server)
    with pytest.raises(TimeoutError):
        server.sendall(b"x" * 2**20)


def test_where_writes_cannot_be_limited_nothing_happens(unix, monkeypatch):
    server, caller = unix
    connection = Connection(server.fileno())
    connection.limit_writes(1)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    connection.limit_writes(1)
    server.close()
    connection.limit_writes(1)
    assert not connection.is_present()


def test_a_thread_that_hangs_in_a_send_comes_back_when_the_connection_is_cut(ends, connection):
    server, _ = ends
    hanging, errors = threading.Event(), []

    def send():
        fill(server)
        hanging.set()
        try:
            server.sendall(b"x" * 2**20)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    hanging.wait(10)
    thread.join(0.05)
    assert thread.is_alive()
    connection.cut()
    thread.join(10)
    assert not thread.is_alive()
    assert [error.errno for error in errors] == [errno.EPIPE]


def test_a_caller_who_is_cut_off_sees_no_end_that_could_be_the_answers(tcp):
    server, caller = tcp
    fill(server)
    Connection(server.fileno()).cut()
    server.close()
    with pytest.raises(ConnectionResetError):
        list(iter(lambda: caller.recv(2**20), b""))


def test_a_connection_that_is_closed_can_be_cut(ends, connection):
    for end in ends:
        end.close()
        connection.cut()
    assert not connection.is_present()


def test_under_gevent_nobody_is_waited_for():
    """There, even a recv that must not wait gives way until bytes come."""
    gevent = pytest.importorskip("gevent")
    from gevent import socket as cooperative

    server, caller = cooperative.socketpair(socket.AF_UNIX)
    with server, caller, gevent.Timeout(10):
        connection = Connection(server.fileno())
        assert connection.is_present()
        caller.close()
        assert not connection.is_present()


def test_under_gevent_a_greenlet_that_hangs_in_a_send_comes_back():
    gevent = pytest.importorskip("gevent")
    from gevent import socket as cooperative

    server, caller = cooperative.socketpair(socket.AF_UNIX)
    with server, caller, gevent.Timeout(10):
        sending = gevent.spawn(server.sendall, b"x" * 2**24)
        gevent.sleep(0)
        assert not sending.ready()
        Connection(server.fileno()).cut()
        with pytest.raises(BrokenPipeError):
            sending.get()


# --- where servers keep it ----------------------------------------------------------------


def file(server):
    return SimpleNamespace(raw=SimpleNamespace(_sock=server))


class Channel:
    """A connection as waitress has it."""

    def __init__(self, server, threads=4):
        self.socket = server
        self.adj = SimpleNamespace(threads=threads)

    def disconnected(self):
        return False


PLACES = {
    "gunicorn": lambda server: {"gunicorn.socket": server},
    "Werkzeug": lambda server: {"werkzeug.socket": server},
    "waitress": lambda server: {"waitress.client_disconnected": Channel(server).disconnected},
    "cheroot, gevent": lambda server: {"wsgi.input": SimpleNamespace(rfile=file(server))},
    "wsgiref": lambda server: {"wsgi.input": file(server)},
}


@pytest.mark.parametrize("place", PLACES)
def test_the_servers_socket_is_found(tcp, eventually, place):
    server, caller = tcp
    connection = connection_of(PLACES[place](server))
    assert connection.is_present()
    caller.close()
    eventually(lambda: not connection.is_present())


def test_the_socket_of_djangos_development_server_is_found(tcp, eventually):
    server, caller = tcp
    with server.makefile("rb") as reader:
        connection = connection_of({"wsgi.input": SimpleNamespace(_read=reader.read)})
        assert connection.is_present()
        caller.close()
        eventually(lambda: not connection.is_present())


def test_a_socket_under_tls_is_looked_at_like_any(tcp, eventually):
    server, caller = tcp
    wrapped = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(
        server, server_side=True, do_handshake_on_connect=False
    )
    with wrapped:
        connection = connection_of({"gunicorn.socket": wrapped})
        assert connection.is_present()
        caller.close()
        eventually(lambda: not connection.is_present())


@pytest.fixture
def uwsgi(monkeypatch):
    """The module that uWSGI puts into the interpreters it runs."""
    module = ModuleType("uwsgi")
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    return module


def test_uwsgis_descriptor_is_found(tcp, uwsgi, eventually):
    server, caller = tcp
    uwsgi.connection_fd = server.fileno
    connection = connection_of({"uwsgi.version": b"2.0"})
    assert connection.is_present()
    caller.close()
    eventually(lambda: not connection.is_present())


def test_uwsgi_is_not_asked_about_a_request_that_is_not_its_own(tcp, uwsgi):
    uwsgi.connection_fd = tcp[0].fileno
    uwsgi.cores = 4
    assert connection_of({}) is None
    assert threads_of({}) is None


def test_without_uwsgi_nothing_is_imported_to_find_out():
    assert connection_of({"uwsgi.version": b"2.0"}) is None
    assert threads_of({"uwsgi.version": b"2.0"}) is None
    assert "uwsgi" not in sys.modules


def test_without_a_socket_there_is_nothing_to_look_at():
    assert connection_of({}) is None
    assert connection_of({"wsgi.input": object()}) is None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("strange", [None, object(), 5, "socket", SimpleNamespace(fileno=-1)])
def test_what_is_no_socket_does_not_pass_for_one(place, strange):
    """A server may change what it hands out; then only a failing write tells."""
    assert connection_of(PLACES[place](strange)) is None


@pytest.mark.parametrize("place", PLACES)
def test_a_descriptor_of_something_else_does_not_pass_for_a_socket(place):
    with Path(__file__).open() as file:
        assert connection_of(PLACES[place](file)) is None


def test_a_place_that_fails_when_looked_at_counts_as_empty():
    class Failing:
        def __getattr__(self, name):
            raise RuntimeError("not any more")

    assert connection_of({"gunicorn.socket": Failing(), "wsgi.input": Failing()}) is None
    assert threads_of({"waitress.client_disconnected": Failing()}) is None


# --- how many threads ---------------------------------------------------------------------


class Worker:
    """A worker of gunicorn's, of whatever kind, that calls the application."""

    def __init__(self, threads):
        self.cfg = SimpleNamespace(threads=threads)

    def handle_request(self):
        return threads_of({})


def worker(module, threads):
    kind = type("TheirWorker", (Worker,), {"__module__": module})
    return type("OurWorker", (kind,), {"__module__": "settings"})(threads)


@pytest.mark.parametrize(("module", "threads"), [("gthread", 8), ("sync", 1)])
def test_the_threads_of_a_gunicorn_worker_are_known(module, threads):
    assert worker(f"gunicorn.workers.{module}", threads).handle_request() == threads


@pytest.mark.parametrize("module", ["ggevent", "geventlet", "unheard_of"])
def test_a_worker_that_runs_no_threads_has_none_to_count(module):
    assert worker(f"gunicorn.workers.{module}", 1).handle_request() is None


def test_a_worker_without_the_setting_counts_as_unknown():
    stranger = worker("gunicorn.workers.gthread", 8)
    del stranger.cfg
    assert stranger.handle_request() is None


def test_the_threads_of_waitress_are_known():
    environ = {"waitress.client_disconnected": Channel(None, threads=6).disconnected}
    assert threads_of(environ) == 6


def test_the_cores_of_uwsgi_are_known(uwsgi):
    uwsgi.cores = 3
    assert threads_of({"uwsgi.version": b"2.0"}) == 3


def test_the_threads_of_cheroot_are_known():
    counted = []
    kind = type("WorkerThread", (threading.Thread,), {"__module__": "cheroot.workers.threadpool"})
    thread = kind(target=lambda: counted.append(threads_of({})))
    thread.server = SimpleNamespace(requests=SimpleNamespace(min=5))
    thread.start()
    thread.join()
    assert counted == [5]


def test_of_a_server_we_know_nothing_about_nothing_is_known():
    assert threads_of({"wsgi.multithread": True}) is None
