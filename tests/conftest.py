"""What many tests share: gateways on the echo, a scripted provider, real servers."""

from __future__ import annotations

import compileall
import contextlib
import gc
import http.server
import io
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import uuid
import weakref
import wsgiref.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from redis import Redis, RedisError
from sqlalchemy.exc import OperationalError

pytest.register_assert_rewrite("oneai_middleware.testing")

import oneai_middleware  # noqa: E402
from oneai_middleware import Gateway, OneAIMiddleware  # noqa: E402
from oneai_middleware.database.engine import Database  # noqa: E402
from oneai_middleware.database.tables import METADATA  # noqa: E402
from oneai_middleware.plugins import installed  # noqa: E402
from oneai_middleware.secret import new_secret  # noqa: E402
from oneai_middleware.testing import FakeClock  # noqa: E402

# How long an example takes is no property of the code on a shared machine.
for name, examples in {"house": 25, "soak": 500}.items():
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("soak" if is_soak(config) else "house")


def is_soak(config: pytest.Config) -> bool:
    return str(config.option.markexpr) == "soak"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What tries examples is a part of the soak as well, with many more of them."""
    for item in items:
        if is_soak(config) and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.soak)


PACKAGE = Path(oneai_middleware.__file__).parent


def pytest_collection_finish() -> None:
    """Spare processes that tests start from compiling the package, each of them anew, where
    Python is told to keep no bytecode; and the collector from going through all that
    has been imported and collected, again and again."""
    compileall.compile_dir(PACKAGE, quiet=2)
    gc.collect()
    gc.freeze()


PATIENCE = 10.0
"""Seconds a test waits for what must happen; on a machine at rest it takes milliseconds."""


def eventually(check: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What ``check`` returns once it is true; fails when it does not become so."""
    end = time.monotonic() + patience
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture(scope="session", name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


def require(condition: Any, reason: str) -> None:
    """Skip the test, saying why, unless ``condition`` holds.

    Where ``$ONEAI_TEST_REQUIRE_SERVICES`` is 1, nothing may be missing and it fails.
    """
    if condition:
        return
    if os.environ.get("ONEAI_TEST_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", name="require")
def _require() -> Callable[[Any, str], None]:
    return require


@pytest.fixture
def look_anew() -> Iterator[Callable[[], None]]:
    """Call it once other packages are installed: what is installed is looked up once."""
    yield installed.cache_clear
    installed.cache_clear()


@pytest.fixture
def pumps() -> Callable[[], list[threading.Thread]]:
    """The threads of streams that this test has begun and that still run."""
    before = set(threading.enumerate())
    return lambda: [
        thread
        for thread in threading.enumerate()
        if thread.name == "oneai-pump" and thread not in before
    ]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def secret() -> str:
    """The key of ``alice``, the account of :func:`make_gateway`."""
    return new_secret()


@pytest.fixture
def headers(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def make_gateway(secret: str) -> Callable[..., Gateway]:
    """Gateways on the echo; by default alice, on tier pro, owns ten dollars.

    ``echo`` are options of the echo that plays every provider, ``account`` fields
    of alice's row, the rest settings.
    """

    def make(
        *, echo: dict[str, Any] | None = None, account: dict[str, Any] | None = None, **options: Any
    ) -> Gateway:
        names = ("deepseek", "alibaba", "moonshot", "minimax", "zhipu")
        options.setdefault(
            "providers", {name: {"backend": "echo", **(echo or {})} for name in names}
        )
        options.setdefault(
            "accounts",
            {"alice": {"tier": "pro", "balance": "10", "keys": [secret], **(account or {})}},
        )
        return Gateway(**options)

    return make


def host_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """A host whose only page shows what reached it."""
    body = f"host {environ['SCRIPT_NAME']}|{environ['PATH_INFO']}".encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def make_app(make_gateway: Callable[..., Gateway]) -> Callable[..., OneAIMiddleware]:
    """The same gateways mounted before a host; ``app.gateway`` is the gateway."""

    def make(**options: Any) -> OneAIMiddleware:
        return OneAIMiddleware(host_app, make_gateway(**options))

    return make


# --- one request, as a WSGI server makes it -----------------------------------


class Reply:
    """What a WSGI application answered. Its body is read when asked for, or never."""

    def __init__(self, status: str, headers: list[tuple[str, str]], body: Any) -> None:
        self.status = int(status.partition(" ")[0])
        self.header_list = headers
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body
        self._items = iter(body)
        self._data: bytes | None = None

    def __next__(self) -> bytes:
        """The next item of the body."""
        return next(self._items)

    def read(self) -> bytes:
        """The rest of the body, which is closed then, as a server does it."""
        if self._data is None:
            self._data = b"".join(self._items)
            self.close()
        return self._data

    def close(self) -> None:
        if hasattr(self.body, "close"):
            self.body.close()

    @property
    def json(self) -> Any:
        return json.loads(self.read())

    @property
    def error(self) -> dict[str, Any]:
        """The error in the body, which must be one: four keys, strings or null."""
        assert self.status >= 400
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        assert isinstance(error["param"], str | None)
        assert isinstance(error["code"], str | None)
        return error


def send(
    app: Any,
    method: str,
    target: str,
    body: Any = b"",
    headers: dict[str, str] | None = None,
    **environ: Any,
) -> Reply:
    """Ask ``app``; ``body`` is sent as JSON unless it is bytes.

    ``environ`` is laid over what is made of the rest; ``None`` takes a name out.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    path, _, query = target.partition("?")
    whole: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": urllib.parse.unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "wsgi.input": io.BytesIO(data),
        "wsgi.multiprocess": False,
    }
    wsgiref.util.setup_testing_defaults(whole)
    if method == "POST":
        whole |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(data))}
    for name, value in (headers or {}).items():
        whole["HTTP_" + name.upper().replace("-", "_")] = value
    whole = {name: value for name, value in (whole | environ).items() if value is not None}
    answer: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answer[:] = [status, headers]
        return answer.append

    returned = app(whole, start_response)
    return Reply(*answer, returned)


@pytest.fixture(name="send")
def _send() -> Callable[..., Reply]:
    return send


# --- a provider on a real port ------------------------------------------------


class Turn:
    """One request that reached the provider, and the means to answer it."""

    def __init__(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self._handler = handler
        self.method = handler.command
        self.path = handler.path
        self.headers = list(handler.headers.items())
        self.peer = handler.client_address
        """Tells connections apart: the same for all requests over one."""
        self.body = body
        self.left = threading.Event()
        """Set when the gateway closes the connection while :meth:`hold` waits."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """A whole reply; ``value`` is sent as JSON unless it is bytes."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self._handler.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self._handler.send_header(name, text)
        self._handler.send_header("Content-Length", str(len(data)))
        self._handler.end_headers()
        self.raw(data)

    def start_stream(self, headers: dict[str, str] | None = None) -> None:
        """The head of an event stream that ends when the connection does."""
        self._handler.close_connection = True
        self._handler.send_response(200)
        for name, text in {"Content-Type": "text/event-stream", **(headers or {})}.items():
            self._handler.send_header(name, text)
        self._handler.send_header("Connection", "close")
        self._handler.end_headers()

    def event(self, value: Any) -> None:
        """One event; ``value`` is sent as JSON unless it is a string."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.raw(f"data: {text}\n\n".encode())

    def text(self, text: str, finish: str | None = None, **chunk: Any) -> None:
        """A chunk with a piece of text."""
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        self.event({"id": "up", "object": "chat.completion.chunk", "choices": [choice], **chunk})

    def hold(self, until: threading.Event | None = None, patience: float = 30.0) -> bool:
        """Say nothing until the gateway closes the connection (true) or ``until`` is set."""
        connection = self._handler.connection
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if until is not None and until.is_set():
                return False
            if select.select([connection], [], [], 0.01)[0]:
                try:
                    gone = connection.recv(1, socket.MSG_PEEK) == b""
                except OSError:
                    gone = True
                if gone:
                    self.left.set()
                    return True
        return False


class Provider:
    """A provider that does what the test says, over real HTTP.

    ``respond`` is called with a :class:`Turn` for every request, in a thread of
    its own; ``turns`` are all requests so far; ``connections`` the open sockets.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.respond: Callable[[Turn], None] = lambda turn: turn.answer(completion("hello"))
        self.connections: set[Any] = set()
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body would be 40 ms apart

            def setup(self) -> None:
                super().setup()
                provider.connections.add(self)

            def finish(self) -> None:
                try:
                    super().finish()
                except OSError:
                    pass
                finally:
                    provider.connections.discard(self)

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

            def _turn(self) -> None:
                turn = Turn(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))
                provider.turns.append(turn)
                provider.respond(turn)

            do_GET = do_POST = _turn

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def verify_request(self, *_: Any) -> bool:
                return not provider._is_closing

        self._is_closing = False
        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_closing:
            self._server.handle_request()

    def close(self) -> None:
        self._is_closing = True
        socket.create_connection(self._server.server_address).close()  # wakes it up
        self._thread.join()
        for handler in list(self.connections):
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


def completion(text: str, **fields: Any) -> dict[str, Any]:
    """A ``chat.completion`` as a provider sends it."""
    return {
        "id": "up-1",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        **fields,
    }


@pytest.fixture(name="completion")
def _completion() -> Callable[..., dict[str, Any]]:
    return completion


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture
def asking_provider(provider: Provider) -> dict[str, Any]:
    """Settings of a gateway whose model ``bot`` is the scripted provider's ``up/bot``."""
    return {
        "providers": {"scripted": {"base_url": provider.url, "api_key": "sk-upstream-secret"}},
        "models": {"bot": {"routes": ["scripted/up/bot"], "input": "1", "output": "2"}},
    }


# --- programs in Python ---------------------------------------------------------


class Program:
    """A program that :class:`Warm` has started: as much of ``Popen`` as the tests use."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        weakref.finalize(self, told.close)  # a test that failed may not have waited for it
        self.pid = int(told.recv(100))
        self.returncode: int | None = None
        self.stdin: Any = None
        self.stdout: Any = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._told.recv(100))
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """Python's command line, without the seconds that imports take: see ``warm.py``.

    ``words`` are what stands behind ``python``, or a command of this environment.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            ignored = ("PYTHONPATH", "PYTHONWARNINGS")
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("warm.py")), str(number)],
                pass_fds=[number],
                env={name: text for name, text in os.environ.items() if name not in ignored},
            )

    def start(
        self,
        words: Sequence[str],
        *,
        cwd: Any = None,
        env: Mapping[str, str] | None = None,
        files: Sequence[Any] = (subprocess.DEVNULL,) * 3,
        start_new_session: bool = False,
    ) -> Program:
        """Start a program; ``files`` are its standard input, output and error."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {
            "words": list(words),
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        with theirs, Path(os.devnull).open("r+b") as nothing:
            given = [nothing if file == subprocess.DEVNULL else file for file in files]
            numbers = [file if isinstance(file, int) else file.fileno() for file in given]
            socket.send_fds(
                self._control, [json.dumps(asked).encode()], [*numbers, theirs.fileno()]
            )
        return Program(ours)

    def talk(self, words: Sequence[str], **options: Any) -> Program:
        """Start a program to write to and to read from."""
        read, write = os.pipe(), os.pipe()
        program = self.start(words, files=(read[0], write[1], subprocess.DEVNULL), **options)
        os.close(read[0])
        os.close(write[1])
        program.stdin, program.stdout = os.fdopen(read[1], "w"), os.fdopen(write[0])
        return program

    def run(
        self, words: Sequence[str], *, input: str = "", merged: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """What a program did; its errors are among its output where they are ``merged``."""
        with contextlib.ExitStack() as stack:
            given, out, err = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
            given.write(input)
            given.seek(0)
            program = self.start(words, files=(given, out, out if merged else err), **options)
            try:
                program.wait(60)
            except subprocess.TimeoutExpired:
                program.kill()
                raise
            out.seek(0)
            err.seek(0)
            status = program.returncode or 0
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def close(self) -> None:
        self._control.close()
        self._process.wait()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    warm = Warm()
    yield warm
    warm.close()


# --- real servers -------------------------------------------------------------


class Server:
    """A server in a process of its own, on a port of its own.

    ``command`` makes the command line of the port; ``run`` runs it in ``folder``.
    """

    def __init__(self, command: Callable[[int], list[str]], folder: Path, run: Any) -> None:
        # Bound, but not listening: nobody else gets the port, and the server may.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        with self.log.open("wb") as output:
            self.process = run(
                command(self.port),
                cwd=folder,
                output=output,
                start_new_session=True,  # so that its workers end with it
            )

    def is_listening(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def get(self, path: str) -> Any:
        """The JSON of one of the host's own pages."""
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as reply:
            return json.load(reply)

    def stop(self) -> None:
        """End all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._place.close()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server on a module's source, ``served.py``, that defines ``app``.

    It is stopped at the end of the session, unless somebody stops it before.
    """
    servers: list[Server] = []

    def cold(command: list[str], output: Any, **options: Any) -> Any:
        return subprocess.Popen(command, stdout=output, stderr=output, **options)

    def start(source: str, command: Callable[[int], list[str]], run: Any = cold) -> Server:
        folder = tmp_path_factory.mktemp("server")
        (folder / "served.py").write_text(source)
        servers.append(Server(command, folder, run))
        eventually(servers[-1].is_listening, 3 * PATIENCE)
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def start_gunicorn(
    start_server: Callable[..., Server], warm: Warm
) -> Iterator[Callable[..., Server]]:
    """Start gunicorn on a module's source that defines ``app``; stopped at the end."""
    servers: list[Server] = []

    def run(command: list[str], output: Any, **options: Any) -> Any:
        return warm.start(command[1:], files=(subprocess.DEVNULL, output, output), **options)

    def start(source: str, *arguments: str) -> Server:
        gunicorn = [sys.executable, "-m", "gunicorn", *arguments, "served:app", "--bind"]
        command = lambda port: [*gunicorn, f"127.0.0.1:{port}"]  # noqa: E731
        # gevent patches what is not imported yet.
        how = {} if "gevent" in arguments else {"run": run}
        servers.append(start_server(source, command, **how))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def start_provider() -> Iterator[Callable[[], Provider]]:
    """Start a provider that outlives a test, for a server that several tests ask."""
    providers: list[Provider] = []

    def start() -> Provider:
        providers.append(Provider())
        return providers[-1]

    yield start
    for provider in providers:
        provider.close()


