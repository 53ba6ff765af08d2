"""What holds of every transport, and above all how an exchange is cut from outside."""

import base64
import contextlib
import gc
import gzip
import os
import pkgutil
import select
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from oneai_middleware.backends.openai.exchange import IDLE
from oneai_middleware.backends.openai.transports import TRANSPORTS, read_transport
from oneai_middleware.errors import BackendDisconnected, BackendTimeout, BackendUnavailable
from oneai_middleware.protocol.chat import Timeouts

PATIENCE = 10.0
BODY = b'{"q": 1}'


@pytest.fixture(params=TRANSPORTS)
def make_transport(request):
    """Make a transport; it is closed at the end."""
    with contextlib.ExitStack() as at_the_end:

        def make_transport(proxy=None, verify=True, **options):
            if options:
                make = pkgutil.resolve_name(TRANSPORTS[request.param])
                transport = make(proxy=proxy, verify=verify, **options)
            else:
                transport = read_transport(request.param, proxy=proxy, verify=verify)
            at_the_end.callback(transport.close)
            return transport

        yield make_transport


@pytest.fixture
def transport(make_transport):
    return make_transport()


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


def test_a_connection_that_was_idle_for_long_serves_no_other_call(make_transport, provider, clock):
    """Something on the way may have forgotten it without a word."""
    transport = make_transport(clock=clock)
    for pause in (IDLE, IDLE, IDLE + 1):
        ask(transport.open(provider.url, {}, BODY, Timeouts()))
        clock.advance(pause)
    ask(transport.open(provider.url, {}, BODY, Timeouts()))
    peers = [turn.peer for turn in provider.turns]
    assert peers[0] == peers[1] == peers[2] != peers[3]


def test_how_long_an_answer_takes_does_not_age_its_connection(make_transport, provider, clock):
    transport = make_transport(clock=clock)
    for _ in range(2):
        reply = transport.open(provider.url, {}, BODY, Timeouts())
        reply.begin()
        clock.advance(IDLE + 1)
        read_all(reply)
        reply.close()
    assert len({turn.peer for turn in provider.turns}) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nword",
        b"200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n4\r\nword\r\n0\r\n\r\n",
        b"101 Switching Protocols\r\n\r\n",
    ],
    ids=["it ends", "two minds about the end", "another protocol"],
)
def test_a_connection_serves_no_other_call_after_some_answers(open_reply, provider, answer):
    provider.respond = lambda turn: turn.raw(b"HTTP/1.1 " + answer)
    for _ in range(2):
        ask(open_reply())
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


@pytest.mark.parametrize("size", [1, 64 * 1024, 3_000_000])
def test_a_body_of_any_size_arrives_whole(transport, provider, size):
    body = os.urandom(size)
    ask(transport.open(provider.url, {}, body, Timeouts()))
    assert provider.turns[0].body == body


def test_an_answer_to_a_request_that_is_not_read_to_its_end_is_an_answer(transport):
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def refuse():
            line = server.accept()[0]
            with line:
                line.recv(1000)
                line.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 3\r\n\r\nbig")
                line.shutdown(socket.SHUT_WR)
                while line.recv(1 << 20):
                    pass

        refusing = pool.submit(refuse)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        reply = transport.open(url, {}, bytes(8_000_000), Timeouts())
        assert ask(reply) == b"big"
        assert reply.status == 413
        transport.close()
        refusing.result(PATIENCE)


def test_a_header_has_one_value_however_it_is_written(transport, provider):
    headers = {"Authorization": "ours", "authorization": "the operator's", "HOST": "its.own"}
    ask(transport.open(provider.url, headers, BODY, Timeouts()))
    seen = [(name.lower(), value) for name, value in provider.turns[0].headers]
    assert [value for name, value in seen if name == "authorization"] == ["the operator's"]
    assert [value for name, value in seen if name == "host"] == ["its.own"]


