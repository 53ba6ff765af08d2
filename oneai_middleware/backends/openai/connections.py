"""Connections of our own, and where they wait for the next call."""

from __future__ import annotations

import contextlib
import socket
import ssl
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util import wait_for_read

from ...errors import BackendDisconnected
from .addresses import Peer, Request
from .exchange import IDLE, IDLE_CONNECTIONS, PIECE, Exchange, Hold, pieces
from .http1 import Answer, Inlet


class Connection:
    """A connection that only the reply it serves can cut."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.hold = Hold()
        self.socket: socket.socket | None = None
        self.inlet = Inlet(lambda size: b"", 0)
        self.idle_since = 0.0

    def connect(self, exchange: Exchange, timeout: float, pool: Pool) -> None:
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

    def send(self, request: Request, timeout: float) -> None:
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


class Pool:
    """The idle connections of this process; the one used last is the next to be used."""

    def __init__(self, verify: bool | str, clock: Callable[[], float]) -> None:
        self._verify = verify
        self._clock = clock
        # Without a lock, which could be held at a fork: each step is atomic by itself.
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[Peer, deque[Connection]] = {}
        weakref.finalize(self, _close, self._idle)

    @property
    def tls(self) -> ssl.SSLContext:
        """How TLS is spoken; made when it first is, for reading the bundle takes a while."""
        if self._tls is None:
            self._tls = _tls_context(self._verify)
        return self._tls

    def take(self, peer: Peer) -> Connection | None:
        """An idle connection that still stands."""
        idle = self._idle.get(peer, deque())
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if not self._is_old(connection) and connection.is_fresh():
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Keep a connection whose answer was read whole."""
        idle = self._idle.setdefault(connection.peer, deque())
        self._close_old(idle)
        if len(idle) < IDLE_CONNECTIONS:
            connection.idle_since = self._clock()
            idle.append(connection)
        else:
            connection.close()

    def _is_old(self, connection: Connection) -> bool:
        return self._clock() - connection.idle_since > IDLE

    def _close_old(self, idle: deque[Connection]) -> None:
        """Those at the front have waited longest; they are never used while fewer will do."""
        # Another may take the one looked at: then a younger one is closed, or none is left.
        with contextlib.suppress(IndexError):
            while idle and self._is_old(idle[0]):
                idle.popleft().close()

    def close(self) -> None:
        """Close them all."""
        _close(self._idle)


def _close(idle: Mapping[Peer, deque[Connection]]) -> None:
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
