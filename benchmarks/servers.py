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
    # Bound, but not listening: nobody else gets the port, and the server may.
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        with _started(SERVERS[kind](port, threads), environment) as said:
            _await_listening(port)
            running = Running(port, said)
            running.get("/oneai/health")  # gunicorn listens before it has loaded the app
            yield running


@contextlib.contextmanager
def _started(module: list[str], environment: dict[str, str] | None = None) -> Iterator[IO[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
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
