"""The servers, one app for all of them, and callers who know nothing but bytes."""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from oneai_middleware.secret import new_secret

# --- the servers --------------------------------------------------------------------


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _script(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def _gunicorn(worker: str, *arguments: str) -> Callable[[int, int], list[str]]:
    return lambda port, threads: [
        *_module("gunicorn", "served:app", "--bind", f"127.0.0.1:{port}", "-k", worker),
        *arguments,
        *(["--threads", str(threads)] if worker == "gthread" else []),
    ]


def _waitress(port: int, threads: int) -> list[str]:
    where = ["--listen", f"127.0.0.1:{port}"]
    return _module("waitress", *where, "--threads", str(threads), "served:app")


def _uwsgi(port: int, threads: int) -> list[str]:
    uwsgi = Path(sys.executable).with_name("uwsgi")
    where = ["--http-socket", f"127.0.0.1:{port}", "--module", "served:app"]
    return [str(uwsgi), *where, "--threads", str(threads), "--master", "--need-app"]


def _cheroot(port: int, threads: int) -> list[str]:
    where = ["--bind", f"127.0.0.1:{port}"]
    return _module("cheroot", *where, "--threads", str(threads), "served:app")


def _granian(port: int, threads: int) -> list[str]:
    where = ["--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port)]
    return _module("granian", *where, "--blocking-threads", str(threads), "served:app")


def _werkzeug(port: int, threads: int) -> list[str]:
    return _script(
        "from served import app\n"
        "from werkzeug.serving import run_simple\n"
        f"run_simple('127.0.0.1', {port}, app, threaded=True)"
    )


def _pywsgi(port: int, threads: int) -> list[str]:
    return _script(
        "from gevent import monkey\n"
        "monkey.patch_all()\n"
        "from gevent.pywsgi import WSGIServer\n"
        "from served import app\n"
        f"WSGIServer(('127.0.0.1', {port}), app).serve_forever()"
    )


def _wsgiref(port: int, threads: int) -> list[str]:
    return _script(
        "from wsgiref.simple_server import make_server\n"
        "from served import app\n"
        f"make_server('127.0.0.1', {port}, app).serve_forever()"
    )


def _runserver(port: int, threads: int) -> list[str]:
    return _script(
        "import django\n"
        "from django.conf import settings\n"
        "settings.configure(DEBUG=True, WSGI_APPLICATION='served.app')\n"
        "django.setup()\n"
        "from django.core.management import call_command\n"
        f"call_command('runserver', '127.0.0.1:{port}', use_reloader=False, skip_checks=True)"
    )


# What must be installed, and the command line of a port and a number of threads.
SERVERS: dict[str, tuple[str, Callable[[int, int], list[str]]]] = {
    "sync": ("gunicorn", _gunicorn("sync")),
    "gthread": ("gunicorn", _gunicorn("gthread")),
    "gevent": ("gunicorn", _gunicorn("gevent")),
    "preload": ("gunicorn", _gunicorn("gthread", "--preload")),
    "waitress": ("waitress", _waitress),
    "uwsgi": ("pyuwsgi", _uwsgi),
    "cheroot": ("cheroot", _cheroot),
    "granian": ("granian", _granian),
    "werkzeug": ("werkzeug", _werkzeug),
    "pywsgi": ("gevent", _pywsgi),
    "wsgiref": ("wsgiref", _wsgiref),
    "runserver": ("django", _runserver),
}

ALONE = {"sync", "wsgiref"}
"""Those that serve one request at a time."""

BLIND = {"granian"}
"""Those that show nothing of their sockets: there only comments find out who left."""

FORKING = {"preload", "uwsgi"}
"""Those that load the app once and then fork."""


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of server there is."""
    return str(request.param)


# --- the app they serve ---------------------------------------------------------------

BALANCE = 10**13

# `/state/…` is a page of the host that says what only its own process can know.
SERVED = """
import json
import threading

from werkzeug.test import Client

from oneai_middleware import OneAIMiddleware
from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.rate_limiters.base import Claim

LIMITS = Limits(concurrent=CONCURRENT)


class CountingLedger(MemoryLedger):
    renewals = 0

    def checkpoint(self, draft, *, lease):
        super().checkpoint(draft, lease=lease)
        self.renewals += 1


def free_slots(account):
    grants = []
    try:
        while len(grants) <= CONCURRENT:
            grants.append(limiter.acquire(account, [Claim(f"account:{account}", LIMITS)], 0))
    except RateLimitExceeded:
        pass
    for grant in grants:
        limiter.cancel(grant)
    return len(grants)


def state(account):
    rows = [row._asdict() for row in ledger.entries(account)]
    return {
        "balance": ledger.balance(account)._asdict(),
        "entries": [{**row, "settled_at": None} for row in rows],
        "faults": ledger.audit(),
        "used_slots": CONCURRENT - free_slots(account),
        "renewals": ledger.renewals,
        "calls": app.gateway._control.calls,
        "pumps": [t.name for t in threading.enumerate() if t.name == "oneai-pump"],
    }


def host(environ, start_response):
    _, page, *rest = environ["PATH_INFO"].split("/")
    body = json.dumps(state(*rest) if page == "state" else "the host's own page").encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


ledger = CountingLedger(dict.fromkeys(SECRETS, BALANCE))
app = OneAIMiddleware(
    host,
    ledger=ledger,
    accounts={name: {"tier": "enterprise", "keys": [secret],
                     "limits": {"concurrent": CONCURRENT}} for name, secret in SECRETS.items()},
    **SETTINGS,
)
limiter = app.gateway.rate_limiter
"""

# In the parent of the workers: its connections, threads and locks must not cross the fork.
WARM_UP = """
from concurrent.futures import ThreadPoolExecutor


def warm_up(number):
    return Client(app).post(
        "/oneai/v1/chat/completions",
        headers={"Authorization": "Bearer " + SECRETS["user0"]},
        json={"model": "bot", "stream": number == 0,
              "messages": [{"role": "user", "content": "hi"}]},
    )


with ThreadPoolExecutor(8) as pool:
    list(pool.map(warm_up, range(32)))
"""


class Running:
    """A server, its provider, and the accounts that no test has used yet."""

    def __init__(self, server: Any, provider: Any, secrets: dict[str, str]) -> None:
        self.server = server
        self.provider = provider
        self.accounts = iter(secrets.items())


def _source(secrets: dict[str, str], concurrent: int, settings: dict[str, Any]) -> str:
    values = {
        "BALANCE": BALANCE,
        "CONCURRENT": concurrent,
        "SECRETS": secrets,
        "SETTINGS": settings,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in values.items()) + SERVED


@pytest.fixture(scope="session")
def running(start_server: Any, start_provider: Any) -> Callable[..., Running]:
    """The app on a kind of server: started, or as it runs already with the same settings."""
    known: dict[str, Running] = {}

    def start(
        kind: str, arguments: tuple[str, ...], threads: int, concurrent: int, **settings: Any
    ) -> Running:
        provider = start_provider()
        settings = {
            "providers": {"scripted": {"base_url": provider.url, "api_key": "sk-upstream"}},
            "models": {"bot": {"routes": ["scripted/up/bot"], "input": "1", "output": "2"}},
            **settings,
        }
        secrets = {f"user{number}": new_secret() for number in range(50)}
        source = _source(secrets, concurrent, settings)
        source += WARM_UP if kind in FORKING else ""
        command = SERVERS[kind][1]
        server = start_server(source, lambda port: [*command(port, threads), *arguments])
        assert server.get("/state/user0")["entries"] == []
        return Running(server, provider, secrets)

    def running(*arguments: Any, **settings: Any) -> Running:
        key = repr((arguments, sorted(settings.items())))
        if key not in known:
            known[key] = start(*arguments, **settings)
        return known[key]

    return running


# --- callers ----------------------------------------------------------------------------


class Caller:
    """One connection to the server."""

    def __init__(self, place: Place, receive_buffer: int | None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(20)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", place.server.port))
        self.file = self.socket.makefile("rb")
        self.headers: dict[str, str] = {}
        self._place = place

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, *, stream: bool, content: str = "Say something") -> None:
        self.send(self._place.chat_request(stream=stream, content=content))

    def status(self) -> int:
        """The status of the next reply, its head read off; 0 if there is none."""
        line = self.file.readline()
        fields = iter(lambda: self.file.readline().strip().decode(), "")
        self.headers = {
            name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
        }
        return int(line.split()[1]) if line else 0

    def event(self) -> Any:
        """The next event of a stream, decoded; None at its end."""
        for line in self.file:
            if line.startswith(b"data: "):
                return line[6:].strip().decode()
        return None

    def reply(self) -> tuple[int, Any]:
        """A whole JSON reply."""
        status = self.status()
        return status, json.loads(self.file.read(int(self.headers["content-length"])))

    def leave(self) -> None:
        """Close the connection in good order."""
        self.file.close()
        self.socket.close()

    def vanish(self) -> None:
        """Reset the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()


class Place:
    """A running server as one test sees it: with an account of its own."""

    def __init__(self, kind: str, running: Running) -> None:
        self.is_alone = kind in ALONE
        self.is_blind = kind in BLIND
        self.server = running.server
        self.provider = running.provider
        self.account, self._secret = next(running.accounts)
        self.callers: list[Caller] = []
        self.provider.turns.clear()
        self._idle = set(self.provider.connections)

    @property
    def provider_connections(self) -> set[Any]:
        """Those to the provider that were not open before."""
        return set(self.provider.connections) - self._idle

    def call(self, receive_buffer: int | None = None) -> Caller:
        """A connection, closed at the end of the test."""
        self.callers.append(Caller(self, receive_buffer))
        return self.callers[-1]

    def head(self, headers: str = "", line: str = "POST /oneai/v1/chat/completions") -> bytes:
        """The head of a request."""
        fields = f"Host: test\r\nAuthorization: Bearer {self._secret}\r\n{headers}"
        return f"{line} HTTP/1.1\r\n{fields}\r\n".encode()

    def chat_request(
        self, *, stream: bool = False, content: str = "Say something", headers: str = ""
    ) -> bytes:
        """A whole request."""
        messages = [{"role": "user", "content": content}]
        body = json.dumps({"model": "bot", "stream": stream, "messages": messages})
        return self.head(f"Content-Length: {len(body)}\r\n{headers}") + body.encode()

    def reply(self, request: bytes) -> tuple[int, Any]:
        """The whole reply to ``request``, over a connection of its own."""
        caller = self.call()
        caller.send(request)
        reply = caller.reply()
        caller.leave()
        return reply

    def state(self) -> Any:
        """What the server says of itself and of this test's account."""
        return self.server.get(f"/state/{self.account}")

    def settled(self) -> Any:
        """The same, once nothing is held or running."""
        state = self.state()
        done = not (state["balance"]["held"] or state["used_slots"] or state["pumps"])
        return done and state

    def idle(self) -> Any:
        """The same, once no call keeps a thread of the server's either."""
        state = self.settled()
        return not state["calls"] and state if state else False

    def assert_books_are_exact(self, state: Any) -> None:
        balance = state["balance"]
        assert state["faults"] == []
        assert balance["held"] == 0
        assert balance["available"] + balance["spent"] == BALANCE
        assert balance["spent"] == sum(row["cost"] for row in state["entries"])
        for row in state["entries"]:
            tokens = 1_000 * row["prompt_tokens"] + 2_000 * row["completion_tokens"]
            assert row["cost"] == tokens


@pytest.fixture
def serve(running: Any, require: Any) -> Iterator[Callable[..., Place]]:
    """A place on a kind of server, with these arguments and settings."""
    places: list[Place] = []

    def serve(
        kind: str, *arguments: str, threads: int = 8, concurrent: int = 5, **settings: Any
    ) -> Place:
        require(find_spec(SERVERS[kind][0]), f"{SERVERS[kind][0]} is not installed")
        if kind in BLIND:
            settings.setdefault("keep_alive", 0.3)
        places.append(Place(kind, running(kind, arguments, threads, concurrent, **settings)))
        return places[-1]

    yield serve
    for place in places:
        for caller in place.callers:
            caller.leave()
