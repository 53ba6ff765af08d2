"""What WSGI servers give beside WSGI: the caller's connection, and how many threads.

Most of it is private to the server and may move with its next release. What is not
found where it is known to be counts as not given.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import threading
from _socket import socket as PlainSocket  # beneath any that gevent puts in its place
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import FrameType
from typing import Any

Environ = dict[str, Any]

# States of linux/tcp_states.h in which the peer has closed its side: a caller who
# only half-closes is taken to have left, as nginx takes it.
_GONE = frozenset({7, 8})  # TCP_CLOSE, TCP_CLOSE_WAIT

_BYTES_ACKED = 120  # where tcpi_bytes_acked stands in the struct tcp_info of linux/tcp.h

_HAS_TCP_STATE = sys.platform == "linux"

# With this type a descriptor is taken as it is; otherwise the host's default timeout
# would make the server's own socket non-blocking.
_AS_IT_IS = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)

# What to do to a connection at its close: drop what is not sent, and tell the peer so.
_RESET = struct.pack("ii", 1, 0)


# --- the caller's connection ----------------------------------------------------


class Connection:
    """The caller's connection, as far as the server lets us touch it.

    It is the server's: we keep the number of its descriptor and no duplicate, which
    would hold the connection open after the server has closed it. Since the number
    may be another file's by then, every use first makes sure that it is still ours.
    All methods may be called from any thread, and none waits.

    :raises OSError: ``descriptor`` is not open.
    :raises ValueError: it is no socket.
    """

    def __init__(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode):
            raise ValueError(f"descriptor {descriptor} is no socket")
        self._descriptor = descriptor
        self._identity = status.st_dev, status.st_ino
        self._limit_found: int | None = None

    def is_present(self) -> bool:
        """Whether neither the caller nor the server has closed the connection.

        The TCP state is looked at because it works everywhere: under gevent, on TLS,
        with pipelined bytes waiting. UNIX sockets have none; they are peeked at.
        """
        try:
            with self._borrowed() as connection:
                if _HAS_TCP_STATE and connection.family != socket.AF_UNIX:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
                    return info[0] not in _GONE
                return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except ConnectionError:
            return False
        except OSError as error:
            # Nothing to read yet, or no descriptor to be had for looking.
            return error.errno != errno.EBADF

    def limit_writes(self, seconds: float) -> None:
        """Have the system break the connection once the caller takes nothing for so long.

        It holds also for later requests over the connection, until it is undone. Does
        nothing where that cannot be set: on UNIX sockets and outside Linux.
        """
        milliseconds = min(round(seconds * 1000), 2**31 - 1)
        with contextlib.suppress(OSError, AttributeError), self._borrowed() as connection:
            found = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            self._limit_found = found

    def restore_writes(self) -> None:
        """Undo :meth:`limit_writes`: the server's own limit holds again."""
        found, self._limit_found = self._limit_found, None
        if found is not None:
            with contextlib.suppress(OSError), self._borrowed() as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, found)

    def taken(self) -> int | None:
        """How many bytes the caller's machine has taken so far, where that can be known."""
        with contextlib.suppress(OSError, struct.error), self._borrowed() as connection:
            if _HAS_TCP_STATE and connection.family != socket.AF_UNIX:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
                taken: int = struct.unpack_from("=Q", info, _BYTES_ACKED)[0]
                return taken
        return None

    def cut(self) -> None:
        """Break the connection off; a thread of the server that blocks in a send comes back.

        The caller sees a reset and no end, which could pass for that of an answer.
        To be called only while our body is being sent: the server may serve the
        next request over the same connection right after.
        """
        with contextlib.suppress(OSError), self._borrowed() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[PlainSocket]:
        """The connection for a moment, in which its number cannot become another's.

        :raises OSError: with EBADF, the server has closed it.
        """
        duplicate = os.dup(self._descriptor)
        try:
            status = os.fstat(duplicate)
            if (status.st_dev, status.st_ino) != self._identity:
                raise OSError(errno.EBADF, "the server closed the connection")
            connection = PlainSocket(type=_AS_IT_IS, fileno=duplicate)
            try:
                yield connection
            finally:
                connection.detach()
        finally:
            os.close(duplicate)


def connection_of(environ: Environ) -> Connection | None:
    """The connection that a request came over; ``None`` where the server gives no handle.

    There only a failing write tells that the caller has left. To be called in the
    request's own thread.
    """
    for key, descriptor_of in _DESCRIPTORS:
        if key not in environ:
            continue
        # Another server's way, or one that is no more: it may fail in any manner.
        with contextlib.suppress(Exception):
            return Connection(descriptor_of(environ[key]))
    return None


def _socket_at(path: str = "") -> Callable[[Any], int]:
    """Finds the descriptor of the socket at attribute ``path`` of something."""
    fileno = attrgetter(f"{path}.fileno".lstrip("."))
    return lambda held: fileno(held)()


def _uwsgi() -> Any:
    return sys.modules["uwsgi"]


def _uwsgi_cores(environ: Environ) -> Any:
    # The module is also there when this is no request of uWSGI's, as in a test.
    if "uwsgi.version" not in environ:
        raise LookupError("the server is not uWSGI")
    return _uwsgi().cores


_DESCRIPTORS: tuple[tuple[str, Callable[[Any], int]], ...] = (
    ("gunicorn.socket", _socket_at()),
    ("werkzeug.socket", _socket_at()),
    # The function itself knows only what the server has read, which is nothing
    # while a request is served, unless it is set to look ahead.
    ("waitress.client_disconnected", _socket_at("__self__.socket")),
    ("uwsgi.version", lambda version: _uwsgi().connection_fd()),
    ("wsgi.input", lambda stream: _socket_of(stream).fileno()),
)


def _socket_of(stream: Any) -> Any:
    """The socket that a request's body is read from; ``None`` where it cannot be reached."""
    holders = (
        getattr(stream, "rfile", None),  # cheroot and gevent.pywsgi
        stream,  # wsgiref
        getattr(getattr(stream, "_read", None), "__self__", None),  # Django's runserver
    )
    for holder in holders:
        held = getattr(getattr(holder, "raw", None), "_sock", None)
        if held is not None:
            return held
    return None


# --- how many threads -------------------------------------------------------------


def threads_of(environ: Environ) -> int | None:
    """How many requests this process can run at once.

    ``None`` where that is not known, or has no bound worth speaking of. To be called
    in the request's own thread.
    """
    for count in _THREADS:
        with contextlib.suppress(Exception):
            return int(count(environ))
    return None


def _gunicorn_threads(environ: Environ) -> int:
    """The setting of the worker, which is somewhere among our callers.

    :raises LookupError: none of them is a worker that runs threads.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        worker = frame.f_locals.get("self")
        modules = {kind.__module__ for kind in type(worker).__mro__}
        if modules & {"gunicorn.workers.sync", "gunicorn.workers.gthread"}:
            return worker.cfg.threads  # type: ignore[union-attr,no-any-return]
        frame = frame.f_back
    raise LookupError("no worker of gunicorn's")


def _cheroot_threads(environ: Environ) -> Any:
    thread: Any = threading.current_thread()
    if type(thread).__module__ != "cheroot.workers.threadpool":
        raise LookupError("no thread of cheroot's")
    return thread.server.requests.min


_THREADS: tuple[Callable[[Environ], Any], ...] = (
    _gunicorn_threads,
    lambda environ: environ["waitress.client_disconnected"].__self__.adj.threads,
    _uwsgi_cores,  # threads, or greenlets of which there are as few
    _cheroot_threads,
)
