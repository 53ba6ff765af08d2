"""The transport by itself, and above all how an exchange is cut from outside."""

import contextlib
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from oneai_middleware.backends.openai.requests_transport import RequestsTransport
from oneai_middleware.errors import BackendDisconnected, BackendTimeout, BackendUnavailable
from oneai_middleware.protocol.chat import Timeouts

PATIENCE = 10.0
BODY = b'{"q": 1}'


@pytest.fixture
def transport():
    transport = RequestsTransport()
    yield transport
    transport.close()


@pytest.fixture
def open_reply(transport, provider):
    def open_reply(timeouts=None):
        headers = {"Content-Type": "application/json"}
        return transport.open(provider.url, headers, BODY, timeouts or Timeouts())

    return open_reply


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def read_all(reply):
    data = b""
    while piece := reply.read1():
        data += piece
    return data


def ask(reply):
    with contextlib.closing(reply):
        reply.begin()
        return read_all(reply)


def test_status_headers_and_body_come_back(open_reply, provider):
    provider.respond = lambda turn: turn.answer({"a": 1}, 418, {"X-Thing": "x"})
    reply = open_reply()
    reply.begin()
    assert reply.status == 418
    assert reply.headers.get("x-thing") == reply.headers.get("X-THING") == "x"
    assert read_all(reply) == b'{"a": 1}'
    assert reply.read1() == b""
    reply.close()
    assert provider.turns[0].body == BODY


def test_bytes_are_read_as_they_come(open_reply, provider, threads):
    seen = threading.Event()

    def respond(turn):
        turn.start_stream()
        turn.raw(b"one")
        assert seen.wait(10)
        turn.raw(b"two")

    provider.respond = respond
    reply = open_reply()
    reply.begin()
    assert reply.read1() == b"one"
    seen.set()
    assert read_all(reply) == b"two"
    reply.close()


def test_without_a_body_it_is_a_get(transport, provider):
    reply = transport.open(provider.url, {}, None, Timeouts())
    ask(reply)
    assert (provider.turns[0].method, provider.turns[0].body) == ("GET", b"")


def test_a_connection_that_was_read_whole_serves_the_next_call(open_reply, provider):
    ask(open_reply())
    ask(open_reply())
    assert len({turn.peer for turn in provider.turns}) == 1


def test_a_connection_that_was_not_read_whole_does_not(open_reply, provider):
    provider.respond = lambda turn: turn.answer(b"x" * 300_000)
    reply = open_reply()
    reply.begin()
    reply.read1()
    reply.close()
    assert len(ask(open_reply())) == 300_000
    assert len({turn.peer for turn in provider.turns}) == 2


def test_a_connection_the_provider_has_closed_meanwhile_is_replaced(
    open_reply, provider, eventually
):
    ask(open_reply())
    handlers = list(provider.connections)
    for handler in handlers:
        handler.connection.shutdown(socket.SHUT_RDWR)
    eventually(lambda: not provider.connections)
    ask(open_reply())
    assert len({turn.peer for turn in provider.turns}) == 2


def test_it_says_when_the_request_is_out_and_before_an_answer_is_there(
    open_reply, provider, threads
):
    told, go_on = threading.Event(), threading.Event()

    def respond(turn):
        assert go_on.wait(10)
        turn.answer({})

    provider.respond = respond
    for _ in range(2):  # over a new connection, and over one that was idle
        reply = open_reply()
        waiting = threads.submit(reply.begin, told.set)
        assert told.wait(10)
        assert not waiting.done()
        go_on.set()
        waiting.result(10)
        read_all(reply)
        reply.close()
        told.clear()
        go_on.clear()
    assert len({turn.peer for turn in provider.turns}) == 1


def test_without_a_connection_nothing_is_out(transport):
    told = []
    reply = transport.open("http://127.0.0.1:9/", {}, BODY, Timeouts())
    with pytest.raises(BackendDisconnected):
        reply.begin(lambda: told.append(1))
    assert told == []


# --- cancel, at every moment --------------------------------------------------


def test_cancelled_before_it_began_nothing_is_sent(open_reply, provider):
    reply = open_reply()
    reply.cancel()
    with pytest.raises(BackendUnavailable, match="could not be reached"):
        reply.begin()
    reply.close()
    assert provider.turns == []


def test_cancelled_before_it_began_it_keeps_off_an_idle_connection(open_reply, provider):
    ask(open_reply())
    reply = open_reply()
    reply.cancel()
    with pytest.raises(BackendUnavailable):
        reply.begin()
    reply.close()
    assert len(provider.turns) == 1


def test_cancelled_before_the_headers_it_comes_back_at_once(
    open_reply, provider, threads, eventually
):
    provider.respond = lambda turn: turn.hold()
    reply = open_reply()
    waiting = threads.submit(reply.begin)
    eventually(lambda: provider.turns)
    reply.cancel()
    with pytest.raises(BackendUnavailable) as caught:
        waiting.result(10)
    assert type(caught.value) is BackendUnavailable  # nobody's connection broke
    assert caught.value.detail == "cancelled"
    assert provider.turns[0].left.wait(10)
    reply.close()