# --- databases ------------------------------------------------------------------


SERVERS = {
    "postgresql": ("ONEAI_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test"),
    "mariadb": ("ONEAI_TEST_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test"),
}


@pytest.fixture(scope="session")
def swift_folder() -> Iterator[Path]:
    """A folder for files that are written again and again, in memory where there is one."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def make_database(swift_folder: Path) -> Iterator[Callable[..., Database]]:
    """Make a database of the tests' own, with nothing in it, on a kind of server."""
    with contextlib.ExitStack() as at_the_end:
        numbers = itertools.count()

        def make(kind: str) -> Database:
            if kind == "sqlite":
                folder = swift_folder / str(next(numbers))
                folder.mkdir()
                database = Database(f"sqlite:///{folder}/oneai.db")
            else:
                variable, default = SERVERS[kind]
                server = Database(os.environ.get(variable, default)).url
                name = f"oneai_test_{os.getpid()}_{next(numbers)}"
                try:
                    _run(server, f"CREATE DATABASE {name}")
                except OperationalError as error:
                    require(False, f"no {kind} at ${variable}: {type(error.orig).__name__}")
                force = " WITH (FORCE)" if kind == "postgresql" else ""
                at_the_end.callback(_run, server, f"DROP DATABASE {name}{force}")
                database = Database(server.set(database=name))
                if kind == "postgresql":  # nobody will ask for what is here after a crash
                    _run(server, f"ALTER DATABASE {name} SET synchronous_commit = off")
            at_the_end.callback(lambda: database.engine.dispose())
            return database

        yield make


