"""The gateway behind nginx as it comes: buffering, and closing what its callers leave."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

# All else is nginx's default. One process is enough, and keeps the rights of the test.
CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {options}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{app_port}; }}
    }}
}}
"""

OPTIONS = {None: "", "gzip": "gzip on; gzip_types text/event-stream application/json;"}
"""More configuration, by the encoding it gives to answers."""

# Every page of the host says what only its own process can know.
SERVED = """
import json

from oneai_middleware import OneAIMiddleware
from oneai_middleware.ledgers.memory import MemoryLedger


def host(environ, start_response):
    held = ledger.balance("alice").held
    books = {{"held": held, "outcomes": [row.outcome for row in ledger.entries("alice")]}}
    body = json.dumps(books).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


ledger = MemoryLedger({{"alice": 10**10}})
app = OneAIMiddleware(
    host,
    ledger=ledger,
    accounts={{"alice": {{"tier": "free", "keys": [{secret!r}], "limits": {{"concurrent": 1}}}}}},
    **{settings!r},
)
"""

# The middleware that compresses is around ours, where it sees every answer.
DJANGO = """
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

settings.configure(
    SECRET_KEY="django-insecure-of-the-tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["oneai_middleware.integrations.django"],
    MIDDLEWARE=[
        "django.middleware.gzip.GZipMiddleware",
        "oneai_middleware.integrations.django.middleware.OneAIMiddleware",
    ],
    ONEAI={{
        "ACCOUNTS": {{"alice": {{"tier": "free", "balance": "10", "keys": [{secret!r}]}}}},
        **{{name.upper(): value for name, value in {settings!r}.items()}},
    }},
)

from django.core.wsgi import get_wsgi_application

urlpatterns = [path("page/", lambda request: HttpResponse("a page " * 100))]
app = get_wsgi_application()
"""

AT_ONCE = 2.0
"""Seconds in which what a caller held must be free again once they have left nginx."""


@pytest.fixture
def start_nginx(
    tmp_path: Path, require: Any, eventually: Any
) -> Iterator[Callable[[int, str], int]]:
    """Start nginx before a port of this machine, with more options; its own port."""
    require(NGINX, "this test needs nginx: apt-get install nginx-light")
    processes: list[subprocess.Popen[bytes]] = []

    def start(app_port: int, options: str) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = tmp_path / "nginx"
        folder.mkdir()
        config = folder / "nginx.conf"
        config.write_text(
            CONFIG.format(folder=folder, port=port, app_port=app_port, options=options)
        )
        process = subprocess.Popen([str(NGINX), "-e", "stderr", "-p", folder, "-c", config])
        processes.append(process)

        def listens() -> bool:
            assert process.poll() is None, "nginx has ended"
            with socket.socket() as knocking:
                return knocking.connect_ex(("127.0.0.1", port)) == 0

        eventually(listens)
        return port

    yield start
    for process in processes:
        process.terminate()
        process.wait(10)


ASKED: dict[str, Any] = {"model": "bot", "messages": [{"role": "user", "content": "Go on"}]}


