"""Who is compared, and how each is started: one worker, on a core of its own."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from oneai_middleware.backends.openai import OpenAIBackend
from oneai_middleware.errors import ConfigurationError
from oneai_middleware.secret import new_secret

from . import callers, databases, governed, million, processes
from .processes import Served
from .servers import PATIENCE, Absent, free_port, redis, running

TRANSPORTS = ("requests", "http.client")
"""The gateway's built-in ones, the default first; those that it does not know are left out."""

THREADS = 64


Start = Callable[[int], AbstractContextManager[Served]]
"""Starts a server in front of the provider on this port."""


def transports() -> list[str]:
    """The built-in transports that this version of the gateway has."""
    known = []
    for name in TRANSPORTS:
        with contextlib.suppress(ConfigurationError, AttributeError):
            option = {} if name == "requests" else {"transport": name}
            backend = OpenAIBackend(base_url="http://127.0.0.1/v1", **option)  # type: ignore[arg-type]
            assert callable(backend._transport.open)
            known.append(name)
    return known


# --- the WSGI servers -------------------------------------------------------------------


def gunicorn(app: str, port: int, *options: str) -> list[str]:
    """One worker of gunicorn."""
    where = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning", "--workers", "1"]
    patience = ["--timeout", "300"]  # a million of anything takes time to load
    return [sys.executable, "-m", "gunicorn", *where, *patience, *options, app]


def gthread(app: str, port: int, threads: int = THREADS) -> list[str]:
    """One worker of threads."""
    return gunicorn(app, port, "-k", "gthread", "--threads", str(threads))


def gevent(app: str, port: int) -> list[str]:
    """One worker of greenlets."""
    return gunicorn(app, port, "-k", "gevent", "--worker-connections", "2000")


def granian(app: str, port: int) -> list[str]:
    """One worker of granian, whose threads of Python are as many as gunicorn's."""
    name = app.removesuffix("()")
    factory = ["--factory"] if name != app else []
    where = ["--host", "127.0.0.1", "--port", str(port), "--interface", "wsgi", "--workers", "1"]
    share = ["--blocking-threads", str(THREADS), "--log-level", "error"]
    return [sys.executable, "-m", "granian", *where, *share, *factory, name]


SERVERS: dict[str, Callable[[str, int], list[str]]] = {
    "gthread": gthread,
    "gthread-520": functools.partial(gthread, threads=520),
    "gevent": gevent,
    "granian": granian,
}


# --- ours -------------------------------------------------------------------------------


@contextlib.contextmanager
def direct(provider: int) -> Iterator[Served]:
    """The provider itself."""
    yield Served(provider)


def bare(provider: int, server: str, transport: str) -> AbstractContextManager[Served]:
    """The bare relay."""
    return _ours("benchmarks.bare:app", provider, server, transport, new_secret())


@contextlib.contextmanager
def gateway(
    provider: int, server: str, transport: str, kind: str = "memory", *, crowded: bool = False
) -> Iterator[Served]:
    """The gateway on a kind of stores, with a million keys of others in them if ``crowded``."""
    with STORES[kind]() as (store, limiter):
        key = new_secret() if store == "memory" else governed.opened(store)
        if crowded and store == "memory":
            limiter = str(million.MANY)
        elif crowded:
            million.fill(store)
        environment = {"BENCHMARK_STORE": store, "BENCHMARK_LIMITER": limiter}
        app = "benchmarks.governed:app()"
        with _ours(app, provider, server, transport, key, environment) as served:
            yield served