@pytest.fixture
def connect() -> Iterator[Callable[..., Database]]:
    """Look at a database as another process does: with connections of one's own."""
    connected: list[Database] = []

    def connect(url: Any) -> Database:
        connected.append(Database(url))
        return connected[-1]

    yield connect
    for database in connected:
        database.engine.dispose()


@pytest.fixture(scope="session", params=["sqlite", *SERVERS])
def database(request: pytest.FixtureRequest, make_database: Callable[[str], Database]) -> Database:
    """A database with our tables, on each kind of server."""
    made = make_database(request.param)
    made.upgrade()
    return made


def _run(url: sa.URL, statement: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


@pytest.fixture
def empty_database(database: Database) -> Database:
    """The same, with nothing in it."""
    with database.transaction() as connection:
        for table in reversed(METADATA.sorted_tables):
            connection.execute(table.delete())
    return database


# --- Redis ----------------------------------------------------------------------


PATIENT = "socket_timeout=10&socket_connect_timeout=10"
"""Options of an address: on a machine at work, nobody is to take Redis for gone."""


class OwnRedis:
    """A Redis that a test may stop, pause and start again. It remembers nothing."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self._folder = folder
        self._options = options
        # Bound, but not listening: nobody else gets the ports, and the server may.
        self._places = [socket.socket() for _ in range(2)]
        for place in self._places:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(("127.0.0.1", 0))
        self.port, self._bus = (int(place.getsockname()[1]) for place in self._places)
        self.url = f"redis://127.0.0.1:{self.port}"
        """Its address, as it stands in the settings: nobody waits long for it."""
        self.patient_url = f"{self.url}?{PATIENT}"
        self.client = Redis(port=self.port)
        self.start()

    def start(self) -> None:
        """Start it, empty, on the same port as ever."""
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--cluster-port", str(self._bus)]
        quietly = ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
        self._process = subprocess.Popen(
            ["redis-server", *place, *quietly, *self._options],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        eventually(self._is_up, 3 * PATIENCE)

    def _is_up(self) -> bool:
        assert self._process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Have it answer nobody, and keep its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def calls(self, command: str) -> int:
        """How often the command has been called since ``CONFIG RESETSTAT``."""
        stats: dict[str, Any] = self.client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def close(self) -> None:
        self.stop()
        self.client.close()
        for place in self._places:
            place.close()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that is there for all tests: the one that is named, or runs here, or is started."""
    variable = "ONEAI_TEST_REDIS_URL"
    url = os.environ.get(variable, "redis://127.0.0.1:6379")
    with contextlib.ExitStack() as at_the_end:
        try:
            with Redis.from_url(url, socket_connect_timeout=PATIENCE) as client:
                client.ping()
        except RedisError as error:
            own = variable not in os.environ and shutil.which("redis-server")
            require(own, f"no Redis at ${variable}: {type(error).__name__}")
            server = OwnRedis(tmp_path_factory.mktemp("redis"), ())
            at_the_end.callback(server.close)
            url = server.url
        yield f"{url}{'&' if '?' in url else '?'}{PATIENT}"


@pytest.fixture
def redis_prefix(redis_url: str) -> Iterator[str]:
    """What the keys of this test begin with; they are gone at its end."""
    prefix = f"oneai_test_{uuid.uuid4().hex}"
    yield prefix
    with Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"{prefix}*", count=10_000):
            client.delete(key)


@pytest.fixture
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., OwnRedis]]:
    """Start a Redis of the test's own, with these options of redis-server."""
    require(shutil.which("redis-server"), "redis-server is not installed")
    with contextlib.ExitStack() as at_the_end:

        def start(*options: str) -> OwnRedis:
            own = OwnRedis(tmp_path_factory.mktemp("redis"), options)
            at_the_end.callback(own.close)
            return own

        yield start


@pytest.fixture
def own_redis(start_redis: Callable[..., OwnRedis]) -> OwnRedis:
    """A Redis of the test's own."""
    return start_redis()
