"""What the tests of databases share: a proxy that may fall silent, and who it stands before."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from oneai_middleware.database.engine import Database

PORTS = {"postgresql": 5432, "mariadb": 3306}


class Proxy:
    """Passes bytes on between clients and a server, until it is told not to."""

    def __init__(self, host: str, port: int) -> None:
        self.silent = False
        """Whether it takes what comes, also new connections, and passes nothing on."""
        self.delay = 0.0
        """Seconds by which all that the server says comes late."""
        self._server = (host, port)
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def cut(self) -> None:
        """Break off all connections, as a server does that is restarted."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is shut down
            while True:
                client = self._listener.accept()[0]
                self._ends.append(client)
                if self.silent:
                    continue
                server = socket.create_connection(self._server)
                self._ends.append(server)
                self._start(self._pass_on, client, server)
                self._start(self._pass_on, server, client)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self.delay and source.getpeername() == self._server:
                    time.sleep(self.delay)
                if not self.silent:
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(empty_database: Database) -> Iterator[Proxy]:
    """A proxy before the server of the database."""
    url = empty_database.url
    proxy = Proxy(url.host or "127.0.0.1", url.port or PORTS[empty_database.kind])
    yield proxy
    proxy.close()


@pytest.fixture
def proxied(empty_database: Database, proxy: Proxy, connect: Callable[..., Database]) -> Database:
    """The same database as ``empty_database``, seen through the proxy."""
    return connect(empty_database.url.set(host="127.0.0.1", port=proxy.port))
