"""A stranger with nothing but the README, a wheel and an environment with nothing in it.

Environments are made and filled here, so these tests need a package index.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from oneai_middleware.secret import digest, new_secret

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
SOURCES = ("oneai_middleware", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")

PROVIDER_KEY = '"env:DEEPSEEK_API_KEY"'
PATIENCE = 60.0

# An application that was there before, to be served by the standard library alone.
WSGI_APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"The host's own page."]
"""
SERVE = """
import sys
from wsgiref.simple_server import make_server
from host import app
make_server("127.0.0.1", int(sys.argv[1]), app).serve_forever()
"""
FLASK_APP = """
from flask import Flask
app = Flask(__name__)

@app.get("/")
def home():
    return "The host's own page."
"""
DJANGO_URLS = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse("The host's own page."))]
"""


# --- the wheel and the environments -----------------------------------------------


def run(folder: Path, *command: str | Path, **environ: str) -> str:
    """What the command prints in ``folder``; it must succeed."""
    done = subprocess.run(
        command, cwd=folder, env=clean(environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Our own environment without what would let another one see our packages."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**ours, **environ}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel, built from a copy: building leaves its traces."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name)
        else:
            shutil.copy(ROOT / name, copy)
    run(copy, sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", built, ".")
    [wheel] = built.glob("*.whl")
    return wheel


@pytest.fixture
def environment(tmp_path: Path, wheel: Path) -> Callable[..., Path]:
    """Make an environment with the wheel and these requirements; its Python."""

    def make(extra: str = "", *requirements: str) -> Path:
        run(tmp_path, sys.executable, "-m", "venv", "environment")
        python = tmp_path / "environment" / "bin" / "python"
        run(tmp_path, python, "-m", "pip", "install", f"{wheel}{extra}", *requirements)
        where = run(tmp_path, python, "-c", "import oneai_middleware as m; print(m.__file__)")
        assert "site-packages" in where
        return python

    return make


@pytest.fixture
def serve(tmp_path: Path, eventually: Any) -> Iterator[Callable[..., str]]:
    """Start a command that serves at the port it is given for ``{port}``; its address."""
    servers = contextlib.ExitStack()

    def start(folder: Path, *command: str | Path, **environ: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        filled = [str(part).replace("{port}", str(port)) for part in command]
        log = servers.enter_context((tmp_path / "log").open("wb"))
        process = subprocess.Popen(
            filled, cwd=folder, env=clean(environ), stdout=log, stderr=subprocess.STDOUT
        )
        servers.callback(process.wait)
        servers.callback(process.terminate)

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return True
            return False

        eventually(answers, PATIENCE)
        return f"http://127.0.0.1:{port}"

    with servers:
        yield start


# --- someone with only the README ---------------------------------------------------


def section(mark: str) -> str:
    """All Python in the section of the README whose Python holds ``mark``."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in re.split(r"^##+ (?=[A-Z])", readme, flags=re.M):
        code = "\n".join(re.findall(r"^```python\n(.*?)^```$", part, re.S | re.M))
        if mark in code:
            return code
    raise AssertionError(f"no section of the README shows {mark!r}")


@pytest.fixture
def secret() -> str:
    """Alice's key, as the README has it in the environment."""
    return new_secret()


@pytest.fixture
def pasted(provider: Any, completion: Any) -> Callable[[str], str]:
    """What the README shows, with a provider that can be reached from here."""

    def respond(turn: Any) -> None:
        if not turn.json["stream"]:
            turn.answer(completion("Hello!"))
            return
        turn.start_stream()
        turn.text("Hel")
        turn.text("lo!", finish="stop")
        turn.event("[DONE]")

    provider.respond = respond

    def find(mark: str) -> str:
        code = section(mark)
        assert PROVIDER_KEY in code, f"not the provider that these tests can replace:\n{code}"
        return code.replace(PROVIDER_KEY, f'{PROVIDER_KEY}, "base_url": "{provider.url}"')

    return find


def keys(secret: str) -> dict[str, str]:
    return {"ALICE_KEY": secret, "DEEPSEEK_API_KEY": "sk-upstream-secret"}


def ask(url: str, secret: str, **body: Any) -> str:
    """What a server answers to one chat request."""
    request = urllib.request.Request(
        f"{url}/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": "Opening hours?"}], **body}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return str(reply.read().decode())


