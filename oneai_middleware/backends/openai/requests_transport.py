"""The transport over requests.

Requests' adapter is called with a request prepared by hand. That leaves out what
a session adds and a gateway must not have: ``.netrc`` (which would replace our
Authorization header), proxies from the environment, cookies that would wander from
one caller to the next, and redirects that would carry our key along.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from ...errors import BackendUnavailable
from ...per_process import PerProcess
from ...protocol.chat import Timeouts
from .exchange import IDLE, IDLE_CONNECTIONS, PIECE, Exchange, Hold, pieces, shut_down

_current: ContextVar[RequestsReply] = ContextVar("oneai_reply")


class RequestsTransport:
    """Replies over a pool of connections.

    :param proxy: the address of an HTTP proxy.
    :param verify: whether to check TLS certificates, or the path of a CA bundle.
    :param clock: seconds, by which idle connections age.
    """

    def __init__(
        self,
        *,
        proxy: str | None = None,
        verify: bool | str = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._verify = verify
        self._session = PerProcess(lambda: _session(clock))

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


class RequestsReply(Exchange):
    """See :class:`~.transport.Reply`."""

    late = (*Exchange.late, requests.Timeout, urllib3.exceptions.TimeoutError)
    broken = (*Exchange.broken, requests.RequestException, urllib3.exceptions.HTTPError)

    def __init__(self, adapter: Any, request: requests.PreparedRequest, **options: Any) -> None:
        super().__init__()
        self._adapter = adapter
        self._request = request
        self._options = options
        self._response: requests.Response | None = None
        self._is_coded = False
        self.sent: Callable[[], object] = bool

    def _send(self, sent: Callable[[], object]) -> None:
        self.sent = sent
        token = _current.set(self)
        try:
            self._response = self._adapter.send(self._request, stream=True, **self._options)
        finally:
            _current.reset(token)
        self.status = self._response.status_code
        self.headers = self._response.headers
        # To have nothing decoded costs as much as all the rest of a short read.
        self._is_coded = "content-encoding" in self.headers

    def _receive(self) -> bytes:
        assert self._response is not None
        data: bytes = self._response.raw.read1(PIECE, decode_content=self._is_coded)
        return data

    def _let_go(self) -> None:
        if self._response is not None:
            self._response.close()


# --- connections that can be shut down from outside -------------------------


class _FinalResponse(HTTPResponse):
    """The reply that counts: of those that come before it, such as 103 Early Hints,
    http.client passes over the first kind only, and would leave the answer itself in
    the connection, for the next call to find."""

    def __init__(self, connected: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(connected, *args, **kwargs)
        self._connected = connected

    def begin(self) -> None:
        super().begin()
        while 101 < self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        # After a switch of protocols, or an answer of two minds about its end, no other is.
        if self.status == 101 or (self.chunked and "content-length" in self.headers):
            self.will_close = True
        # urllib3 logs what it cannot read of a header, and a provider may echo our key.
        self.headers.defects.clear()
        self.headers.set_payload("")

    def _close_conn(self) -> None:
        # What follows an answer would be the next call's: urllib3 does not see what waits
        # within TLS, and what waits in our buffer is forgotten with it.
        # (Of a proxy's answer to CONNECT it is unknown, and says so, whether it closes.)
        if not self.will_close and self._has_more():
            with contextlib.suppress(OSError):
                shut_down(self._connected)
        super()._close_conn()  # type: ignore[misc]

    def _has_more(self) -> bool:
        """Whether something has come that is not of this answer."""
        with contextlib.suppress(OSError):
            self._connected.settimeout(0)  # the next request sets it again
            return bool(self.fp.peek(1))
        return False


class _Held(HTTPConnection):
    """A connection that only the reply it serves can cut."""

    response_class = _FinalResponse

    def __init__(self, *args: Any, clock: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hold = Hold()
        self._parts: list[bytes] | None = None
        self._clock = clock
        self._idle_since = clock()

    @property
    def is_connected(self) -> bool:
        """Whether it can serve another call."""
        return self._clock() - self._idle_since <= IDLE and super().is_connected

    def rest(self) -> None:
        """Its answer was read, and it goes back to its pool."""
        self._idle_since = self._clock()

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        try:
            self._hold.begin_early(_current.get(), connected)
        except BackendUnavailable:
            connected.close()
            raise
        return connected

    def connect(self) -> None:
        try:
            super().connect()
            self._hold.begin(_current.get(), self.sock)
        finally:
            self._hold.end_early()

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._hold.begin(_current.get(), self.sock)
        self._parts = []
        try:
            super().request(*args, **kwargs)
        finally:
            parts, self._parts = self._parts, None
        for part in pieces(parts):
            self.send(part)
        _current.get().sent()

    def send(self, data: Any) -> None:
        # Each part by itself would be a packet, and a provider woken up, more.
        if self._parts is None:
            super().send(data)
        else:
            self._parts.append(data)


class _HeldTLS(_Held, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Held

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.rest()
        super()._put_conn(conn)


class _TLSPool(_Pool, urllib3.HTTPSConnectionPool):
    ConnectionCls = _HeldTLS


class _Adapter(HTTPAdapter):
    def __init__(self, clock: Callable[[], float], **options: Any) -> None:
        # What a pool does not know, it hands on to its connections.
        self._pool_classes = {
            "http": functools.partial(_Pool, clock=clock),
            "https": functools.partial(_TLSPool, clock=clock),
        }
        super().__init__(**options)

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """Without cookies, an encoding and copies of headers, which nobody wants here."""
        response = requests.Response()
        response.status_code, response.headers, response.raw = resp.status, resp.headers, resp
        response.request = req
        return response

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager


def _close_pools(adapter: Any) -> None:
    """What an adapter itself does is to forget its pools; they close some time later."""
    for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
        for name in manager.pools.keys():  # noqa: SIM118 - no mapping, and not to be iterated
            pool = manager.pools.get(name)
            if pool is not None:
                pool.close()


def _session(clock: Callable[[], float]) -> requests.Session:
    session = requests.Session()
    adapter = _Adapter(clock, pool_connections=16, pool_maxsize=IDLE_CONNECTIONS, max_retries=0)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session
