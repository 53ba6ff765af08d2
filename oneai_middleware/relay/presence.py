"""Is the caller still there? Each server's own way to know.

A WSGI server tells an application that blocks nothing; it notices a closed
connection at its next write, or the one after. Where it hands out its socket, the
state of the TCP connection can be read without touching a byte.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

_SOCKETS = ("gunicorn.socket", "werkzeug.socket")

# States of linux/tcp_states.h in which the peer has closed its side: a caller who
# only half-closes is taken to have left, as nginx takes it.
_GONE = frozenset({7, 8})  # TCP_CLOSE, TCP_CLOSE_WAIT


def presence_of(environ: dict[str, Any]) -> Callable[[], bool] | None:
    """A function that says whether the caller is still connected.

    ``None`` where the server gives no handle: there only a failing write tells,
    and the comments of a silent stream are such writes.
    """
    for name in _SOCKETS:
        connection = environ.get(name)
        if connection is not None:
            return lambda: is_connected(connection)
    return None


def is_connected(connection: socket.socket) -> bool:
    """Whether the peer of ``connection`` has not closed it.

    The TCP state is looked at because it works everywhere: under gevent, on TLS,
    with pipelined bytes waiting. UNIX sockets have none; they are peeked at.
    """
    try:
        if connection.family == getattr(socket, "AF_UNIX", None) or not hasattr(socket, "TCP_INFO"):
            return _peek(connection)
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (OSError, ValueError, IndexError, TypeError, AttributeError):
        return not _is_closed(connection)
    return state not in _GONE


def _peek(connection: socket.socket) -> bool:
    # Asked first, because under gevent even a recv with MSG_DONTWAIT waits.
    # Not by select.select, which knows no descriptor above 1023.
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    if not waiting.poll(0):
        return True
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except ConnectionError:
        return False


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.fileno() < 0
    except (OSError, ValueError):
        return True
    except AttributeError:  # no socket after all
        return False
