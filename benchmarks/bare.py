"""The bare relay that the gateway is measured by: it checks one key and passes all else on.

It is the smallest application that does this on werkzeug with the client named in
``BENCHMARK_TRANSPORT``: what the gateway needs beyond it is the price of governing.
"""

from __future__ import annotations

import hmac
import http.client
import os
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from werkzeug.wrappers import Request, Response

URL = os.environ["BENCHMARK_PROVIDER"] + "/chat/completions"
CREDENTIAL = "Bearer " + os.environ["BENCHMARK_KEY"]
HEADERS = {"Authorization": "Bearer upstream", "Content-Type": "application/json"}
PIECE = 64 * 1024


class Reply(Protocol):
    """What both clients give."""

    status: int

    def getheader(self, name: str) -> str | None: ...
    def read(self) -> bytes: ...
    def read1(self, amt: int) -> bytes: ...
    def done(self) -> None: ...


class OverRequests:
    """The adapter of one session, called with a request prepared by hand."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1024))

    def post(self, body: bytes) -> Any:
        request = requests.PreparedRequest()
        request.method, request.url, request.body = "POST", URL, body
        request.headers = requests.structures.CaseInsensitiveDict(HEADERS)
        request.headers["Content-Length"] = str(len(body))
        response = self._session.get_adapter(URL).send(request, stream=True)
        reply: Any = response.raw
        reply.done = response.close
        return reply


class OverHTTPClient:
    """Connections of the standard library, kept and used again."""

    def __init__(self) -> None:
        self._idle: deque[http.client.HTTPConnection] = deque()
        address = urlsplit(URL)
        self._host, self._port, self._path = address.hostname or "", address.port, address.path

    def post(self, body: bytes) -> Any:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = http.client.HTTPConnection(self._host, self._port)
        connection.request("POST", self._path, body, HEADERS)
        reply: Any = connection.getresponse()
        reply.done = lambda: self._idle.append(connection)
        return reply


CLIENTS: dict[str, type[OverRequests | OverHTTPClient]] = {
    "requests": OverRequests,
    "http.client": OverHTTPClient,
}
client = CLIENTS[os.environ["BENCHMARK_TRANSPORT"]]()


@Request.application
def app(request: Request) -> Response:
    """Relay one call."""
    if not hmac.compare_digest(request.headers.get("Authorization", ""), CREDENTIAL):
        return Response("wrong key", 401)
    reply: Reply = client.post(request.get_data())
    kind = reply.getheader("content-type") or ""
    if kind.startswith("text/event-stream"):
        return Response(_pieces(reply), reply.status, content_type=kind)
    body = reply.read()
    reply.done()
    return Response(body, reply.status, content_type=kind)


def _pieces(reply: Reply) -> Iterator[bytes]:
    while piece := reply.read1(PIECE):
        yield piece
    reply.done()
