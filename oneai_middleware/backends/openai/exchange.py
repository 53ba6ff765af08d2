"""What every reply is, whichever client carries it: an exchange that is cut from outside,
and the border that no client's own error passes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import ClassVar

from urllib3.util.ssltransport import SSLTransport

from ...errors import BackendDisconnected, BackendError, BackendTimeout, BackendUnavailable

PIECE = 64 * 1024
"""Bytes of a body that are read at a time."""
TOGETHER = 64 * 1024
"""Bytes of a request that are sent at once; more are not copied for it."""
IDLE_CONNECTIONS = 256
"""Kept open per provider; with fewer than there are threads they are reopened."""
IDLE = 50.0
"""Seconds that one is kept without use. Many a load balancer ends it after 60, and what
forgets it without a word, after minutes, swallows the next request."""
HURRY = 5.0
"""Seconds to wait for what may follow a finish reason: the usage, the end."""
LINGER = 0.1
"""Seconds to wait for the end of a body whose last event has come."""


class Exchange:
    """A :class:`~.transport.Reply`; a client says how it sends, receives and lets go."""

    late: ClassVar[tuple[type[Exception], ...]] = (TimeoutError,)
    """What the client raises when time is up."""
    broken: ClassVar[tuple[type[Exception], ...]] = (
        HTTPException,
        OSError,
        ValueError,
        AttributeError,  # what a read may raise when its socket is shut down meanwhile
    )
    """What else it raises when there is no answer."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._hold: Hold | None = None
        self._cancelled = False

    def _send(self, sent: Callable[[], object]) -> None:
        """Send the request, call ``sent``, and wait for status and headers."""
        raise NotImplementedError

    def _receive(self) -> bytes:
        """The next bytes of the body; empty at the end."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close the connection unless the answer was read whole."""
        raise NotImplementedError

    def begin(self, sent: Callable[[], object] = bool) -> None:
        """Send the request and wait for status and headers."""
        before = sys.exception()
        try:
            self._send(sent)
        except (*self.late, *self.broken) as error:
            raise self._translated(error, BackendDisconnected, before) from error

    def read1(self) -> bytes:
        """The bytes that have come, waiting for the first; empty at the end."""
        before = sys.exception()
        try:
            data = self._receive()
        except (*self.late, *self.broken) as error:
            raise self._translated(error, BackendUnavailable, before) from error
        # A socket that was shut down reads as ended.
        if self._cancelled:
            raise BackendUnavailable("cancelled")
        if not data and self._hold is not None:
            self._hold.end(self)  # the connection may serve another call by now
        return data

    def hurry(self) -> None:
        """See :class:`~.transport.Reply`."""
        if self._hold is not None:
            self._hold.hurry(self, HURRY)

    def finish(self) -> None:
        """Read the last of the body, so that the connection can be used again."""
        if self._hold is not None:
            self._hold.hurry(self, LINGER)
        with contextlib.suppress(BackendTimeout, BackendUnavailable):
            for _ in range(2):
                if not self.read1():
                    break

    def close(self) -> None:
        """Let go of the connection."""
        if self._hold is not None:
            self._hold.end(self)
        self._let_go()

    def cancel(self) -> None:
        """Make whoever waits in this exchange come back at once."""
        self._cancelled = True
        if self._hold is not None:
            self._hold.shut_down(self)

    def holds(self, hold: Hold) -> None:
        """The connection of ``hold`` now carries this exchange."""
        self._hold = hold
        if self._cancelled:
            raise BackendUnavailable("cancelled")

    def _translated(
        self,
        error: Exception,
        kind: type[BackendUnavailable],
        before: BaseException | None,
    ) -> BackendError:
        """The border: ``kind`` is what a broken connection means here, ``before`` what was
        being handled already and has nothing to do with it."""
        innermost = _innermost(error, before)
        if isinstance(error, self.late):
            return BackendTimeout(_reason(error, innermost))
        if self._cancelled:
            return BackendUnavailable("cancelled")
        is_of_the_system = isinstance(innermost, OSError)
        return (kind if is_of_the_system else BackendUnavailable)(_reason(error, innermost))


def pieces(parts: list[bytes]) -> list[bytes]:
    """The parts of a request in as many pieces as they should be sent in."""
    return [b"".join(parts)] if sum(map(len, parts)) <= TOGETHER else parts


def _innermost(error: BaseException, before: BaseException | None) -> BaseException:
    while (below := error.__cause__ or error.__context__) not in (None, before):
        error = below
    return error


def _reason(error: BaseException, innermost: BaseException) -> str:
    """What lies at the bottom of ``error``, for the operator: its kind and, of an error
    of the system or of TLS, what it says. Other texts may hold what nobody may see."""
    said = getattr(innermost, "verify_message", None) or getattr(innermost, "strerror", None)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class Hold:
    """Which exchange a connection serves, so that no other shuts it down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: Exchange | None = None
        self._socket: socket.socket | None = None
        self._early: socket.socket | None = None

    def begin(self, exchange: Exchange, connected: socket.socket | None) -> None:
        """``exchange`` has the connection, and may cut this socket of it.

        :raises BackendUnavailable: it was cancelled.
        """
        with self._lock:
            self._owner, self._socket = exchange, connected
        exchange.holds(self)

    def begin_early(self, exchange: Exchange, connected: socket.socket) -> None:
        """What follows a TCP connection, a proxy's CONNECT and TLS, must be within reach of
        a cancel too. TLS takes the socket away from its object, hence a second one."""
        self._early = connected.dup()
        self.begin(exchange, self._early)

    def end_early(self) -> None:
        """The connection stands, or there is none."""
        with self._lock:
            if self._socket is self._early:
                self._socket = None
            if self._early is not None:
                self._early.close()
                self._early = None

    def end(self, exchange: Exchange) -> None:
        """``exchange`` is over and has no further say."""
        with self._lock:
            if self._owner is exchange:
                self._owner = self._socket = None

    def hurry(self, exchange: Exchange, seconds: float) -> None:
        """Let reads of ``exchange`` wait no longer than ``seconds``."""
        with self._lock:
            if self._owner is exchange and self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.settimeout(seconds)

    def shut_down(self, exchange: Exchange) -> None:
        """Cut the connection if it still serves ``exchange``.

        Shutting the socket down wakes a thread that reads from it; closing the
        response would wait for that thread.
        """
        with self._lock:
            if self._owner is exchange and self._socket is not None:
                with contextlib.suppress(OSError):
                    shut_down(self._socket)


def shut_down(connected: socket.socket | SSLTransport) -> None:
    """End a connection, and leave its encryption on: that of TLS takes it off first, and
    a thread that sends at this moment would send what is secret as it stands."""
    if isinstance(connected, SSLTransport):  # TLS within that to a proxy
        connected = connected.socket
    if isinstance(connected, ssl.SSLSocket):
        super(ssl.SSLSocket, connected).shutdown(socket.SHUT_RDWR)
    else:
        connected.shutdown(socket.SHUT_RDWR)
