"""The transport over requests.

Requests' adapter is called with a request prepared by hand. That leaves out what
a session adds and a gateway must not have: ``.netrc`` (which would replace our
Authorization header), proxies from the environment, cookies that would wander from
one caller to the next, and redirects that would carry our key along.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from ...errors import BackendDisconnected, BackendTimeout, BackendUnavailable
from ...per_process import PerProcess
from ...protocol.chat import Timeouts

PIECE = 64 * 1024
IDLE_CONNECTIONS = 256
"""Kept open per provider; with fewer than there are threads they are reopened."""
HURRY = 5.0
"""Seconds to wait for what may follow a finish reason: the usage, the end."""
LINGER = 0.1
"""Seconds to wait for the end of a body whose last event has come."""

_current: ContextVar[RequestsReply] = ContextVar("oneai_reply")


class RequestsTransport:
    """Replies over a pool of connections.

    :param proxy: the address of an HTTP proxy.
    :param verify: whether to check TLS certificates, or the path of a CA bundle.
    """

    def __init__(self, *, proxy: str | None = None, verify: bool | str = True) -> None:
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._verify = verify
        self._session = PerProcess(_session)

    def open(
        self, url: str, headers: Mapping[str, str], body: bytes | None, timeouts: Timeouts
    ) -> RequestsReply:
        """See :class:`~.transport.Transport`."""
        request = requests.PreparedRequest()
        request.method = "GET" if body is None else "POST"
        request.url = url
        request.headers = CaseInsensitiveDict(headers)
        request.body = body
        if body is not None:
            request.headers["Content-Length"] = str(len(body))
        # Asked for on every call, so that a mocking library can step in.
        adapter = self._session().get_adapter(url)
        return RequestsReply(
            adapter,
            request,
            timeout=(timeouts.connect, timeouts.total),
            verify=self._verify,
            proxies=self._proxies,
        )

    def close(self) -> None:
        """Close idle connections."""
        for adapter in self._session().adapters.values():
            _close_pools(adapter)
        self._session().close()


class RequestsReply:
    """See :class:`~.transport.Reply`."""

    def __init__(self, adapter: Any, request: requests.PreparedRequest, **options: Any) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._adapter = adapter
        self._request = request
        self._options = options
        self._response: requests.Response | None = None
        self._connection: _Owned | None = None
        self._cancelled = False
        self.sent: Callable[[], object] = bool

    def begin(self, sent: Callable[[], object] = bool) -> None:
        """Send the request and wait for status and headers."""
        self.sent = sent
        token = _current.set(self)
        try:
            with self._translated(BackendDisconnected):
                self._response = self._adapter.send(self._request, stream=True, **self._options)
        finally:
            _current.reset(token)
        self.status = self._response.status_code
        self.headers = self._response.headers

    def read1(self) -> bytes:
        """The bytes that have come, waiting for the first; empty at the end."""
        assert self._response is not None
        with self._translated():
            data: bytes = self._response.raw.read1(PIECE, decode_content=True)
        # A socket that was shut down reads as ended.
        if not data and self._cancelled:
            raise BackendUnavailable("cancelled")
        if not data and self._connection is not None:
            self._connection.disown(self)  # it may serve another call by now
        return data

    def hurry(self) -> None:
        """See :class:`~.transport.Reply`."""
        if self._connection is not None:
            self._connection.hurry(self, HURRY)

    def finish(self) -> None:
        """Read the last of the body, so that the connection can be used again."""
        if self._connection is not None:
            self._connection.hurry(self, LINGER)
        with contextlib.suppress(BackendTimeout, BackendUnavailable):
            for _ in range(2):
                if not self.read1():
                    break

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.disown(self)
        if self._response is not None:
            self._response.close()

    def cancel(self) -> None:
        """Make whoever waits in this exchange come back at once."""
        self._cancelled = True
        connection = self._connection
        if connection is not None:
            connection.shut_down(self)

    def owns(self, connection: _Owned) -> None:
        """``connection`` now carries this exchange."""
        self._connection = connection
        if self._cancelled:
            raise BackendUnavailable("cancelled")

    @contextlib.contextmanager
    def _translated(self, broken: type[BackendUnavailable] = BackendUnavailable) -> Iterator[None]:
        """The border: no error of requests, urllib3 or the socket passes it."""
        try:
            yield
        except (BackendTimeout, BackendUnavailable):
            raise
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError) as error:
            raise BackendTimeout(_reason(error)) from error
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
            AttributeError,  # what a read may raise when its socket is shut down meanwhile
        ) as error:
            if self._cancelled:
                raise BackendUnavailable("cancelled") from error
            kind = broken if isinstance(_innermost(error), OSError) else BackendUnavailable
            raise kind(_reason(error)) from error


def _innermost(error: BaseException) -> BaseException:
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _reason(error: BaseException) -> str:
    """What lies at the bottom of ``error``, for the operator: its kind and, of an error
    of the system or of TLS, what it says. Other texts may hold what nobody may see."""
    innermost = _innermost(error)
    said = getattr(innermost, "verify_message", None) or getattr(innermost, "strerror", None)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


# --- connections that can be shut down from outside -------------------------


class _FinalResponse(HTTPResponse):
    """The reply that counts: of those that come before it, such as 103 Early Hints,
    http.client passes over the first kind only, and would leave the answer itself in
    the connection, for the next call to find."""

    def begin(self) -> None:
        super().begin()
        while 101 < self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        # urllib3 logs what it cannot read of a header, and a provider may echo our key.
        self.headers.defects.clear()
        self.headers.set_payload("")


class _Owned(HTTPConnection):
    """A connection that knows which reply it serves, so that no other shuts it down."""

    response_class = _FinalResponse

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._owner: RequestsReply | None = None
        self._socket: socket.socket | None = None
        self._early: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        # What follows, a proxy's CONNECT and TLS, must be within reach of a cancel too.
        # TLS takes the socket away from its object, hence a second one.
        connected = super()._new_conn()
        self._early = connected.dup()
        try:
            self._own(self._early)
        except BackendUnavailable:
            connected.close()
            raise
        return connected

    def connect(self) -> None:
        try:
            super().connect()
            self._own(self.sock)
        finally:
            with self._lock:
                if self._socket is self._early:
                    self._socket = None
                if self._early is not None:
                    self._early.close()
                    self._early = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._own(self.sock)
        super().request(*args, **kwargs)
        _current.get().sent()

    def _own(self, connected: socket.socket | None) -> None:
        reply = _current.get()
        with self._lock:
            self._owner, self._socket = reply, connected
        reply.owns(self)

    def disown(self, reply: RequestsReply) -> None:
        """``reply`` is over and has no further say."""
        with self._lock:
            if self._owner is reply:
                self._owner = self._socket = None

    def hurry(self, reply: RequestsReply, seconds: float) -> None:
        """Let reads of ``reply`` wait no longer than ``seconds``."""
        with self._lock:
            if self._owner is reply and self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.settimeout(seconds)

    def shut_down(self, reply: RequestsReply) -> None:
        """Cut the connection if it still serves ``reply``.

        Shutting the socket down wakes a thread that reads from it; closing the
        response would wait for that thread.
        """
        with self._lock:
            if self._owner is reply and self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


class _OwnedTLS(_Owned, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Owned


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _OwnedTLS


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return manager


def _close_pools(adapter: Any) -> None:
    """What an adapter itself does is to forget its pools; they close some time later."""
    for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
        for name in manager.pools.keys():  # noqa: SIM118 - no mapping, and not to be iterated
            pool = manager.pools.get(name)
            if pool is not None:
                pool.close()


def _session() -> requests.Session:
    session = requests.Session()
    adapter = _Adapter(pool_connections=16, pool_maxsize=IDLE_CONNECTIONS, max_retries=0)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session
