"""The gateway that stands alone, on real servers and from a settings file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVERS = {
    "gunicorn": ["gunicorn", "--threads", "4", "--bind", "127.0.0.1:0"],
    "waitress": ["waitress", "--threads", "4", "--listen", "127.0.0.1:0"],
}
on_every_server = pytest.mark.parametrize("server", SERVERS)

SETTINGS = """
[providers.zhipu]
backend = "echo"

[accounts.alice]
tier = "pro"
balance = "5.00"
keys = ["env:ALICE_KEY"]
"""


class Served:
    """A server's process, its log, and what it answers."""

    def __init__(self, process: Any, log: Path) -> None:
        self.process = process
        self._log = log
        self.url = ""

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def port(self) -> str | None:
        """The port, once the server listens."""
        assert self.process.poll() is None, self.log
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log)
        return found and found[1]

    def ask(self, path: str, key: str | None = None, body: Any = None) -> tuple[int, str]:
        """Status and text of one answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        request.add_header("Content-Type", "application/json")
        if key is not None:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def start(tmp_path: Path, secret: str, warm: Any) -> Iterator[Callable[..., Served]]:
    """Start a server as its users do; ``None`` for settings leaves the variable unset."""
    processes: list[Any] = []

    def start(server: str, settings: str | None) -> Served:
        environment = {**os.environ, "ALICE_KEY": secret, "PYTHONUNBUFFERED": "1"}
        environment.pop("ONEAI_CONFIG", None)
        file = tmp_path / "oneai.toml"
        if settings is not None:
            file.write_text(settings)
            environment["ONEAI_CONFIG"] = str(file)
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = warm.start(
                ["-m", *SERVERS[server], "oneai_middleware.wsgi:application"],
                cwd=tmp_path,
                env=environment,
                files=(subprocess.DEVNULL, output, output),
            )
        processes.append(process)
        return Served(process, log)

    yield start
    for process in processes:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def serve(
    start: Callable[..., Served], eventually: Callable[..., Any]
) -> Callable[[str, str], Served]:
    """The same, once it listens."""

    def serve(server: str, settings: str) -> Served:
        served = start(server, settings)
        served.url = f"http://127.0.0.1:{eventually(served.port)}"
        return served

    return serve


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "glm-4", "messages": [{"role": "user", "content": "Say it again"}], **fields}


@on_every_server
def test_a_settings_file_is_all_it_takes(serve: Any, secret: str, server: str) -> None:
    served = serve(server, SETTINGS)
    status, text = served.ask("/oneai/v1/chat/completions", secret, chat())
    assert status == 200
    assert json.loads(text)["choices"][0]["message"]["content"] == "Say it again"
    status, text = served.ask("/oneai/v1/chat/completions", secret, chat(stream=True))
    assert status == 200
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    deltas = [json.loads(event.removeprefix("data: "))["choices"] for event in events]
    words = [choice["delta"].get("content") or "" for choices in deltas for choice in choices]
    assert "".join(words) == "Say it again"
    status, text = served.ask("/oneai/v1/models", secret)
    assert [model["id"] for model in json.loads(text)["data"]] == ["glm-4"]
    assert served.ask("/oneai/v1/models")[0] == 401
    assert served.ask("/oneai/health") == (200, '{"status":"ok"}')
    # Outside the mount there is nothing, and it says so as a web page does.
    for path in ("/", "/v1/models", "/oneaix/v1/models", "/health"):
        status, text = served.ask(path, secret)
        assert status == 404
        assert text.startswith("<!doctype html>")
        assert "the API is below /oneai/v1." in text


@on_every_server
def test_at_the_root_it_claims_v1_and_nothing_else(serve: Any, secret: str, server: str) -> None:
    served = serve(server, f'mount = ""\n{SETTINGS}')
    status, text = served.ask("/v1/chat/completions", secret, chat())
    assert status == 200
    assert json.loads(text)["usage"]["completion_tokens"] > 0
    assert json.loads(served.ask("/v1/nothing", secret)[1])["error"]["code"] == "unknown_url"
    for path in ("/", "/oneai/v1/models", "/v1x"):
        assert served.ask(path, secret)[0] == 404


@on_every_server
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, "no settings: the environment variable ONEAI_CONFIG must name a TOML file"),
        ('mont = "/ai"', "unknown setting 'mont'; did you mean 'mount'?"),
        ('mount = "/ai/v1"', "mount: '/ai/v1' ends in /v1, which the API adds by itself; write"),
        ("mount = /ai", "oneai.toml: cannot be read as TOML: "),
        ('ledger = "nowhere:Ledger"', "ledger: 'nowhere:Ledger' cannot be imported: ModuleNotFo"),
        ('[providers.x]\napi_key = "env:ONEAI_UNSET"', "environment variable ONEAI_UNSET is not"),
    ],
)
def test_a_mistake_stops_the_start_with_one_sentence(
    start: Any, server: str, settings: str | None, said: str
) -> None:
    served = start(server, settings)
    assert served.process.wait(10) != 0
    sentences = [
        line for line in served.log.splitlines() if re.match(r"[\w.]*ConfigurationError: ", line)
    ]
    assert len(sentences) == 1
    assert said in sentences[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.toml"
    done = subprocess.run(
        [sys.executable, "-c", "import oneai_middleware.wsgi"],
        env={**os.environ, "ONEAI_CONFIG": str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"oneai_middleware.errors.ConfigurationError: {path}: cannot be read")
