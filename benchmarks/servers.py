"""Real servers in processes of their own: the gateway's, and its provider's."""

from __future__ import annotations

import contextlib
import functools
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


class Absent(Exception):
    """What a benchmark could also measure is not installed here."""


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
    with started(["benchmarks.provider"]) as said:
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
    with free_port() as port, started(SERVERS[kind](port, threads), environment) as said:
        await_listening(port)
        server = Running(port, said)
        server.get("/oneai/health")  # gunicorn listens before it has loaded the app
        yield server


@contextlib.contextmanager
def redis() -> Iterator[int]:
    """A Redis that keeps nothing; its port."""
    quietly = ["--save", "", "--loglevel", "warning"]
    with free_port() as port:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), *quietly]
        with running(command):
            await_listening(port)
            yield port


@contextlib.contextmanager
def limited(workers: int, threads: int, environment: dict[str, str]) -> Iterator[Running]:
    """A master of gunicorn and its workers, which serve an account that has limits."""
    share = ["-k", "gthread", "--workers", str(workers), "--threads", str(threads)]
    with free_port() as port:
        where = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
        with started(["gunicorn", LIMITED_APP, *where, *share], environment) as said:
            await_listening(port)
            server = Running(port, said)
            server.get("/health")
            yield server


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody else gets, and a server may."""
    # Bound, but not listening.
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        yield place.getsockname()[1]


@contextlib.contextmanager
def started(module: list[str], environment: dict[str, str] | None = None) -> Iterator[IO[str]]:
    """What a module of ours says that runs in a process of its own."""
    with running([sys.executable, "-m", *module], environment) as process:
        assert process.stdout is not None
        yield process.stdout


@contextlib.contextmanager
def running(
    command: list[str],
    environment: dict[str, str] | None = None,
    *,
    output: int = subprocess.PIPE,
    core: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A command in a session of its own, on one core if ``core`` names it.

    Whoever starts a server that talks gives another ``output``: nobody reads the pipe.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=output,
        stderr=None if output == subprocess.PIPE else subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its workers end with it
        preexec_fn=None if core is None else functools.partial(os.sched_setaffinity, 0, {core}),
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def await_listening(port: int) -> None:
    """Wait until something listens there."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
