"""Real servers in processes of their own: the gateway's, and its provider's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
APP = "benchmarks.served:app"
LIMITED_APP = "benchmarks.limited:app"
PATIENCE = 30.0
"""Seconds a server may take to do anything."""


def _gthread(port: int, threads: int) -> list[str]:
    where = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    return ["gunicorn", APP, *where, "-k", "gthread", "--threads", str(threads)]


def _gevent(port: int, threads: int) -> list[str]:
    where = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    return ["gunicorn", APP, *where, "-k", "gevent"]


def _waitress(port: int, threads: int) -> list[str]:
    return ["waitress", "--listen", f"127.0.0.1:{port}", "--threads", str(threads), APP]


# The module to run and its arguments, of a port and a number of threads.
SERVERS: dict[str, Callable[[int, int], list[str]]] = {
    "gthread": _gthread,
    "gevent": _gevent,
    "waitress": _waitress,
}


class Running:
    """A server on a port of this machine; ``said`` is its standard output."""

    def __init__(self, port: int, said: IO[str]) -> None:
        self.port = port
        self.said = said

    def get(self, path: str) -> Any:
        """The JSON of a page."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE
        ) as page:
            return json.load(page)


@contextlib.contextmanager
def provider() -> Iterator[Running]:
    """The scripted provider."""
    with _started(["benchmarks.provider"]) as said:
        yield Running(int(said.readline()), said)


@contextlib.contextmanager
def gateway(
    kind: str, *, threads: int, calls: int, key: str, provider: Running
) -> Iterator[Running]:
    """The gateway on a kind of server, with room for so many calls of whoever has ``key``."""
    environment = {
        "BENCHMARK_CALLS": str(calls),
        "BENCHMARK_KEY": key,
        "BENCHMARK_PROVIDER": f"http://127.0.0.1:{provider.port}/v1",
    }
    with _port() as port, _started(SERVERS[kind](port, threads), environment) as said:
        _await_listening(port)
        running = Running(port, said)
        running.get("/oneai/health")  # gunicorn listens before it has loaded the app
        yield running


@contextlib.contextmanager
def redis() -> Iterator[int]:
    """A Redis that keeps nothing; its port."""
    quietly = ["--save", "", "--loglevel", "warning"]
    with _port() as port:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), *quietly]
        with _running(command):
            _await_listening(port)
            yield port


@contextlib.contextmanager
def limited(workers: int, threads: int, environment: dict[str, str]) -> Iterator[Running]:
    """A master of gunicorn and its workers, which serve an account that has limits."""
    share = ["-k", "gthread", "--workers", str(workers), "--threads", str(threads)]
    with _port() as port:
        where = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
        with _started(["gunicorn", LIMITED_APP, *where, *share], environment) as said:
            _await_listening(port)
            running = Running(port, said)
            running.get("/health")
            yield running


@contextlib.contextmanager
def _port() -> Iterator[int]:
    # Bound, but not listening: nobody else gets the port, and the server may.
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        yield place.getsockname()[1]


@contextlib.contextmanager
def _started(module: list[str], environment: dict[str, str] | None = None) -> Iterator[IO[str]]:
    with _running([sys.executable, "-m", *module], environment) as said:
        yield said


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str] | None = None) -> Iterator[IO[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its workers end with it
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await_listening(port: int) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