class Site:
    """The app behind nginx."""

    def __init__(self, server: Any, port: int, secret: str) -> None:
        self.books = lambda: server.get("/books")
        self._port = port
        self._secret = secret

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self._port}/oneai/v1", api_key=self._secret, max_retries=0
        )

    def request(self, method: str, path: str, body: str, encoding: str = "identity") -> Any:
        """A connection over which a request was sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        headers = {"Authorization": f"Bearer {self._secret}", "Accept-Encoding": encoding}
        connection.request(method, path, body, headers)
        return connection

    def chat(self, *, stream: bool) -> Any:
        """A connection over which a call was sent."""
        body = json.dumps({**ASKED, "stream": stream})
        return self.request("POST", "/oneai/v1/chat/completions", body)


@pytest.fixture
def serve(
    start_gunicorn: Any, start_nginx: Any, asking_provider: Any, secret: str
) -> Callable[..., Site]:
    """Serve an app on gunicorn behind nginx."""

    def serve(options: str = "", source: str = SERVED, **settings: Any) -> Site:
        source = source.format(secret=secret, settings={**asking_provider, **settings})
        server = start_gunicorn(source, "-k", "gthread", "--threads", "8")
        return Site(server, start_nginx(server.port, options), secret)

    return serve


def assert_comes_event_by_event(site: Site, provider: Any, encoding: str | None) -> None:
    """The provider says nothing more until the caller has seen what it has said."""
    seen = threading.Event()

    def respond(turn: Any) -> None:
        turn.start_stream()
        for text in ("one ", "two ", "three "):
            turn.text(text)
            assert seen.wait(20)
            seen.clear()
        turn.text("four", "stop")
        turn.event("[DONE]")

    provider.respond = respond
    with (
        site.client() as client,
        client.chat.completions.create(**ASKED, stream=True) as stream,
    ):
        assert stream.response.headers.get("content-encoding") == encoding
        for text in ("one ", "two ", "three "):
            assert next(stream).choices[0].delta.content == text
            seen.set()
        assert [chunk.choices[0].delta.content for chunk in stream] == ["four"]


@pytest.mark.parametrize("encoding", OPTIONS)
def test_a_stream_arrives_event_by_event(serve: Any, provider: Any, encoding: str | None) -> None:
    """Conformance 57 and 59."""
    assert_comes_event_by_event(serve(OPTIONS[encoding]), provider, encoding)


def test_a_stream_of_a_django_project_that_compresses_arrives_event_by_event(
    serve: Any, provider: Any
) -> None:
    """Conformance 10 and 59."""
    site = serve(source=DJANGO)
    with contextlib.closing(site.request("GET", "/page/", "", encoding="gzip")) as connection:
        assert connection.getresponse().getheader("content-encoding") == "gzip"
    assert_comes_event_by_event(site, provider, None)


def test_comments_in_silence_pass_at_once(serve: Any, provider: Any) -> None:
    """Conformance 72."""
    commented = threading.Event()

    def respond(turn: Any) -> None:
        turn.start_stream()
        turn.text("one ")
        assert commented.wait(10)
        turn.text("two", "stop")
        turn.event("[DONE]")

    provider.respond = respond
    connection = serve(keep_alive=0.05).chat(stream=True)
    lines = []
    for line in connection.getresponse():
        lines.append(line)
        if line == b": keep-alive\n":
            commented.set()
    connection.close()
    assert commented.is_set()
    assert lines[-2:] == [b"data: [DONE]\n", b"\n"]


def _before_the_status(turn: Any) -> None:
    turn.hold()


def _in_silence(turn: Any) -> None:
    turn.start_stream()
    turn.text("one ")
    turn.hold()


def test_a_caller_who_leaves_is_noticed(serve: Any, provider: Any, eventually: Any) -> None:
    """Conformance 78."""
    site = serve()
    moments = [(True, _in_silence), (True, _before_the_status), (False, _before_the_status)]
    for number, (stream, respond) in enumerate(moments, 1):
        provider.respond = respond
        connection = site.chat(stream=stream)
        turn = eventually(lambda number=number: provider.turns[number - 1 : number])[0]
        if respond is _in_silence:
            assert b'"one "' in connection.getresponse().readline()
        # Were the only slot still taken, the next one's call would never reach the provider.
        connection.close()
        assert eventually(turn.left.is_set, AT_ONCE), "the provider still works for nobody"
        eventually(lambda: not site.books()["held"], AT_ONCE)
        assert site.books()["outcomes"] == ["caller_left"] * number


def test_refusals_keep_their_status_body_and_headers(serve: Any, provider: Any) -> None:
    """Conformance 87, 93, 95 and 97."""
    provider.respond = lambda turn: turn.answer({"error": {"message": "busy"}}, 429)
    with serve(OPTIONS["gzip"]).client() as client:
        create = client.chat.completions.create
        with pytest.raises(openai.InternalServerError) as busy:
            create(**ASKED, stream=True)
        assert (busy.value.status_code, busy.value.code) == (503, "model_overloaded")
        provider.respond = _in_silence
        with create(**ASKED, stream=True) as stream:
            next(stream)
            with pytest.raises(openai.RateLimitError) as limited:
                create(**ASKED, stream=True)
    assert limited.value.code == "concurrency_limit_exceeded"
    for error in (busy.value, limited.value):
        headers = error.response.headers
        assert headers["retry-after"] == "1"
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"].startswith("req_")
        assert headers["x-ratelimit-limit-requests"] == "20"
        assert len([name for name in headers if name.startswith("x-ratelimit-")]) == 6