@pytest.mark.parametrize("value", ["secret\r\nX-More: yes", "secret\n", "secret\N{SNOWMAN}"])
def test_a_header_that_cannot_be_sent_is_not_and_is_not_told(transport, provider, value):
    with pytest.raises(BackendUnavailable) as caught:
        ask(transport.open(provider.url, {"X-Key": value}, BODY, Timeouts()))
    assert "secret" not in str(caught.value.detail)
    assert provider.turns == []


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_replies_before_the_answer_are_passed_over(open_reply, provider, status):
    def respond(turn):
        turn.raw(f"HTTP/1.1 {status}\r\nLink: </x>\r\n\r\n".encode() * 2)
        turn.answer({"a": 1}, 201)

    provider.respond = respond
    for _ in range(2):
        reply = open_reply()
        reply.begin()
        assert (reply.status, reply.headers.get("link"), read_all(reply)) == (
            201,
            None,
            b'{"a": 1}',
        )
        reply.close()
    assert len({turn.peer for turn in provider.turns}) == 1


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("DEFLATE", zlib.compress),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
        ("identity", bytes),
    ],
    ids=["gzip", "deflate", "twice", "not at all"],
)
def test_what_was_compressed_all_the_same_is_unpacked(open_reply, provider, coding, pack):
    packed = pack(b"word" * 99_999)
    provider.respond = lambda turn: turn.answer(packed, headers={"Content-Encoding": coding})
    for _ in range(2):
        assert ask(open_reply()) == b"word" * 99_999
    assert len({turn.peer for turn in provider.turns}) == 1


def test_what_cannot_be_unpacked_is_unavailable(open_reply, provider):
    provider.respond = lambda turn: turn.answer(b"word", headers={"Content-Encoding": "gzip"})
    with pytest.raises(BackendUnavailable):
        ask(open_reply())


def test_a_redirect_is_an_answer_like_any_other(open_reply, provider):
    elsewhere = {"Location": provider.url + "/elsewhere", "Set-Cookie": "who=alice; Path=/"}
    provider.respond = lambda turn: turn.answer({}, 307, elsewhere)
    for _ in range(2):
        reply = open_reply()
        reply.begin()
        assert reply.status == 307
        reply.close()
    assert {turn.path for turn in provider.turns} == {"/v1"}
    assert "cookie" not in {name.lower() for name, _ in provider.turns[1].headers}