@contextlib.contextmanager
def _ours(
    app: str,
    provider: int,
    server: str,
    transport: str,
    key: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    whole = {
        "BENCHMARK_PROVIDER": f"http://127.0.0.1:{provider}/v1",
        "BENCHMARK_TRANSPORT": transport,
        "BENCHMARK_KEY": key,
        **(environment or {}),
    }
    with free_port() as port:
        command = SERVERS[server](app, port)
        with _answering(command, port, _bearer(key), whole) as served:
            yield served


@contextlib.contextmanager
def _memory() -> Iterator[tuple[str, str]]:
    yield "memory", "memory"


@contextlib.contextmanager
def _sqlite() -> Iterator[tuple[str, str]]:
    with databases.sqlite() as url:
        yield url, "memory"


@contextlib.contextmanager
def _postgresql_and_redis() -> Iterator[tuple[str, str]]:
    if shutil.which("redis-server") is None:
        raise Absent("redis-server is not installed")
    with databases.postgresql() as url, redis() as port:
        yield url, f"redis://127.0.0.1:{port}"


# Where keys and money are, and where limits are counted.
STORES: dict[str, Callable[[], AbstractContextManager[tuple[str, str]]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "postgresql": _postgresql_and_redis,
}


# --- others -----------------------------------------------------------------------------

LITELLM = """\
model_list:
  - model_name: bot
    litellm_params:
      model: openai/bot
      api_base: http://127.0.0.1:{provider}/v1
      api_key: upstream
general_settings:
  master_key: {key}
"""


@contextlib.contextmanager
def litellm(provider: int) -> Iterator[Served]:
    """LiteLLM's proxy, as its documentation sets it up for production, without a database."""
    command = os.environ.get("ONEAI_BENCH_LITELLM")
    if not command:
        raise Absent("not installed; see ONEAI_BENCH_LITELLM")
    key = "sk-" + new_secret()[-30:]
    environment = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would be fetched from afar
    }
    with tempfile.TemporaryDirectory() as folder, free_port() as port:
        config = Path(folder, "config.yaml")
        config.write_text(LITELLM.format(provider=provider, key=key))
        where = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        whole = [command, "--config", str(config), *where]
        with _answering(whole, port, _bearer(key), environment) as served:
            yield served


@contextlib.contextmanager
def portkey(provider: int) -> Iterator[Served]:
    """Portkey's gateway on Node.js."""
    place = os.environ.get("ONEAI_BENCH_PORTKEY")
    if not place:
        raise Absent("not installed; see ONEAI_BENCH_PORTKEY")
    headers = {
        **_bearer("upstream"),
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{provider}/v1",
    }
    with free_port() as port:
        command = ["node", str(portkey_script(place)), f"--port={port}", "--headless"]
        with _answering(command, port, headers, {"NODE_ENV": "production"}) as served:
            yield served


def portkey_script(place: str) -> Path:
    """The script that starts it, of itself or of the folder it was installed into."""
    inside = "node_modules/@portkey-ai/gateway/build/start-server.js"
    path = Path(place)
    return path / inside if path.is_dir() else path


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- the first answer -------------------------------------------------------------------


@contextlib.contextmanager
def _answering(
    command: list[str], port: int, headers: Mapping[str, str], environment: Mapping[str, str]
) -> Iterator[Served]:
    """A server from its first answer on, on the core that is kept for it."""
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        output, core = log.fileno(), processes.SERVING
        with running(command, dict(environment), output=output, core=core) as process:
            try:
                _await_answer(process, port, headers)
            except TimeoutError as error:
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(command)}: {error}\n{said}") from None
            yield Served(port, process.pid, headers, time.monotonic() - began)


def _await_answer(process: subprocess.Popen[str], port: int, headers: Mapping[str, str]) -> None:
    """Ask until the provider's answer comes back.

    :raises TimeoutError: it does not, and will not.
    """
    end = time.monotonic() + 4 * PATIENCE
    said = b"nothing"
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, said = _ask(port, headers)
            if status == 200:
                return
        time.sleep(0.005)
    raise TimeoutError(f"no answer but {said[:300]!r}")


def _ask(port: int, headers: Mapping[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        head, _, body = callers.request(port, headers, "answer").partition(b"\r\n\r\n")
        connection.connect()
        connection.sock.sendall(head + b"\r\n\r\n" + body)
        response = http.client.HTTPResponse(connection.sock)
        response.begin()
        return response.status, response.read()
