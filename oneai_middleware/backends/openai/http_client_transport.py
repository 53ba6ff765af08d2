"""The transport without a client library: sockets of our own, and :mod:`.http1`.

It does in a fraction of the time what requests does here, and nothing that a mocking
library could step in at. The default certificates, the reading of addresses and the
unpacking of compressed answers are those of requests and urllib3.
"""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import ssl
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util import make_headers, parse_url, wait_for_read

from ...errors import BackendDisconnected, BackendUnavailable, ConfigurationError
from ...per_process import PerProcess
from ...protocol.chat import Timeouts
from .exchange import IDLE_CONNECTIONS, PIECE, Exchange, Hold, pieces
from .http1 import Answer, Inlet

_PORTS = {"http": 80, "https": 443}


class HTTPClientTransport:
    """Replies over a pool of connections.

    :param proxy: the address of an HTTP proxy, ``http://…``.
    :param verify: whether to check TLS certificates, or the path of a CA bundle.
    :raises ConfigurationError: the proxy is itself to be reached over TLS.
    """

    def __init__(self, *, proxy: str | None = None, verify: bool | str = True) -> None:
        if proxy is not None and proxy.lower().startswith("https:"):
            raise ConfigurationError(
                "proxy: an 'http://' address, or the transport 'requests', which speaks TLS to it"
            )
        # An address is read once; a backend has two.
        self._target = functools.lru_cache(64)(functools.partial(_target, proxy=proxy))
        self._pool = PerProcess(lambda: _Pool(verify))

    def open(
        self, url: str, headers: Mapping[str, str], body: bytes | None, timeouts: Timeouts
    ) -> HTTPClientReply:
        """See :class:`~.transport.Transport`."""
        return HTTPClientReply(
            self._pool(), lambda: _request(self._target(url), headers, body), timeouts
        )

    def close(self) -> None:
        """Close idle connections."""
        self._pool().close()


class HTTPClientReply(Exchange):
    """See :class:`~.transport.Reply`."""

    broken = (*Exchange.broken, urllib3.exceptions.HTTPError)

    def __init__(self, pool: _Pool, prepare: Callable[[], _Request], timeouts: Timeouts) -> None:
        super().__init__()
        self._pool = pool
        self._prepare = prepare
        self._timeouts = timeouts
        self._connection: _Connection | None = None
        self._answer: Answer | None = None
        self._unpacked: urllib3.HTTPResponse | None = None

    def _send(self, sent: Callable[[], object]) -> None:
        if self._cancelled:
            raise BackendUnavailable("cancelled")
        try:
            self._answer = answer = self._ask(self._prepare(), sent)
        except BaseException:
            self._let_go()
            raise
        self.status, self.headers = answer.status, answer.headers
        coding = answer.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            self._unpacked = _unpacked(answer, coding)
        if answer.is_over:
            self._let_go()

    def _ask(self, request: _Request, sent: Callable[[], object]) -> Answer:
        connection = self._pool.take(request.peer) or _Connection(request.peer)
        self._connection = connection
        if connection.socket is None:
            connection.connect(self, self._timeouts.connect, self._pool)
        connection.hold.begin(self, connection.socket)
        connection.send(request, self._timeouts.total)
        sent()
        return Answer(connection.inlet)

    def _receive(self) -> bytes:
        assert self._answer is not None
        if self._unpacked is None:
            data = self._answer.read1(PIECE)
        else:
            data = self._unpacked.read1(PIECE, decode_content=True)
        if self._answer.is_over:
            self._let_go()
        return data

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.hold.end(self)
        answer = self._answer
        if answer is None or not answer.is_over or answer.is_last or self._cancelled:
            connection.close()
        else:
            self._pool.give(connection)


# --- what is sent, and where to -----------------------------------------------


class _Peer(NamedTuple):
    """What a connection leads to: a provider, by way of a proxy or not."""

    host: str
    port: int
    name: str | None = None
    """Whose certificate is asked for; without one there is no TLS."""
    tunnel: bytes = b""
    """What a proxy is asked first, if it is to pass TLS on."""


class _Target(NamedTuple):
    """What an address says."""

    peer: _Peer
    place: str
    fields: dict[str, str]
    """The headers that follow from it, by their names in lower case."""


class _Request(NamedTuple):
    peer: _Peer
    head: bytes
    body: bytes


def _target(url: str, proxy: str | None) -> _Target:
    scheme, host, port, place = _parts(url)
    tls = scheme == "https"
    bare = host.strip("[]")
    name = bare.partition("%")[0].rstrip(".") if tls else None
    shown = host if port == _PORTS[scheme] else f"{host}:{port}"
    fields = {"host": f"Host: {shown}"}
    if proxy is None:
        return _Target(_Peer(bare, port, name), place, fields)
    _, proxy_host, proxy_port, _ = _parts(proxy)
    near = _Peer(proxy_host.strip("[]"), proxy_port)
    permission = _proxy_authorization(proxy)
    if not tls:
        return _Target(near, f"{scheme}://{shown}{place}", {**fields, **permission})
    asked = {"host": f"Host: {host}:{port}", **permission}
    tunnel = _head(f"CONNECT {host}:{port}", asked)
    return _Target(near._replace(name=name, tunnel=tunnel), place, fields)