@pytest.mark.parametrize("framing", ["until it closes", "chunked", "length"])
def test_cancelled_in_mid_stream_it_comes_back_at_once(open_reply, provider, threads, framing):
    heads = {
        "until it closes": b"Connection: close\r\n\r\nword",
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n4\r\nword\r\n",
        "length": b"Content-Length: 1000\r\n\r\nword",
    }

    def respond(turn):
        turn.raw(b"HTTP/1.1 200 OK\r\n" + heads[framing])
        turn.hold()

    provider.respond = respond
    reply = open_reply()
    reply.begin()
    assert reply.read1() == b"word"
    waiting = threads.submit(reply.read1)
    reply.cancel()
    with pytest.raises(BackendUnavailable):
        waiting.result(10)
    assert provider.turns[0].left.wait(10)
    with pytest.raises(BackendUnavailable):
        reply.read1()
    reply.close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_late_cancel_does_not_cut_the_call_that_now_has_the_connection(
    open_reply, provider, threads, eventually, closed
):
    first = open_reply()
    first.begin()
    read_all(first)
    if closed:
        first.close()
    go_on = threading.Event()

    def respond(turn):
        turn.start_stream()
        turn.raw(b"one")
        assert go_on.wait(10)
        turn.raw(b"two")

    provider.respond = respond
    second = open_reply()
    second.begin()
    first.cancel()
    first.finish()
    first.close()
    first.cancel()
    go_on.set()
    assert read_all(second) == b"onetwo"
    assert len({turn.peer for turn in provider.turns}) == 1
    second.close()


def test_cancelling_and_closing_twice_is_harmless(open_reply):
    reply = open_reply()
    reply.close()
    reply.begin()
    for _ in range(2):
        reply.cancel()
        reply.close()


def test_cancel_may_race_with_everything(open_reply, provider, threads):
    """Whenever it strikes, the call ends, and the next one is unharmed."""

    def respond(turn):
        turn.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nword\r\n0\r\n\r\n")

    provider.respond = respond
    for _ in range(60):
        reply = open_reply()
        working = threads.submit(ask, reply)
        cancelling = threads.submit(reply.cancel)
        cancelling.result(10)
        with contextlib.suppress(BackendUnavailable):
            assert working.result(10) == b"word"
        assert ask(open_reply()) == b"word"


# --- finish -------------------------------------------------------------------


def test_finishing_reads_the_end_so_that_the_connection_is_kept(open_reply, provider):
    seen = threading.Event()

    def respond(turn):
        turn.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nword\r\n")
        assert seen.wait(10)
        turn.raw(b"0\r\n\r\n")

    provider.respond = respond
    for _ in range(2):
        reply = open_reply()
        reply.begin()
        assert reply.read1() == b"word"
        seen.set()
        reply.finish()
        reply.close()
        seen.clear()
    assert len({turn.peer for turn in provider.turns}) == 1


def test_the_haste_of_finishing_does_not_stay_on_the_connection(open_reply, provider):
    ask_again = threading.Event()

    def respond(turn):
        if len(provider.turns) == 2:
            assert not ask_again.wait(0.15)  # longer than a finish may linger
        turn.answer({})

    provider.respond = respond
    first = open_reply()
    first.begin()
    first.finish()
    first.close()
    assert ask(open_reply()) == b"{}"
    assert len({turn.peer for turn in provider.turns}) == 1


# --- failures -----------------------------------------------------------------


def test_a_refused_connection_is_none(transport):
    with pytest.raises(BackendDisconnected):
        ask(transport.open("http://127.0.0.1:9/", {}, BODY, Timeouts()))


@pytest.mark.parametrize("reset", [False, True])
def test_an_idle_connection_that_is_closed_under_the_request_is_none(open_reply, provider, reset):
    """It can only be told from a new one by what happens to the request."""
    ask(open_reply())

    def hang_up(turn):
        turn._handler.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            turn._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            turn._handler.connection.close()

    provider.respond = hang_up
    with pytest.raises(BackendDisconnected):
        ask(open_reply())
    assert len({turn.peer for turn in provider.turns}) == 1


def test_a_host_that_does_not_exist_is_unavailable(transport):
    with pytest.raises(BackendUnavailable):
        ask(transport.open("http://nowhere.invalid/", {}, BODY, Timeouts()))


@pytest.mark.parametrize("url", ["http://[half/", "http://a\nb/", "http://\x00/"])
def test_an_address_that_is_none_is_unavailable(transport, url):
    with pytest.raises(BackendUnavailable):
        ask(transport.open(url, {}, BODY, Timeouts()))


