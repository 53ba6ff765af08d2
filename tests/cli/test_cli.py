"""The `oneai` command, as its users type it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import openai
import pytest

from oneai_middleware.cli import main
from oneai_middleware.secret import digest, is_well_formed

COMMAND = [sys.executable, "-m", "oneai_middleware"]


# --- oneai secret -------------------------------------------------------------


def test_secret_prints_a_key_and_its_own_digest(capsys: Any) -> None:
    assert main(["secret"]) == 0
    match = re.fullmatch(r"secret  (\S+)\ndigest  sha256:([0-9a-f]{64})\n", capsys.readouterr().out)
    assert match is not None
    assert is_well_formed(match[1])
    assert match[2] == digest(match[1])


def test_secret_is_another_one_every_time(capsys: Any) -> None:
    main(["secret"])
    main(["secret"])
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 4


def test_a_printed_digest_opens_the_account_it_is_given_to(
    capsys: Any, config: Any, make_gateway: Any
) -> None:
    main(["secret"])
    secret, printed = (line.split()[1] for line in capsys.readouterr().out.splitlines())
    store = make_gateway(account={"keys": [printed]}).key_store
    assert store.find(store.digest(secret)).account.name == "alice"


# --- oneai check ----------------------------------------------------------------


def test_check_reports_good_settings_a_line_each(capsys: Any, config: Any) -> None:
    path = config(
        """
        mount = "/ai"
        [providers.deepseek]
        backend = "echo"
        """
    )
    assert main(["check", "--config", path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok      settings: mount '/ai', 4 models",
        "ok      key_store: MemoryKeyStore",
        "ok      rate_limiter: MemoryRateLimiter",
        "ok      ledger: MemoryLedger",
        "warning rate_limiter: counts in memory, so N worker processes admit N times the limit; "
        "set rate_limiter = 'redis://…', or processes = N",
        "warning ledger: lives in memory; with several worker processes prepaid calls are refused",
        "ok      provider deepseek: reached",
    ]


def test_check_says_what_a_ledger_in_memory_means_where_it_is_allowed(
    capsys: Any, config: Any
) -> None:
    assert main(["check", "--config", config("allow_memory_ledger = true")]) == 0
    said = capsys.readouterr().out
    assert "memory; each of several worker processes has balances of its own" in said
    assert "refused" not in said


def test_check_reads_the_file_that_the_environment_names(
    capsys: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEAI_CONFIG", config('mount = "/from-the-environment"'))
    assert main(["check"]) == 0
    assert "/from-the-environment" in capsys.readouterr().out


def test_check_without_settings_says_how_to_give_them(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEAI_CONFIG", raising=False)
    assert main(["check"]) == 1
    error = capsys.readouterr().err
    assert "--config" in error
    assert "ONEAI_CONFIG" in error
    assert "--app" in error


def test_check_warns_where_no_model_can_be_used(capsys: Any, config: Any) -> None:
    assert main(["check", "--config", config("")]) == 0
    assert "warning models: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('mont = "/ai"', ["mont", "did you mean 'mount'?"]),
        ('[providers.deepseek]\nbackend = "ecko"', ["providers['deepseek']", "'echo'"]),
        ('[providers.deepseek]\napi_key = "env:ONEAI_TEST_UNSET"', ["ONEAI_TEST_UNSET", "not set"]),
        ("mount = /ai", ["oneai.toml", "TOML"]),
    ],
)
def test_check_says_what_is_wrong_and_how_to_mend_it(
    capsys: Any, config: Any, text: str, said: list[str]
) -> None:
    assert main(["check", "--config", config(text)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("oneai: ")
    assert output.err.count("\n") == 1
    assert all(word in output.err for word in said)


def test_check_asks_the_provider_with_our_key(
    capsys: Any, config: Any, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEAI_TEST_KEY", "sk-upstream-secret")
    path = config(f'[providers.up]\nbase_url = "{provider.url}"\napi_key = "env:ONEAI_TEST_KEY"')
    provider.respond = lambda turn: turn.answer({"object": "list", "data": []})
    assert main(["check", "--config", path]) == 0
    assert "ok      provider up: reached" in capsys.readouterr().out
    (turn,) = provider.turns
    assert (turn.method, turn.path) == ("GET", "/v1/models")
    assert dict(turn.headers)["Authorization"] == "Bearer sk-upstream-secret"


def test_check_fails_where_a_provider_refuses_our_key(
    capsys: Any, config: Any, provider: Any
) -> None:
    path = config(f'[providers.up]\nbase_url = "{provider.url}"\napi_key = "sk-upstream-secret"')
    message = "Incorrect API key provided: sk-upstream-secret"
    provider.respond = lambda turn: turn.answer({"error": {"message": message}}, status=401)
    assert main(["check", "--config", path]) == 1
    output = capsys.readouterr()
    assert "FAILED  provider up: provider_unavailable: HTTP 401" in output.out
    assert "sk-upstream-secret" not in output.out + output.err


def test_check_fails_where_a_provider_is_down_and_still_asks_the_others(
    capsys: Any, config: Any
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        path = config(f'[providers.down]\nbase_url = "{url}"\n[providers.up]\nbackend = "echo"\n')
        assert main(["check", "--config", path]) == 1
    output = capsys.readouterr().out
    assert "FAILED  provider down: upstream_error" in output
    assert "ok      provider up: reached" in output


FLASK_APP = """
from flask import Flask
from oneai_middleware.integrations.flask import OneAI