def _parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and what is asked for there, as they are sent.

    :raises ValueError: it is no address of HTTP.
    """
    read = parse_url(url)
    if read.scheme not in _PORTS or not read.host:
        raise ValueError("no address of HTTP")
    return read.scheme, read.host, read.port or _PORTS[read.scheme], read.request_uri


def _proxy_authorization(proxy: str) -> dict[str, str]:
    auth = parse_url(proxy).auth
    made = make_headers(proxy_basic_auth=unquote(auth)) if auth else {}
    return {name: f"Proxy-Authorization: {value}" for name, value in made.items()}


def _request(target: _Target, headers: Mapping[str, str], body: bytes | None) -> _Request:
    fields = {**target.fields}
    for name, value in headers.items():
        fields[name.lower()] = f"{name}: {value}"
    if body is not None:
        fields["content-length"] = f"Content-Length: {len(body)}"
    method = "GET" if body is None else "POST"
    return _Request(target.peer, _head(f"{method} {target.place}", fields), body or b"")


def _head(line: str, fields: Mapping[str, str]) -> bytes:
    """Everything before the body.

    :raises ValueError: a header would begin another one.
    """
    head = "\r\n".join((f"{line} HTTP/1.1", *fields.values(), "", ""))
    if not head.count("\r") == head.count("\n") == len(fields) + 2:
        raise ValueError("a header of several lines")
    return head.encode("latin-1")


# --- connections ----------------------------------------------------------------


class _Connection:
    """A connection that only the reply it serves can cut."""

    def __init__(self, peer: _Peer) -> None:
        self.peer = peer
        self.hold = Hold()
        self.socket: socket.socket | None = None
        self.inlet = Inlet(lambda size: b"", 0)

    def connect(self, exchange: Exchange, timeout: float, pool: _Pool) -> None:
        """Connect, by way of the proxy if there is one, and agree on TLS."""
        peer = self.peer
        self.socket = socket.create_connection((peer.host, peer.port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.hold.begin_early(exchange, self.socket)
            if peer.tunnel:
                self._ask_proxy(peer.tunnel)
            if peer.name is not None:
                self.socket = pool.tls.wrap_socket(self.socket, server_hostname=peer.name)
        finally:
            self.hold.end_early()
        self.inlet = Inlet(self.socket.recv, PIECE)

    def send(self, request: _Request, timeout: float) -> None:
        """Send a request; no read takes longer than ``timeout`` from now on."""
        assert self.socket is not None
        if self.socket.gettimeout() != timeout:  # setting it takes a call of the system
            self.socket.settimeout(timeout)
        # A provider may refuse before it has read everything; if not, reading tells.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces([request.head, request.body]):
                self.socket.sendall(piece)

    def is_fresh(self) -> bool:
        """Whether it can serve another call: nothing has come since, not even its end."""
        connected = self.socket
        if not self.inlet.is_empty or connected is None:
            return False
        if isinstance(connected, ssl.SSLSocket) and connected.pending():
            return False
        return not wait_for_read(connected, timeout=0)

    def close(self) -> None:
        """Close it."""
        if self.socket is not None:
            self.socket.close()

    def _ask_proxy(self, tunnel: bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(tunnel)
        inlet = Inlet(self.socket.recv, PIECE)
        answer = Answer(inlet)
        if not (200 <= answer.status < 300 and inlet.is_empty):
            raise BackendDisconnected(f"the proxy answered {answer.status}")


class _Pool:
    """The idle connections of this process; the one used last is the next to be used."""

    def __init__(self, verify: bool | str) -> None:
        self._verify = verify
        # Without a lock, which could be held at a fork: each step is atomic by itself.
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[_Peer, list[_Connection]] = {}
        weakref.finalize(self, _close, self._idle)

    @property
    def tls(self) -> ssl.SSLContext:
        """How TLS is spoken; made when it first is, for reading the bundle takes a while."""
        if self._tls is None:
            self._tls = _tls_context(self._verify)
        return self._tls

    def take(self, peer: _Peer) -> _Connection | None:
        """An idle connection that still stands."""
        idle = self._idle.get(peer, [])
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if connection.is_fresh():
                return connection
            connection.close()

    def give(self, connection: _Connection) -> None:
        """Keep a connection whose answer was read whole."""
        idle = self._idle.setdefault(connection.peer, [])
        if len(idle) < IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close them all."""
        _close(self._idle)


def _close(idle: Mapping[_Peer, list[_Connection]]) -> None:
    for connections in list(idle.values()):
        with contextlib.suppress(IndexError):  # others may take of them meanwhile
            while True:
                connections.pop().close()


def _tls_context(verify: bool | str) -> ssl.SSLContext:
    bundle = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
    if Path(bundle).is_dir():
        context = ssl.create_default_context(capath=bundle)
    else:
        context = ssl.create_default_context(cafile=bundle)
    context.set_alpn_protocols(["http/1.1"])
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# --- answers that are compressed ---------------------------------------------------


class _Packed(io.BufferedIOBase):
    """A compressed answer as urllib3 wants to read it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def read1(self, size: int = -1) -> bytes:
        return self._answer.read1(size)


def _unpacked(answer: Answer, coding: str) -> urllib3.HTTPResponse:
    """We ask for none, but some compress all the same. No more is unpacked at a time
    than is read."""
    return urllib3.HTTPResponse(
        _Packed(answer), {"content-encoding": coding}, preload_content=False
    )