def test_silence_before_the_headers_is_a_timeout(open_reply, provider):
    provider.respond = lambda turn: turn.hold()
    with pytest.raises(BackendTimeout):
        ask(open_reply(Timeouts(total=0.05)))
    assert provider.turns[0].left.wait(10)


def test_silence_within_the_body_is_a_timeout(open_reply, provider):
    def respond(turn):
        turn.start_stream()
        turn.raw(b"word")
        turn.hold()

    provider.respond = respond
    with pytest.raises(BackendTimeout):
        ask(open_reply(Timeouts(total=0.05)))
    assert provider.turns[0].left.wait(10)


def test_no_connection_in_time_is_a_timeout(transport):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        with pytest.raises(BackendTimeout):
            ask(transport.open(url, {}, BODY, Timeouts(connect=0.05)))
        for client in waiting:
            client.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99999,
    ],
)
def test_what_is_no_http_is_unavailable(open_reply, provider, raw):
    def respond(turn):
        turn._handler.close_connection = True
        turn.raw(raw)

    provider.respond = respond
    with pytest.raises(BackendUnavailable):
        ask(open_reply())


def test_a_body_shorter_than_it_said_is_unavailable(open_reply, provider):
    def respond(turn):
        turn._handler.close_connection = True
        turn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nword")

    provider.respond = respond
    reply = open_reply()
    reply.begin()
    assert reply.read1() == b"word"
    with pytest.raises(BackendUnavailable) as caught:
        reply.read1()
    assert not isinstance(caught.value, BackendDisconnected)  # it had begun to answer
    reply.close()


def test_a_proxy_is_used_where_one_is_set(provider):
    transport = RequestsTransport(proxy=provider.url.removesuffix("/v1"))
    assert ask(transport.open("http://api.example/v1/x", {}, BODY, Timeouts()))
    assert provider.turns[0].path == "http://api.example/v1/x"
    transport.close()


def test_an_exchange_through_a_proxy_can_be_cancelled(provider, threads, eventually):
    transport = RequestsTransport(proxy=provider.url.removesuffix("/v1"))
    provider.respond = lambda turn: turn.hold()
    reply = transport.open("http://api.example/v1/x", {}, BODY, Timeouts())
    waiting = threads.submit(reply.begin)
    eventually(lambda: provider.turns)
    reply.cancel()
    with pytest.raises(BackendUnavailable):
        waiting.result(10)
    transport.close()


def test_a_forked_child_shares_no_connection(open_reply, provider):
    ask(open_reply())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        try:
            os._exit(0 if ask(open_reply()) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    ask(open_reply())
    peers = [turn.peer for turn in provider.turns]
    assert peers[0] == peers[2] != peers[1]


# --- TLS ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of ``localhost`` that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(path), "-out", str(path) + ".crt"]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return path


@pytest.fixture
def tls_provider(provider, certificate):
    """The provider behind TLS; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    server = provider._server
    # The handshake is done by the handler's thread, at its first read.
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    return f"https://localhost:{server.server_port}/"


def test_certificates_are_checked(tls_provider, certificate):
    strict = RequestsTransport()
    with pytest.raises(BackendUnavailable):
        ask(strict.open(tls_provider, {}, BODY, Timeouts()))
    knowing = RequestsTransport(verify=f"{certificate}.crt")
    for _ in range(2):
        assert ask(knowing.open(tls_provider, {}, BODY, Timeouts()))
    strict.close()
    knowing.close()


@pytest.mark.parametrize("begun", [False, True])
def test_an_exchange_over_tls_can_be_cancelled(
    tls_provider, certificate, provider, threads, eventually, begun
):
    released = threading.Event()

    def respond(turn):
        if begun:
            turn.start_stream()
            turn.raw(b"word")
        released.wait(10)

    provider.respond = respond
    transport = RequestsTransport(verify=f"{certificate}.crt")
    reply = transport.open(tls_provider, {}, BODY, Timeouts())
    if begun:
        reply.begin()
        assert reply.read1() == b"word"
    waiting = threads.submit(reply.read1 if begun else reply.begin)
    eventually(lambda: provider.turns)
    reply.cancel()
    with pytest.raises(BackendUnavailable):
        waiting.result(5)
    released.set()
    reply.close()
    transport.close()


@pytest.mark.parametrize("proxied", [False, True])
def test_a_cancel_reaches_a_handshake_that_stalls(proxied):
    """The TLS of a provider, or the CONNECT of a proxy, that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(PATIENCE)
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        transport = RequestsTransport(proxy=f"http://{address}" if proxied else None)
        url = "https://provider.invalid/" if proxied else f"https://{address}/"
        reply = transport.open(url, {}, b"{}", Timeouts(connect=PATIENCE))
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(reply.begin)
            connection, _ = mute.accept()
            with connection:
                assert connection.recv(1)  # it has connected and speaks
                reply.cancel()
                with pytest.raises(BackendUnavailable):
                    begun.result(PATIENCE / 2)
        reply.close()
        transport.close()
