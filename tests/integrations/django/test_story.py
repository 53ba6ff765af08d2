"""One chat request in a Django project, under every way to run one, and how it may end.

Django's test client, the live server of its test cases, ``runserver`` and gunicorn;
the project has CSRF checks, GZip, APPEND_SLASH and ATOMIC_REQUESTS switched on. Once
more where its URLs include the API, with keys and money in its database.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import Client, LiveServerTestCase
from django.test.testcases import LiveServerThread

from oneai_middleware.accounts import NANO
from oneai_middleware.secret import new_secret
from oneai_middleware.tokens import estimate_prompt

HERE = Path(__file__).parent
URL = "/oneai/v1/chat/completions"
CHAT = {
    "model": "bot",
    "messages": [{"role": "user", "content": "one two three"}],
    "max_tokens": 50,
}
PROMPT = estimate_prompt(CHAT)
INPUT, OUTPUT = 1_000, 2_000  # nano-dollars per token


# --- ways to ask --------------------------------------------------------------------


class ClientReply:
    """What Django's test client was answered."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.items()}

    def read(self) -> bytes:
        return b"".join(self._response)

    def event(self) -> bytes:
        return next(
            event for event in self._response.streaming_content if event.startswith(b"data: ")
        )

    def leave(self) -> None:
        self._response.close()


