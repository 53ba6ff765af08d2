"""The Redis at an address: a client in every process, which gives up soon and repeats
nothing."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis import Connection, Redis, RedisCluster, SSLConnection
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from .errors import ConfigurationError, OneAIError, StoreUnavailable
from .per_process import PerProcess

PATIENCE = 0.05
"""Seconds in which Redis must let itself be connected to, and in which it must answer."""

_KEPT_ALIVE = {"IDLE": 30, "INTVL": 10, "CNT": 3}
"""Seconds of silence after which the system asks whether an idle connection is still there,
seconds between its questions, and how many in vain mean that it is not."""

_CLUSTERS = {"redis+cluster": "redis", "rediss+cluster": "rediss"}

_OPTIONS = re.compile(
    "db|username|password|client_name|max_connections|health_check_interval"
    "|socket_(timeout|connect_timeout|keepalive)|ssl_[a-z_]+"
)

_CODES = re.compile(
    "BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOAUTH|NOPERM|NOREPLICAS|OOM|READONLY"
    "|TRYAGAIN|UNKILLABLE|WRONGPASS"
)


class RedisServer:
    """The Redis at ``url``. One object serves all threads and survives a fork.

    ``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://`` and ``rediss+cluster://``
    addresses take options of redis-py in their query: ``socket_timeout`` and
    ``socket_connect_timeout`` are :data:`PATIENCE` seconds where it does not say otherwise,
    and the latter bounds the lookup of the host's name too. Nothing is connected to before
    it is used.

    :raises ConfigurationError: ``url`` is no such address.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self._is_cluster = scheme in _CLUSTERS
        self._url = f"{_CLUSTERS.get(scheme, scheme)}://{rest}"
        self.database = _check(self._url, self._is_cluster)
        """The number of the database."""
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

        :raises StoreUnavailable: it cannot be reached, does not answer in time, or anything
            else has gone wrong.
        """
        try:
            yield
        except OneAIError:
            raise
        except Exception as error:
            if isinstance(error, (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError)):
                self._leave()
            raise StoreUnavailable(
                "The service cannot check your limits at the moment. Try again shortly.",
                detail=f"Redis: {_kind(error)}",
                retry_after=1,
            ) from error

    def _leave(self) -> None:
        """Keep no idle connection: the others may be as dead as the one that failed, and
        behind the same name another server may be master by now."""
        client = self.client.made()
        if client is None:
            return
        clients = [client]
        if self._is_cluster:
            clients = [node.redis_connection for node in client.get_nodes()]
        for each in clients:
            if each is not None:  # a node that nobody has asked yet
                each.connection_pool.disconnect(inuse_connections=False)


class _Prompt(Connection):
    """A connection that is made within its deadline, a name's lookup included."""

    def _connect(self) -> socket.socket:
        return _in_time(self.socket_connect_timeout, super()._connect)


class _PromptTLS(SSLConnection):
    """The same over TLS, its handshake included."""

    def _connect(self) -> socket.socket:
        return _in_time(self.socket_connect_timeout, super()._connect)


# A new connection would say what it is, in round trips that a call waits for.
_NAMELESS: dict[str, None] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)

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
    scheme, _, rest = url.partition("://")
    if scheme in _KINDS:
        options |= {
            "connection_class": _KINDS[scheme],
            "socket_keepalive": True,
            "socket_keepalive_options": {
                getattr(socket, f"TCP_KEEP{name}"): value
                for name, value in _KEPT_ALIVE.items()
                if hasattr(socket, f"TCP_KEEP{name}")
            },
        }
    if is_cluster:  # which for TLS would take another kind of connection than ours
        return RedisCluster.from_url(f"redis://{rest}", **options)
    return Redis.from_url(url, **options)


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
        **_NAMELESS,
    }


def _kind(error: Exception) -> str:
    """The class of an error, and what a closed list of words adds to it."""
    name, words = type(error).__name__, str(error)
    if words.startswith("DB index"):
        return f"{name}: no such database"
    code = words.partition(" ")[0]
    return f"{name}: {code}" if _CODES.fullmatch(code) else name


def _check(url: str, is_cluster: bool) -> int:
    """The number of the database that ``url`` names; nothing is connected to.

    :raises ConfigurationError: it is no address.
    """
    try:
        options = _understood(url)
    except Exception:  # whose words may hold a password
        options = None
    database = 0 if options is None else options.get("db", 0)
    if options is None or database < 0 or (is_cluster and database):
        raise ConfigurationError(
            "an address of Redis, such as 'redis://:password@localhost:6379/0', whose options "
            "are known, and whose timeouts are more than 0; write what is special in a password "
            "as %40, %2F, %23. A cluster has database 0 alone"
        )
    return int(database)


def _understood(url: str) -> dict[str, Any] | None:
    """What redis-py makes of ``url``, or ``None`` where that is not all of it.

    It takes a path that it cannot read for database 0, and finds out about an option
    that there is none of when it connects.
    """
    parts = urlsplit(url)
    is_path = parts.path if parts.scheme == "unix" else re.fullmatch("(/[0-9]*)?", parts.path)
    is_host = not re.search(r"[\s,]", parts.hostname or "")
    names = parse_qs(parts.query, keep_blank_values=True)
    if not (is_path and is_host and not parts.fragment and all(map(_OPTIONS.fullmatch, names))):
        return None
    pool = Redis.from_url(url, **_options()).connection_pool
    pool.make_connection()
    options: dict[str, Any] = pool.connection_kwargs
    timeouts = (options["socket_timeout"], options["socket_connect_timeout"])
    return options if all(0 < seconds < math.inf for seconds in timeouts) else None
