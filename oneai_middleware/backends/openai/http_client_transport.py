"""The transport without a client library: sockets of our own, and :mod:`.http1`.

It does in a fraction of the time what requests does here, and nothing that a mocking
library could step in at. The default certificates, the reading of addresses and the
unpacking of compressed answers are those of requests and urllib3.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Mapping

import urllib3

from ...errors import BackendUnavailable, ConfigurationError
from ...per_process import PerProcess
from ...protocol.chat import Timeouts
from .addresses import Request, make_request, read_target
from .connections import Connection, Pool
from .exchange import PIECE, Exchange
from .http1 import Answer


class HTTPClientTransport:
    """Replies over a pool of connections.

    :param proxy: the address of an HTTP proxy, ``http://…``.
    :param verify: whether to check TLS certificates, or the path of a CA bundle.
    :param clock: seconds, by which idle connections age.
    :raises ConfigurationError: the proxy is itself to be reached over TLS.
    """

    def __init__(
        self,
        *,
        proxy: str | None = None,
        verify: bool | str = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if proxy is not None and proxy.lower().startswith("https:"):
            raise ConfigurationError(
                "proxy: an 'http://' address, or the transport 'requests', which speaks TLS to it"
            )
        # An address is read once; a backend has two.
        self._target = functools.lru_cache(64)(functools.partial(read_target, proxy=proxy))
        self._pool = PerProcess(lambda: Pool(verify, clock))

    def open(
        self, url: str, headers: Mapping[str, str], body: bytes | None, timeouts: Timeouts
    ) -> HTTPClientReply:
        """See :class:`~.transport.Transport`."""
        return HTTPClientReply(
            self._pool(), lambda: make_request(self._target(url), headers, body), timeouts
        )

    def close(self) -> None:
        """Close idle connections."""
        self._pool().close()


class HTTPClientReply(Exchange):
    """See :class:`~.transport.Reply`."""

    late = (*Exchange.late, urllib3.exceptions.TimeoutError)
    broken = (*Exchange.broken, urllib3.exceptions.HTTPError)

    def __init__(self, pool: Pool, prepare: Callable[[], Request], timeouts: Timeouts) -> None:
        super().__init__()
        self._pool = pool
        self._prepare = prepare
        self._timeouts = timeouts
        self._connection: Connection | None = None
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

    def _ask(self, request: Request, sent: Callable[[], object]) -> Answer:
        connection = self._pool.take(request.peer) or Connection(request.peer)
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
