"""What each step of the road costs in this process: no server, no provider, memory stores."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import Any

from oneai_middleware import Gateway
from oneai_middleware.backends.base import Backend
from oneai_middleware.protocol.chat import ChatRequest, Chunk, Completion, Item
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.secret import new_secret

from .fast_provider import USAGE
from .governed import gateway as governed

Costs = dict[str, float]
"""Microseconds of the processor, by what is done."""

CHUNKS = 1_000

# What is done in a call, and where: these are timed as they run.
STEPS = {
    "authentication": "oneai_middleware.auth:Authentication.caller",
    "read the body": "oneai_middleware.endpoints.chat:read_body",
    "parse and check it": "oneai_middleware.endpoints.chat:read_chat",
    "find the model": "oneai_middleware.catalog:Catalog.find",
    "admission: limits and hold": "oneai_middleware.admission:AdmissionControl.admit",
    "dispatch to the backend": "oneai_middleware.dispatch:Dispatch.complete",
    "normalise the answer": "oneai_middleware.relay.body:normalise_completion",
    "encode it": "oneai_middleware.relay.body:_encoded",
    "settle: money and limits": "oneai_middleware.admission:AdmissionControl.close",
    "the line in the log": "oneai_middleware.gateway:log_call",
}


class NullBackend(Backend):
    """Has its answers ready."""

    def complete(self, request: ChatRequest) -> Completion:
        message = {"role": "assistant", "content": "word " * 150}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Completion(id="up", object="chat.completion", choices=[choice], usage=USAGE)

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        return iter(self._chunks(int(request.text_of_last_user())))

    @staticmethod
    @functools.cache
    def _chunks(count: int) -> list[Item]:
        usage = Usage.read(USAGE)
        return [*(Chunk.text("word ") for _ in range(count)), Chunk.finish(), usage]


class Road:
    """A gateway over the null backend, and the environ of a request for it."""

    def __init__(self) -> None:
        key = new_secret()
        self.gateway: Gateway = governed(
            provider={"backend": NullBackend}, key=key, store="memory", limiter="memory"
        )
        self._head = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/v1/chat/completions",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": "application/json",
            "HTTP_AUTHORIZATION": f"Bearer {key}",
            "wsgi.url_scheme": "http",
            "wsgi.multiprocess": False,
        }

    def go(self, *, chunks: int | None = None) -> int:
        """One call from its environ to its last byte; how many events its body had."""
        message = {"role": "user", "content": str(chunks)}
        asked = {"model": "bot", "messages": [message], "stream": chunks is not None}
        body = json.dumps(asked).encode()
        environ = {**self._head, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        status: list[str] = []
        answer: Any = self.gateway(environ, lambda line, headers: status.append(line))
        events = sum(piece.count(b"\n\n") for piece in answer)
        getattr(answer, "close", bool)()
        assert status == ["200 OK"]
        return events


def costs(calls: int = 2_000, rounds: int = 5) -> Costs:
    """The whole of a call and of a stream's event, and the steps of the first."""
    road = Road()
    long = max(1, calls // CHUNKS) * 4
    assert road.go(chunks=5) >= 5
    whole = _median(rounds, lambda: _each(calls, road.go))
    empty = _median(rounds, lambda: _each(calls // 4 or 1, lambda: road.go(chunks=1)))
    full = _median(rounds, lambda: _each(long, lambda: road.go(chunks=CHUNKS + 1)))
    return {
        "an answer in one piece": whole,
        **_steps(road, calls),
        "a stream of one event": empty,
        "an event of a stream": (full - empty) / CHUNKS,
    }


def _median(rounds: int, cost: Callable[[], float]) -> float:
    cost()  # to warm up
    return statistics.median(cost() for _ in range(rounds))


def _each(calls: int, call: Callable[[], object]) -> float:
    began = time.process_time_ns()
    for _ in range(calls):
        call()
    return (time.process_time_ns() - began) / calls / 1000


def _steps(road: Road, calls: int) -> Costs:
    """Each step as it is part of whole calls. The clock itself is left out."""
    timed: dict[str, list[int]] = {}
    with contextlib.ExitStack() as stack:
        for name, place in STEPS.items():
            timed[name] = stack.enter_context(_timed(place))
        for _ in range(calls):
            road.go()
    clock = statistics.median(-(time.thread_time_ns() - time.thread_time_ns()) for _ in range(999))
    return {
        f"- {name}": (statistics.median(spent) - clock) / 1000
        for name, spent in timed.items()
        if spent
    }


@contextlib.contextmanager
def _timed(place: str) -> Iterator[list[int]]:
    """The nanoseconds that each call of a function takes; none if there is no such."""
    spent: list[int] = []
    holder, _, name = place.replace(":", ".").rpartition(".")
    try:
        owner = resolve_name(holder)
        function = getattr(owner, name)
    except (ImportError, AttributeError):
        yield spent
        return

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time_ns()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.thread_time_ns() - began)

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        setattr(owner, name, function)


# --- the command ------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--calls", type=int, default=2_000, help="a round")
    parser.add_argument("--rounds", type=int, default=5)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    print("| what is done | us |\n| --- | ---: |")
    for name, cost in costs(options.calls, options.rounds).items():
        print(f"| {name} | {cost:.1f} |")
    return 0