def assert_mounted(url: str, secret: str, provider: Any) -> None:
    """The host's page is its own, and below /oneai the API answers."""
    with urllib.request.urlopen(f"{url}/", timeout=PATIENCE) as reply:
        assert reply.read() == b"The host's own page."
    answer = json.loads(ask(f"{url}/oneai/v1", secret, model="deepseek-v3"))
    assert answer["choices"][0]["message"]["content"] == "Hello!"
    assert answer["model"] == "deepseek-v3"
    assert answer["usage"]["total_tokens"] == 10
    events = ask(f"{url}/oneai/v1", secret, model="deepseek-v3", stream=True)
    assert events.endswith("data: [DONE]\n\n")
    assert "".join(re.findall(r'"content":"(.*?)"', events)) == "Hello!"
    assert ("Authorization", "Bearer sk-upstream-secret") in provider.turns[0].headers
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(f"{url}/oneai/v1", new_secret(), model="deepseek-v3")
    with refused.value as error:
        assert (error.code, json.load(error)["error"]["code"]) == (401, "invalid_api_key")


def test_the_readme_mounts_the_api_in_a_bare_wsgi_application(
    tmp_path: Path, environment: Any, serve: Any, pasted: Any, provider: Any, secret: str
) -> None:
    python = environment()
    code = pasted("OneAIMiddleware(")
    # The host's application goes by the name that the README gives it.
    name = re.search(r"OneAIMiddleware\(\s*(\w+)", code)
    result = re.search(r"^(\w+) = OneAIMiddleware\(", code, re.M)
    assert name
    assert result
    host = f"{WSGI_APP}\n{name[1]} = app\n{code}\napp = {result[1]}\n"
    (tmp_path / "host.py").write_text(host, encoding="utf-8")
    (tmp_path / "serve.py").write_text(SERVE)
    url = serve(tmp_path, python, "serve.py", "{port}", **keys(secret))
    assert_mounted(url, secret, provider)


def test_the_readme_mounts_the_api_in_an_existing_flask_app(
    tmp_path: Path, environment: Any, serve: Any, pasted: Any, provider: Any, secret: str
) -> None:
    python = environment("[flask]")
    code = pasted("OneAI(app)")
    host = FLASK_APP + code.replace("app = Flask(__name__)\n", "")
    (tmp_path / "host.py").write_text(host, encoding="utf-8")
    command = ("-m", "flask", "--app", "host", "run", "--port", "{port}")
    url = serve(tmp_path, python, *command, **keys(secret))
    assert_mounted(url, secret, provider)


def test_the_readme_mounts_the_api_in_an_existing_django_project(
    tmp_path: Path, environment: Any, serve: Any, pasted: Any, provider: Any, secret: str
) -> None:
    python = environment("[django]")
    run(tmp_path, python, "-m", "django", "startproject", "project")
    folder = tmp_path / "project"
    (folder / "project" / "urls.py").write_text(DJANGO_URLS)
    with (folder / "project" / "settings.py").open("a", encoding="utf-8") as settings:
        settings.write(pasted("MIDDLEWARE = ["))
    run(folder, python, "manage.py", "check", "--fail-level", "ERROR", **keys(secret))
    command = ("manage.py", "runserver", "--noreload", "127.0.0.1:{port}")
    url = serve(folder, python, *command, **keys(secret))
    assert_mounted(url, secret, provider)


# --- a plug-in from its folder --------------------------------------------------------


def test_the_custom_backend_is_installed_from_its_folder_and_answers(
    tmp_path: Path, environment: Any, serve: Any, secret: str
) -> None:
    folder = tmp_path / "custom_backend"
    shutil.copytree(ROOT / "examples" / "custom_backend", folder)
    python = environment("", f"{folder}[test]")
    assert "passed" in run(folder / "tests", python, "-m", "pytest", "-q")

    [settings] = re.findall(r"```toml\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    (tmp_path / "keys").write_text(f"alice sha256:{digest(secret)}\n")
    config = tmp_path / "oneai.toml"
    config.write_text(settings.replace("/etc/oneai/keys", str(tmp_path / "keys")), "utf-8")
    plugins = run(tmp_path, python, "-m", "oneai_middleware", "plugins", "--config", config)
    assert re.search(r"faq +oneai-faq 0.1.0 +oneai_faq.backend:FAQBackend +in use", plugins)
    assert re.search(r"keyfile +oneai-faq 0.1.0 +oneai_faq.key_store:\w+ +in use", plugins)

    (tmp_path / "host.py").write_text("from oneai_middleware.wsgi import application as app\n")
    (tmp_path / "serve.py").write_text(SERVE)
    url = serve(tmp_path, python, "serve.py", "{port}", ONEAI_CONFIG=str(config))
    answer = json.loads(ask(f"{url}/oneai/v1", secret, model="front-desk"))
    assert answer["choices"][0]["message"]["content"] == "We are open from nine to five."
