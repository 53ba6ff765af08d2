"""The Redis at an address: a client in every process, which gives up soon and repeats
nothing."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from redis import Connection, Redis, RedisCluster, SSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError
from redis.retry import Retry

from .errors import ConfigurationError, StoreUnavailable
from .per_process import PerProcess

PATIENCE = 0.05
"""Seconds in which Redis must let itself be connected to, and in which it must answer."""

_CLUSTER = "redis+cluster"


class RedisServer:
    """The Redis at ``url``. One object serves all threads and survives a fork.

    ``redis://``, ``rediss://``, ``unix://`` and ``redis+cluster://`` addresses take the
    options of redis-py in their query: ``socket_timeout`` and ``socket_connect_timeout``
    are :data:`PATIENCE` seconds where it does not say otherwise, and bound the lookup of
    the host's name too. Nothing is connected to before it is used.

    :raises ConfigurationError: ``url`` is no such address.
    """

    def __init__(self, url: str) -> None:
        self._is_cluster = url.startswith(f"{_CLUSTER}://")
        self._url = url.replace(_CLUSTER, "redis", 1) if self._is_cluster else url
        _check(self._url)
        self.client = PerProcess(partial(_connect, self._url, self._is_cluster))
        """Makes the client of this process, or gives the one that there is."""
        # The collector might take its connections apart before they are closed.
        weakref.finalize(self, _close, self.client).atexit = False

    @contextlib.contextmanager
    def listening(self, channel: str) -> Iterator[Any]:
        """A subscription to ``channel`` on a connection of its own."""
        client = _connect(self._url, self._is_cluster)
        try:
            with client.pubsub() as subscription:
                subscription.subscribe(channel)
                yield subscription
        finally:
            client.close()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Name what is wrong with Redis by its kind alone: its words may hold a password.

        :raises StoreUnavailable: it cannot be reached or does not answer in time.
        """
        try:
            yield
        except (RedisError, RedisClusterException, OSError) as error:
            if isinstance(error, ReadOnlyError):
                self._leave()
            raise StoreUnavailable(
                "The service cannot check your limits at the moment. Try again shortly.",
                detail=f"Redis: {type(error).__name__}",
                retry_after=1,
            ) from error

    def _leave(self) -> None:
        """Keep no connection: behind the same name another server may be master by now.

        A cluster says itself who it is.
        """
        if not self._is_cluster:
            self.client().connection_pool.disconnect(inuse_connections=False)


class _Prompt(Connection):
    """A connection that is made within its deadline, a name's lookup included."""

    def _connect(self) -> socket.socket:
        return _in_time(self.socket_connect_timeout, super()._connect)


class _PromptTLS(SSLConnection):
    """The same over TLS, its handshake included."""

    def _connect(self) -> socket.socket:
        return _in_time(self.socket_connect_timeout, super()._connect)


_KINDS = {"redis": _Prompt, "rediss": _PromptTLS}


def _in_time(seconds: float | None, connect: Callable[[], socket.socket]) -> socket.socket:
    """What ``connect`` gives, in a thread that is left to itself if it takes longer: how
    long the system looks a name up cannot be bounded in any other way.

    :raises TimeoutError: it takes longer.
    """
    made: Future[socket.socket] = Future()
    threading.Thread(
        target=_fulfil, args=(made, connect), name="oneai-redis-connect", daemon=True
    ).start()
    try:
        return made.result(seconds)
    except TimeoutError:
        made.add_done_callback(_close_late)
        raise


def _fulfil(promise: Future[socket.socket], connect: Callable[[], socket.socket]) -> None:
    try:
        promise.set_result(connect())
    except BaseException as error:
        promise.set_exception(error)


def _close_late(made: Future[socket.socket]) -> None:
    if made.exception() is None:
        made.result().close()


def _connect(url: str, is_cluster: bool) -> Any:
    options = _options()
    kind = _KINDS.get(url.partition("://")[0])
    if kind is not None:
        options["connection_class"] = kind
    return (RedisCluster if is_cluster else Redis).from_url(url, **options)


def _close(client: PerProcess[Any]) -> None:
    if (made := client.made()) is not None:
        made.close()


def _options() -> dict[str, Any]:
    return {
        "socket_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
        # Whoever is granted twice is charged twice; and it would take twice as long.
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 10_000,  # one a thread; how many there are is not ours to say
        "protocol": 2,
    }


def _check(url: str) -> None:
    if not _is_understood(url):
        raise ConfigurationError(
            "an address of Redis, such as 'redis://:password@localhost:6379/0', whose options "
            "redis-py knows; write what is special in a password as %40, %2F, %23"
        )


def _is_understood(url: str) -> bool:
    """Whether redis-py makes something of all of ``url``; nothing is connected to.

    It takes a path that it cannot read for database 0, and finds out about an option
    that there is none of when it connects.
    """
    try:
        _, _, path, _, fragment = urlsplit(url)
        client = Redis.from_url(url, **_options())
        client.connection_pool.make_connection()
    except Exception:  # whose words may hold a password
        return False
    is_path = path if url.startswith("unix:") else re.fullmatch("(/[0-9]*)?", path)
    return bool(is_path and not fragment and not client.get_encoder().decode_responses)
