"""The official clients, unmodified, and ports for them to call."""

from __future__ import annotations

import asyncio
import json
import select
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wsgi import ClosingIterator

NODE = Path(__file__).parent / "node"
INSTALL = "npm install --prefix tests/sdk/node --no-package-lock --no-audit --no-fund"

PATIENCE = 30.0
"""Seconds that a call through node may take; on an idle machine it takes milliseconds."""


class Recorder:
    """A WSGI application between the client and the app: what passed, and how often."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.attempts: list[str] = []
        self.retries: list[str] = []
        self.ids: list[str] = []
        self.on_retry: Callable[[], object] = lambda: None
        self.on_item: Callable[[bytes], object] = lambda item: None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.attempts.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        self.retries.append(environ.get("HTTP_X_STAINLESS_RETRY_COUNT", ""))
        if self.retries[-1] not in ("", "0"):
            self.on_retry()

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            self.ids += [value for name, value in headers if name == "x-request-id"]
            return start_response(status, headers, *rest)

        body = self.app(environ, start)
        return ClosingIterator(map(self._noted, body), getattr(body, "close", None))

    def _noted(self, item: bytes) -> bytes:
        self.on_item(item)
        return item


@pytest.fixture
def record() -> Callable[[Any], Recorder]:
    """Put a recorder before an app."""
    return Recorder


# --- a port ---------------------------------------------------------------------


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body would be 40 ms apart

    def log(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def listen() -> Iterator[Callable[[Any], str]]:
    """Serve an app in this process; its base URL."""
    servers: list[tuple[Any, threading.Thread]] = []

    def listen(app: Any) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/oneai/v1"

    yield listen
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


SERVED = """
from oneai_middleware import OneAIMiddleware

def host(environ, start_response):
    start_response("404 Not Found", [("Content-Length", "0")])
    return []

app = OneAIMiddleware(
    host,
    providers={name: {"backend": "echo"} for name in
               ("deepseek", "alibaba", "moonshot", "minimax", "zhipu")},
    models={"org/modèle :free": {"routes": ["zhipu/x"], "input": "1", "output": "1"}},
    accounts={"alice": {"tier": "pro", "balance": "10", "keys": [SECRET]}},
)
"""


@pytest.fixture
def base_url(start_gunicorn: Any, secret: str) -> str:
    """The API behind a gunicorn of its own process."""
    source = SERVED.replace("SECRET", repr(secret))
    server = start_gunicorn(source, "-k", "gthread", "--threads", "8")
    return f"{server.url}/oneai/v1"


# --- the clients ------------------------------------------------------------------


@dataclass
class Seen:
    """What a program has seen of one call.

    ``answer`` is the whole one: given as such, or put together by the client.
    ``error`` is what the client raised; ``waits`` are the seconds it would have waited
    between its attempts; ``response`` is the bare one, where it was asked for.
    """

    chunks: list[Any] = field(default_factory=list)
    answer: Any = None
    error: Any = None
    waits: list[float] = field(default_factory=list)
    response: Any = None

    @property
    def text(self) -> str:
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


class Node:
    """A process of node whose official client makes one call after the other."""

    def __init__(self) -> None:
        command = ["node", str(NODE / "doors.mjs")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(
        self, door: str, base_url: str, api_key: str, *, max_retries: int = 0, **body: Any
    ) -> Seen:
        call = {
            "door": door,
            "base_url": base_url,
            "api_key": api_key,
            "body": body,
            "max_retries": max_retries,
        }
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        sink.write(json.dumps(call).encode() + b"\n")
        sink.flush()
        if not select.select([source], [], [], PATIENCE)[0]:
            self._process.kill()  # its answer must not be taken for that to the next call
            pytest.fail(f"{door} does not come to an end")
        return Seen(**json.loads(source.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)


@pytest.fixture(scope="session")
def node(require: Any) -> Iterator[Node]:
    """The official client in node."""
    require(shutil.which("node"), "these tests need node, which is not installed")
    require((NODE / "node_modules/openai").exists(), f"openai for node is missing: {INSTALL}")
    node = Node()
    yield node
    node.close()


class Python:
    """The official client here; one for all calls keeps it from reading certificates anew."""

    def __init__(self) -> None:
        self._http_client = openai.DefaultHttpxClient()

    def ask(self, door: str, base_url: str, api_key: str, **body: Any) -> Seen:
        client = openai.OpenAI(
            base_url=base_url, api_key=api_key, max_retries=0, http_client=self._http_client
        )
        seen = Seen()
        try:
            _through(door, client.chat.completions, body, seen)
        except openai.OpenAIError as error:
            seen.error = _failure(error)
        return seen

    def close(self) -> None:
        self._http_client.close()


@pytest.fixture(scope="session")
def python() -> Iterator[Python]:
    """The official client in Python."""
    python = Python()
    yield python
    python.close()


@pytest.fixture(params=["python", "python async", "node"])
def sdk(request: pytest.FixtureRequest, secret: str) -> Callable[..., Seen]:
    """Each official client: ``sdk(door, base_url, **body)`` is what its program sees.

    The doors are ``create``, ``stream`` (a loop over the chunks) and ``helper``, the
    client's own way to gather a stream. A test that needs but some of the clients names
    them: ``parametrize("sdk", [...], indirect=True)``.
    """
    if request.param == "python async":
        ask = _ask_python_async
    else:
        ask = request.getfixturevalue(request.param).ask
    return lambda door, base_url, **body: ask(door, base_url, secret, **body)


def _through(door: str, completions: Any, body: dict[str, Any], seen: Seen) -> None:
    if door == "create":
        seen.answer = completions.create(**body).to_dict()
    elif door == "stream":
        for chunk in completions.create(**body, stream=True):
            seen.chunks.append(chunk.to_dict())
    elif door == "helper":
        with completions.stream(**body) as stream:
            for event in stream:
                _note(event, seen)
            seen.answer = stream.get_final_completion().to_dict(warnings=False)


def _ask_python_async(door: str, base_url: str, api_key: str, **body: Any) -> Seen:
    seen = Seen()

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
            try:
                await _through_async(door, client.chat.completions, body, seen)
            except openai.OpenAIError as error:
                seen.error = _failure(error)

    asyncio.run(ask())
    return seen


async def _through_async(door: str, completions: Any, body: dict[str, Any], seen: Seen) -> None:
    if door == "create":
        seen.answer = (await completions.create(**body)).to_dict()
    elif door == "stream":
        async for chunk in await completions.create(**body, stream=True):
            seen.chunks.append(chunk.to_dict())
    elif door == "helper":
        async with completions.stream(**body) as stream:
            async for event in stream:
                _note(event, seen)
            seen.answer = (await stream.get_final_completion()).to_dict(warnings=False)


def _note(event: Any, seen: Seen) -> None:
    if event.type == "chunk":
        seen.chunks.append(event.chunk.to_dict())


def _failure(error: openai.OpenAIError) -> dict[str, Any]:
    response = getattr(error, "response", None)  # none if it came within a stream
    return {
        "class": type(error).__name__,
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "param": getattr(error, "param", None),
        "type": getattr(error, "type", None),
        "retry_after": response and response.headers.get("retry-after"),
        "request_id": getattr(error, "request_id", None),
    }