app = Flask(__name__)
app.config.update(ONEAI_MOUNT="/from-flask", ONEAI_PROVIDERS={"zhipu": {"backend": "echo"}})
OneAI(app)
"""
WSGI_APP = """
from oneai_middleware import OneAIMiddleware

app = application = OneAIMiddleware(
    None, mount="/from-wsgi", providers={"zhipu": {"backend": "echo"}}
)
gateway = app.gateway
no_app_of_ours = print
"""


@pytest.fixture
def module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[Callable[[str], str]]:
    """A module in the current directory, under a name of its own."""
    names: list[str] = []

    def module(source: str) -> str:
        name = f"checked_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(source)
        names.append(name)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield module
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("source", "attribute", "mount"),
    [
        (FLASK_APP, "", "/from-flask"),
        (FLASK_APP, ":app", "/from-flask"),
        (WSGI_APP, "", "/from-wsgi"),
        (WSGI_APP, ":application", "/from-wsgi"),
        (WSGI_APP, ":gateway", "/from-wsgi"),
    ],
)
def test_check_finds_the_gateway_of_an_app(
    capsys: Any, module: Any, source: str, attribute: str, mount: str
) -> None:
    assert main(["check", "--app", module(source) + attribute]) == 0
    output = capsys.readouterr().out
    assert f"mount '{mount}', 1 models" in output
    assert "ok      provider zhipu: reached" in output


@pytest.mark.parametrize("attribute", [":no_app_of_ours", ":not_there"])
def test_check_says_where_an_app_has_no_gateway(capsys: Any, module: Any, attribute: str) -> None:
    spec = module(WSGI_APP) + attribute
    assert main(["check", "--app", spec]) == 1
    assert capsys.readouterr().err.startswith(f"oneai: --app {spec}: ")


def test_check_says_where_a_module_is_missing(capsys: Any, module: Any) -> None:
    assert main(["check", "--app", "no_such_module:app"]) == 1
    assert "no_such_module" in capsys.readouterr().err


# --- the command line itself --------------------------------------------------------


def test_a_command_that_is_not_ours_is_misuse(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("usage: oneai ")
    assert all(f"\n    {name} " in done.stdout for name in ("demo", "secret", "check"))


# --- oneai demo ---------------------------------------------------------------------


class Demo:
    """A running demo and what it printed."""

    def __init__(self, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "demo", "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "", "PYTHONWARNINGS": "error"},
            # Whoever runs the tests in the background may have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stdout is not None
        self.text = ""
        for line in self.process.stdout:
            self.text += line
            if line.startswith("Ctrl-C"):
                break

    def value(self, name: str) -> str:
        """What the demo printed behind ``name``."""
        match = re.search(rf"^  {name} +(\S+)$", self.text, re.MULTILINE)
        assert match is not None, self.text
        return match[1]

    def section(self, title: str) -> str:
        """The indented lines below a title, as a user copies them."""
        block = self.text.partition(title)[2].partition("\n")[2]
        lines = block.splitlines()
        end = next((i for i, line in enumerate(lines) if line[:1].strip()), len(lines))
        return dedent("\n".join(lines[:end]))

    def client(self, name: str) -> openai.OpenAI:
        """The SDK's client with one of the printed keys."""
        return openai.OpenAI(
            api_key=self.value(name), base_url=self.value("base URL"), max_retries=0
        )

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C; the exit status, and what was printed to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=10)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    demo = Demo()
    yield demo
    demo.interrupt()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_printed_curl_command_works_as_it_stands(demo: Demo) -> None:
    done = subprocess.run(
        ["sh", "-c", demo.section("With curl:")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"content":"Hello!"' in done.stdout


def test_the_printed_python_works_as_it_stands(
    demo: Demo, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[openai.OpenAI] = []

    def remembered(**options: Any) -> openai.OpenAI:
        clients.append(genuine(**options))
        return clients[-1]

    genuine = openai.OpenAI
    monkeypatch.setattr(openai, "OpenAI", functools.wraps(genuine)(remembered))
    source = demo.section("With the OpenAI SDK")
    exec(compile(source, "printed", "exec"), {})  # noqa: S102 - our own words
    assert capsys.readouterr().out == "Say this again"
    for client in clients:
        client.close()


@pytest.mark.parametrize("name", ["free", "pro", "enterprise"])
def test_each_printed_key_opens_an_account_of_its_tier(demo: Demo, name: str) -> None:
    with demo.client(name) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="glm-4", messages=[{"role": "user", "content": "Hello!"}]
        )
    assert raw.parse().choices[0].message.content == "Hello!"
    limit = {"free": "20", "pro": "200", "enterprise": None}[name]
    assert raw.headers.get("x-ratelimit-limit-requests") == limit


def test_the_printed_empty_key_is_out_of_money(demo: Demo) -> None:
    with demo.client("no money") as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="glm-4", messages=[{"role": "user", "content": "Hello!"}]
        )
    assert caught.value.status_code == 402


def test_the_demo_lists_nine_models_and_keeps_the_hosts_own_page(demo: Demo) -> None:
    with demo.client("free") as client:
        assert len(client.models.list().data) == 9
    root = demo.value("base URL").removesuffix("/v1")
    with urllib.request.urlopen(root + "/anything", timeout=10) as page:
        assert b"host application" in page.read()


def test_ctrl_c_ends_the_demo_without_a_word() -> None:
    demo = Demo()
    with demo.client("pro") as client:  # calls of its own threads do not keep it alive
        client.chat.completions.create(
            model="glm-4", messages=[{"role": "user", "content": "Hello!"}]
        )
    assert demo.interrupt() == (0, "")


def test_a_port_in_use_is_a_plain_sentence(demo: Demo) -> None:
    port = int(demo.value("base URL").removesuffix("/v1").rpartition(":")[2])
    second = Demo(port)
    status, errors = second.interrupt()
    assert status == 1
    assert second.text == ""
    assert f"oneai: port {port} cannot be served; choose another with --port" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("port", ["-5", "65536", "99999", "http"])
def test_a_port_that_does_not_exist_is_misuse(capsys: Any, port: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--port", port])
    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err