class HTTPReply:
    """What a server answered."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = response = connection.getresponse()
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    def read(self) -> bytes:
        data = self._response.read()
        self.leave()
        return data

    def event(self) -> bytes:
        return next(line for line in self._response if line.startswith(b"data: "))

    def leave(self) -> None:
        self._response.close()
        self._connection.close()


def ask_client() -> Callable[..., Any]:
    client = Client(enforce_csrf_checks=True)

    def ask(method: str, path: str, body: bytes, headers: dict[str, str]) -> ClientReply:
        extra = {f"HTTP_{n.upper().replace('-', '_')}": value for n, value in headers.items()}
        response = client.generic(method, path, body, "application/json", **extra)
        return ClientReply(response)

    return ask


def ask_port(port: int) -> Callable[..., Any]:
    def ask(method: str, path: str, body: bytes, headers: dict[str, str]) -> HTTPReply:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        return HTTPReply(connection)

    return ask


@contextlib.contextmanager
def live_server() -> Iterator[int]:
    """The server of ``LiveServerTestCase``."""
    thread = LiveServerThread("127.0.0.1", LiveServerTestCase.static_handler)
    thread.start()
    thread.is_ready.wait()
    assert thread.error is None
    try:
        yield thread.port
    finally:
        thread.terminate()


@contextlib.contextmanager
def listening(
    warm: Any, environment: dict[str, str], eventually: Any, *command: str
) -> Iterator[int]:
    """A Python of its own whose command, ``PORT`` replaced, serves the project."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.replace("PORT", str(port)) for word in command]
    process = warm.start(words, cwd=HERE, env=environment)

    def listens() -> bool:
        assert process.poll() is None
        with socket.socket() as knocking:
            return knocking.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(listens)
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Place:
    """The project somewhere; what its accounts own."""

    def __init__(self, ask: Callable[..., Any], keys: dict[str, str], eventually: Any) -> None:
        self._ask = ask
        self._keys = keys
        self._eventually = eventually

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        # As the SDKs do on every call.
        headers = {"Accept-Encoding": "gzip, deflate"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        data = b"" if body is None else json.dumps(body).encode()
        return self._ask(method, path, data, headers)

    def chat(self, name: str = "alice", path: str = URL, **fields: Any) -> Any:
        return self.ask("POST", path, {**CHAT, **fields}, self._keys.get(name, new_secret()))

    def books(self, name: str = "alice") -> Any:
        reply = self.ask("GET", f"/books/?account={name}")
        data = reply.read()
        if reply.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        return json.loads(data)

    def assert_spent(self, *outcomes: str, prompt: int = 0, output: int = 0) -> None:
        """So alice's calls ended, and exactly these tokens of all of them are paid."""
        self._eventually(lambda: self.books()["balance"]["held"] == 0)
        books = self.books()
        spent = prompt * INPUT + output * OUTPUT
        assert [row["outcome"] for row in books["entries"]] == list(outcomes)
        assert books["balance"] == {
            "available": NANO - spent,
            "held": 0,
            "spent": spent,
            "topped_up": NANO,
            "invoiced": 0,
        }
        assert books["faults"] == []
        self._eventually(lambda: self.books()["free_slots"] == 1)


SERVERS = {
    "runserver": ["manage.py", "runserver", "--noreload", "127.0.0.1:PORT"],
    "gunicorn": [
        *("-m", "gunicorn", "--bind", "127.0.0.1:PORT", "-k", "gthread", "--threads", "8"),
        "project.wsgi:application",
    ],
}


@pytest.fixture(
    scope="module",
    params=["client", "live server", *SERVERS, "client, included", "gunicorn, included"],
)
def way(request: Any) -> str:
    """Each way to run the project."""
    return str(request.param)


@pytest.fixture(scope="module")
def ask(
    way: str, warm: Any, project_environment: Any, eventually: Any
) -> Iterator[Callable[..., Any]]:
    """The means to ask it."""
    name, _, included = way.partition(", ")
    if name == "client":
        yield ask_client()
    elif name == "live server":
        with live_server() as port:
            yield ask_port(port)
    else:
        environment = project_environment(included=bool(included))
        with listening(warm, environment, eventually, *SERVERS[name]) as port:
            yield ask_port(port)


@pytest.fixture
def place(
    use: Any, use_included: Any, way: str, ask: Any, secret: str, bobs_key: str, eventually: Any
) -> Place:
    """Conformance 10: the project with fresh books, under each way to run it."""
    (use_included if "included" in way else use)()
    place = Place(ask, {"alice": secret, "bob": bobs_key}, eventually)
    assert place.ask("GET", "/fresh/").read() == b"fresh"
    return place


def error_of(reply: Any) -> str:
    code: str = json.loads(reply.read())["error"]["code"]
    return code


# --- the project's own --------------------------------------------------------------


def test_the_projects_own_pages_are_as_before(place: Place) -> None:
    """Conformance 8."""
    reply = place.ask("GET", "/page/")
    assert (reply.status, reply.headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(reply.read()).startswith(b"the project's own page, ")
    assert "x-request-id" not in reply.headers
    reply = place.ask("GET", "/page")
    assert (reply.status, reply.headers["location"]) == (301, "/page/")
    reply.read()
    reply = place.ask("POST", "/page/", {})
    assert (reply.status, reply.headers["content-type"]) == (403, "text/html; charset=utf-8")
    reply.read()
    place.assert_spent()


# --- how a call may end ---------------------------------------------------------------


def test_a_call_without_a_valid_key_is_401(place: Place) -> None:
    reply = place.chat("nobody")
    assert (reply.status, error_of(reply)) == (401, "invalid_api_key")
    place.assert_spent()


def test_a_call_of_an_unknown_model_or_path_is_404(place: Place) -> None:
    """Conformance 3."""
    reply = place.chat(model="gpt-9")
    assert (reply.status, error_of(reply)) == (404, "model_not_found")
    reply = place.chat(path="/oneai/page")
    assert (reply.status, error_of(reply)) == (404, "unknown_url")
    place.assert_spent()


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_cannot_be_paid_for_is_402(place: Place, stream: bool) -> None:
    reply = place.chat("bob", stream=stream)
    assert (reply.status, error_of(reply)) == (402, "insufficient_balance")
    books = place.books("bob")
    assert (books["balance"]["available"], books["balance"]["held"]) == (1000, 0)
    assert books["entries"] == []


def test_a_call_beside_one_that_runs_is_429_where_one_is_allowed(place: Place) -> None:
    running = place.chat(model="pausing", stream=True)
    assert running.status == 200
    reply = place.chat()
    assert (reply.status, error_of(reply)) == (429, "concurrency_limit_exceeded")
    assert reply.headers["retry-after"] == "1"
    running.event()
    running.leave()
    place.assert_spent("caller_left", prompt=PROMPT, output=2)


@pytest.mark.parametrize("path", [URL, f"{URL}/", f"{URL}?beta=true"])
def test_a_full_answer_is_paid_as_its_usage_says(place: Place, path: str) -> None:
    """Conformance 1, 2, 7 and 10."""
    reply = place.chat(path=path)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    answer = json.loads(reply.read())
    assert answer["choices"][0]["message"]["content"] == "one two three"
    assert answer["usage"]["total_tokens"] == PROMPT + 3
    assert reply.headers["x-request-id"]
    place.assert_spent("answered", prompt=PROMPT, output=3)


def test_a_stream_read_to_its_end_costs_the_same(place: Place) -> None:
    """Conformance 10 and 57."""
    reply = place.chat(stream=True)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["x-accel-buffering"] == "no"
    assert not {"content-encoding", "content-length"} & set(reply.headers)
    assert reply.read().endswith(b"data: [DONE]\n\n")
    place.assert_spent("answered", prompt=PROMPT, output=3)


def test_a_stream_left_after_one_event_costs_the_prompt_and_that_event(place: Place) -> None:
    """Conformance 10 and 59: it arrives although there is no second."""
    reply = place.chat(model="pausing", stream=True)
    assert b'"one "' in reply.event()
    assert place.books()["free_slots"] == 0
    reply.leave()
    place.assert_spent("caller_left", prompt=PROMPT, output=2)


def test_a_stream_left_before_its_first_event_costs_the_prompt(place: Place) -> None:
    reply = place.chat(model="silent", stream=True)
    assert reply.status == 200
    assert place.books()["free_slots"] == 0
    reply.leave()
    place.assert_spent("caller_left", prompt=PROMPT)


def test_a_host_function_answers_from_the_database(place: Place) -> None:
    reply = place.chat(model="notes")
    assert json.loads(reply.read())["choices"][0]["message"]["content"] == ""
    reply = place.chat(model="notes", stream=True)
    assert reply.read().endswith(b"data: [DONE]\n\n")
    place.assert_spent("answered", "answered", prompt=2 * PROMPT)


# --- many at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize("streams", [50, pytest.param(200, marks=pytest.mark.soak)])
def test_open_streams_hold_no_connection_to_the_database(
    engine: Any, warm: Any, project_environment: Any, eventually: Any, streams: int
) -> None:
    key = new_secret()
    alice = {"tier": "enterprise", "balance": "1", "keys": [key]}
    environment = project_environment(included=True) | {
        "PROJECT_DATABASE": engine.place,
        "PROJECT_ACCOUNTS": json.dumps({"alice": alice}),
    }
    threads = str(streams + 10)
    command = [threads if word == "8" else word for word in SERVERS["gunicorn"]]
    with listening(warm, environment, eventually, *command) as port:
        place = Place(ask_port(port), {"alice": key}, eventually)
        assert place.ask("GET", "/fresh/").read() == b"fresh"
        replies = [place.chat(model="pausing", stream=True) for _ in range(streams)]
        for reply in replies:
            assert b'"one "' in reply.event()
        eventually(lambda: connected(engine.alias) == 0)
        for number, reply in enumerate(replies, 1):
            reply.leave()
            if number % 25 == 0:  # all at once would be more than the server takes
                eventually(lambda: len(place.books()["entries"]) == number, 30)  # noqa: B023
        books = place.books()
    assert books["balance"]["spent"] == streams * (PROMPT * INPUT + 2 * OUTPUT)
    assert (books["balance"]["held"], books["faults"]) == (0, [])


def connected(alias: str) -> int:
    """How many others are connected to our database."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])