def test_the_environment_has_no_say(transport, provider, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("default login eve password wrong\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    ask(transport.open(provider.url, {"Authorization": "ours"}, BODY, Timeouts()))
    assert ("Authorization", "ours") in provider.turns[0].headers


def test_closing_it_closes_what_is_idle_and_the_next_call_connects_anew(
    transport, open_reply, provider, eventually
):
    ask(open_reply())
    transport.close()
    eventually(lambda: not provider.connections)
    ask(open_reply())
    assert len({turn.peer for turn in provider.turns}) == 2


def test_a_transport_that_is_dropped_leaves_no_connection(provider, eventually):
    """Also one that is part of a circle, as in a gateway that nobody has closed."""
    for kind in TRANSPORTS:
        transport = read_transport(kind, proxy=None, verify=True)
        ask(transport.open(provider.url, {}, BODY, Timeouts()))
        transport.itself = transport
        del transport
        gc.collect()
        eventually(lambda: not provider.connections)


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


def test_what_is_being_handled_already_is_not_taken_for_the_cause(transport):
    """As in a backend that asks another once the first has failed."""
    reply = transport.open("http://127.0.0.1:9/", {}, BODY, Timeouts())
    try:
        raise KeyError("of somebody else")
    except KeyError:
        with pytest.raises(BackendDisconnected) as caught:
            ask(reply)
    assert caught.value.detail.endswith("Connection refused")


def test_nor_is_it_where_an_answer_breaks_off(open_reply, provider):
    go_on = threading.Event()

    def respond(turn):
        turn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nword")
        assert go_on.wait(10)
        reset(turn)

    provider.respond = respond
    reply = open_reply()
    reply.begin()
    assert reply.read1() == b"word"
    go_on.set()
    try:
        raise KeyError("of somebody else")
    except KeyError:
        with contextlib.closing(reply), pytest.raises(BackendUnavailable) as caught:
            reply.read1()
    assert caught.value.detail.endswith("Connection reset by peer")


def reset(turn):
    """End its connection with what is no proper end."""
    linger = struct.pack("ii", 1, 0)
    turn._handler.close_connection = True
    turn._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    turn._handler.connection.close()


def hang_up(turn):
    turn._handler.close_connection = True


@pytest.mark.parametrize("end", [hang_up, reset])
def test_an_idle_connection_that_is_closed_under_the_request_is_none(open_reply, provider, end):
    """It can only be told from a new one by what happens to the request."""
    ask(open_reply())
    provider.respond = end
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


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_silence_within_the_body_is_a_timeout(open_reply, provider, coding):
    def respond(turn):
        turn.start_stream({"Content-Encoding": coding})
        turn.raw(gzip.compress(b"word")[:9] if coding == "gzip" else b"word")
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


def test_a_host_may_be_an_address_of_ipv6(make_transport, provider, monkeypatch):
    """Asked for as such; here it is the provider's own, whatever the machine has."""
    seen = []

    def connect(address, timeout, **options):
        seen.append(address[:2])
        return create_connection(("127.0.0.1", provider._server.server_port), timeout)

    create_connection = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    ask(make_transport().open("http://[::1]:8080/v1", {}, BODY, Timeouts()))
    ask(make_transport().open("http://[::1]/v1", {}, BODY, Timeouts()))
    assert [(host.strip("[]"), port) for host, port in seen] == [("::1", 8080), ("::1", 80)]
    hosts = [dict(turn.headers)["Host"] for turn in provider.turns]
    assert hosts == ["[::1]:8080", "[::1]"]


@pytest.mark.parametrize(
    ("url", "asked"),
    [("", "/"), ("/v1/x", "/v1/x"), ("/a b/ü", "/a%20b/%C3%BC"), ("/v1?a=b#c", "/v1?a=b")],
)
def test_what_is_asked_for_is_written_as_http_wants_it(transport, provider, url, asked):
    ask(transport.open(provider.url.removesuffix("/v1") + url, {}, BODY, Timeouts()))
    assert provider.turns[0].path == asked


def test_a_proxy_is_used_where_one_is_set(provider, make_transport):
    transport = make_transport(proxy=provider.url.removesuffix("/v1"))
    assert ask(transport.open("http://api.example/v1/x", {}, BODY, Timeouts()))
    assert provider.turns[0].path == "http://api.example/v1/x"


def test_an_exchange_through_a_proxy_can_be_cancelled(
    provider, threads, eventually, make_transport
):
    transport = make_transport(proxy=provider.url.removesuffix("/v1"))
    provider.respond = lambda turn: turn.hold()
    reply = transport.open("http://api.example/v1/x", {}, BODY, Timeouts())
    waiting = threads.submit(reply.begin)
    eventually(lambda: provider.turns)
    reply.cancel()
    with pytest.raises(BackendUnavailable):
        waiting.result(10)


PERMISSION = "Basic " + base64.b64encode(b"us:er:p@ss").decode()


def with_permission(address):
    return address.replace("http://", "http://us%3Aer:p%40ss@")


def test_a_proxy_is_told_who_we_are_and_the_provider_is_told_nothing_of_it(
    provider, make_transport, tls_provider, certificate
):
    """Over TLS the proxy sees where to, and nothing else."""
    with Proxy(provider._server.server_port) as proxy:
        transport = make_transport(with_permission(proxy.url), f"{certificate}.crt")
        for _ in range(2):
            assert ask(transport.open(tls_provider, {"X-Key": "ours"}, BODY, Timeouts()))
    (head,) = proxy.heads
    port = provider._server.server_port
    assert head.startswith(f"CONNECT localhost:{port} HTTP/1.")
    assert f"proxy-authorization: {PERMISSION}".lower() in head.lower()
    assert "ours" not in head
    assert "Proxy-Authorization" not in dict(provider.turns[0].headers)
    assert len({turn.peer for turn in provider.turns}) == 1


def test_a_proxy_of_plain_http_is_told_who_we_are(provider, make_transport):
    transport = make_transport(with_permission(provider.url.removesuffix("/v1")))
    ask(transport.open("http://api.example/v1/x", {}, BODY, Timeouts()))
    seen = {name.lower(): value for name, value in provider.turns[0].headers}
    assert (seen["proxy-authorization"], seen["host"]) == (PERMISSION, "api.example")


def test_a_proxy_that_refuses_is_no_connection(make_transport):
    with Proxy(None) as proxy:
        transport = make_transport(proxy.url)
        with pytest.raises(BackendDisconnected):
            ask(transport.open("https://api.example/", {}, BODY, Timeouts()))


class Proxy:
    """A proxy that passes TLS on to this port, or refuses to; with a certificate it is
    itself reached over TLS."""

    def __init__(self, port, certificate=None):
        self._port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._tls = certificate and server_context(certificate)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://localhost:{self._socket.getsockname()[1]}"
        self.heads = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self):
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_sockets:
            while True:
                near = open_sockets.enter_context(self._socket.accept()[0])
                near.settimeout(PATIENCE)
                if self._tls:
                    near = open_sockets.enter_context(self._tls.wrap_socket(near, server_side=True))
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += near.recv(1)
                self.heads.append(head.decode())
                if self._port is None:
                    near.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
                    continue
                near.sendall(b"HTTP/1.1 200 Yes\r\nX: y\r\n\r\n")
                far = socket.create_connection(("127.0.0.1", self._port))
                open_sockets.enter_context(far)
                while ready := select.select([near, far, self._socket], [], [])[0]:
                    if self._socket in ready:
                        return
                    for one in ready:
                        (far if one is near else near).sendall(one.recv(65536))


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


def server_context(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    return context


@pytest.fixture
def tls_provider(provider, certificate):
    """The provider behind TLS; its address."""
    server = provider._server
    # The handshake is done by the handler's thread, at its first read.
    server.socket = server_context(certificate).wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    return f"https://localhost:{server.server_port}/"


def test_certificates_are_checked(tls_provider, certificate, make_transport):
    strict = make_transport()
    with pytest.raises(BackendUnavailable):
        ask(strict.open(tls_provider, {}, BODY, Timeouts()))
    knowing = make_transport(verify=f"{certificate}.crt")
    for _ in range(2):
        assert ask(knowing.open(tls_provider, {}, BODY, Timeouts()))


def test_certificates_may_be_left_unchecked(tls_provider, make_transport):
    transport = make_transport(verify=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        assert ask(transport.open(tls_provider, {}, BODY, Timeouts()))


def test_a_certificate_of_another_host_is_refused(tls_provider, certificate, make_transport):
    transport = make_transport(verify=f"{certificate}.crt")
    with pytest.raises(BackendUnavailable):
        ask(transport.open(tls_provider.replace("localhost", "127.0.0.1"), {}, BODY, Timeouts()))


LONG = b"x" * 100_000
WHOLE = {
    "by its length": b"200 OK\r\nContent-Length: 4\r\n\r\nword",
    "long": b"200 OK\r\nContent-Length: 100000\r\n\r\n" + LONG,
    "empty": b"200 OK\r\nContent-Length: 0\r\n\r\n",
    "in chunks": b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nword\r\n0\r\n\r\n",
    "a long chunk": b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n%b\r\n0\r\n\r\n" % LONG,
    "no chunk": b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a trailer": b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n",
    "compressed": b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
    % (len(gzip.compress(LONG)), gzip.compress(LONG)),
    "no content": b"204 No Content\r\n\r\n",
    "unchanged": b"304 Not Modified\r\n\r\n",
    "a refusal": b"429 Too Many Requests\r\nContent-Length: 4\r\n\r\nword",
    "a fault": b"500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nword\r\n0\r\n\r\n",
    "hints first": b"103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nword",
}


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("answer", WHOLE.values(), ids=WHOLE)
def test_one_connection_serves_call_after_call(
    make_transport, provider, request, encrypted, answer
):
    """Whatever the answers are, as long as they are read whole."""
    url, verify = provider.url, True
    if encrypted:
        url = request.getfixturevalue("tls_provider")
        verify = f"{request.getfixturevalue('certificate')}.crt"
    provider.respond = lambda turn: turn.raw(b"HTTP/1.1 " + answer)
    transport = make_transport(verify=verify)
    for body in [BODY, None] * 4:
        ask(transport.open(url, {}, body, Timeouts()))
    assert len({turn.peer for turn in provider.turns}) == 1


UNASKED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nunsaid"


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("size", [4, 14_000, 100_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_what_comes_unasked_is_no_answer_to_the_next_call(
    make_transport, provider, request, encrypted, late, size, framing
):
    """Whether it comes along with an answer or some time after, it may wait in our buffer,
    within TLS or in the socket."""
    url, verify = provider.url, True
    if encrypted:
        url = request.getfixturevalue("tls_provider")
        verify = f"{request.getfixturevalue('certificate')}.crt"
    go_on, gone = threading.Event(), threading.Event()

    def respond(turn):
        body = (b"first " if len(provider.turns) == 1 else b"second ").ljust(size, b"x")
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        if framing == "chunked":
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
        if late and len(provider.turns) == 1:
            turn.raw(answer)
            assert go_on.wait(10)
            turn.raw(UNASKED)
            gone.set()
        else:
            turn.raw(answer + UNASKED)

    provider.respond = respond
    transport = make_transport(verify=verify)
    assert ask(transport.open(url, {}, BODY, Timeouts())).startswith(b"first ")
    go_on.set()
    assert not late or gone.wait(10)
    assert ask(transport.open(url, {}, BODY, Timeouts())).startswith(b"second ")
    assert len({turn.peer for turn in provider.turns}) == 2


@pytest.mark.parametrize("begun", [False, True])
def test_an_exchange_over_tls_can_be_cancelled(
    tls_provider, certificate, provider, threads, eventually, begun, make_transport
):
    released = threading.Event()

    def respond(turn):
        if begun:
            turn.start_stream()
            turn.raw(b"word")
        released.wait(10)

    provider.respond = respond
    transport = make_transport(verify=f"{certificate}.crt")
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


def test_an_exchange_over_tls_within_that_to_a_proxy_can_be_cancelled(
    tls_provider, certificate, provider, threads
):
    released = threading.Event()

    def respond(turn):
        turn.start_stream()
        turn.raw(b"word")
        released.wait(PATIENCE)

    provider.respond = respond
    with Proxy(provider._server.server_port, certificate) as proxy, contextlib.ExitStack() as end:
        transport = read_transport("requests", proxy=proxy.url, verify=f"{certificate}.crt")
        end.callback(transport.close)
        reply = transport.open(tls_provider, {}, BODY, Timeouts(total=PATIENCE))
        end.callback(reply.close)
        end.callback(released.set)
        reply.begin()
        assert reply.read1() == b"word"
        waiting = threads.submit(reply.read1)
        reply.cancel()
        with pytest.raises(BackendUnavailable, match="could not be reached"):
            waiting.result(PATIENCE / 2)


@pytest.mark.parametrize("proxied", [False, True])
def test_a_cancel_reaches_a_handshake_that_stalls(proxied, make_transport):
    """The TLS of a provider, or the CONNECT of a proxy, that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(PATIENCE)
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        transport = make_transport(proxy=f"http://{address}" if proxied else None)
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


# --- gevent -------------------------------------------------------------------

# A provider that stalls in the middle of an answer, one who reads it, and one who counts.
UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys
import gevent, gevent.event, gevent.server
from oneai_middleware.backends.openai.transports import read_transport
from oneai_middleware.errors import BackendUnavailable
from oneai_middleware.protocol.chat import Timeouts

def answer(line, _):
    assert b"/whole " in line.recv(65536)
    line.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nword")
    assert b"/half " in line.recv(65536)
    line.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nword")
    assert line.recv(1) == b""
    left.set()

def read(path):
    reply = transport.open(f"http://127.0.0.1:{server.server_port}/{path}", {}, b"{}", Timeouts())
    replies.append(reply)
    try:
        reply.begin()
        while data := reply.read1():
            print(data.decode())
            heard.set()
    except BackendUnavailable as error:
        print(error.detail)
    reply.close()

def count():
    while True:
        ticks.append(1)
        gevent.sleep(0)

heard, left, replies, ticks = gevent.event.Event(), gevent.event.Event(), [], []
server = gevent.server.StreamServer(("127.0.0.1", 0), answer)
server.start()
transport = read_transport(sys.argv[1], proxy=None, verify=True)
read("whole")
heard.clear()
reading = gevent.spawn(read, "half")
assert heard.wait(10)
gevent.spawn(count)
while len(ticks) < 100:
    gevent.sleep(0)
assert not reading.ready()
replies[-1].cancel()
reading.get(timeout=10)
assert left.wait(10)
"""


@pytest.mark.parametrize("kind", TRANSPORTS)
def test_under_gevent_an_exchange_is_cut_while_others_go_on(kind):
    """The second call is over the connection of the first."""
    command = [sys.executable, "-W", "error", "-c", UNDER_GEVENT, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("word\nword\ncancelled\n", "")
