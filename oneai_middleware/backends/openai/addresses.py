"""What an address says: where to connect, and how a request for it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from urllib3.util import make_headers, parse_url

_PORTS = {"http": 80, "https": 443}


class Peer(NamedTuple):
    """What a connection leads to: a provider, by way of a proxy or not."""

    host: str
    port: int
    name: str | None = None
    """Whose certificate is asked for; without one there is no TLS."""
    tunnel: bytes = b""
    """What a proxy is asked first, if it is to pass TLS on."""


class Target(NamedTuple):
    """What an address says."""

    peer: Peer
    place: str
    fields: dict[str, str]
    """The headers that follow from it, by their names in lower case."""


class Request(NamedTuple):
    """What is sent, as it is sent."""

    peer: Peer
    head: bytes
    body: bytes


def read_target(url: str, proxy: str | None) -> Target:
    """What ``url`` says to one who goes by way of ``proxy``, if there is one.

    :raises ValueError: it is no address of HTTP.
    """
    scheme, host, port, place = _parts(url)
    tls = scheme == "https"
    bare = host.strip("[]")
    name = bare.partition("%")[0].rstrip(".") if tls else None
    shown = host if port == _PORTS[scheme] else f"{host}:{port}"
    fields = {"host": f"Host: {shown}"}
    if proxy is None:
        return Target(Peer(bare, port, name), place, fields)
    _, proxy_host, proxy_port, _ = _parts(proxy)
    near = Peer(proxy_host.strip("[]"), proxy_port)
    permission = _proxy_authorization(proxy)
    if not tls:
        return Target(near, f"{scheme}://{shown}{place}", {**fields, **permission})
    asked = {"host": f"Host: {host}:{port}", **permission}
    tunnel = _head(f"CONNECT {host}:{port}", asked)
    return Target(near._replace(name=name, tunnel=tunnel), place, fields)


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


def make_request(target: Target, headers: Mapping[str, str], body: bytes | None) -> Request:
    """A POST of ``body``, or a GET without one.

    :raises ValueError: a header cannot be sent.
    """
    fields = {**target.fields}
    for name, value in headers.items():
        fields[name.lower()] = f"{name}: {value}"
    if body is not None:
        fields["content-length"] = f"Content-Length: {len(body)}"
    method = "GET" if body is None else "POST"
    return Request(target.peer, _head(f"{method} {target.place}", fields), body or b"")


def _head(line: str, fields: Mapping[str, str]) -> bytes:
    """Everything before the body.

    :raises ValueError: a header would begin another one.
    """
    head = "\r\n".join((f"{line} HTTP/1.1", *fields.values(), "", ""))
    if not head.count("\r") == head.count("\n") == len(fields) + 2:
        raise ValueError("a header of several lines")
    return head.encode("latin-1")
