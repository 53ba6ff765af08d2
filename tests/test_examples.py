"""What the examples show is run as it stands there."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from oneai_middleware import Gateway, Settings, plugins
from oneai_middleware.secret import digest, new_secret

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CHAT = {"messages": [{"role": "user", "content": "When are you open?"}]}


def load(path: str) -> ModuleType:
    """The example at ``path`` as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    secret = new_secret()
    monkeypatch.setenv("ALICE_KEY", secret)
    monkeypatch.setenv("SHOP_API_KEY", secret)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-not-asked-for")
    return secret


def test_the_flask_example_answers_with_its_own_function(key: str, send: Any) -> None:
    app = load("flask_app/app.py").create_app()
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "opening-hours", **CHAT}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, headers)
    content = reply.json["choices"][0]["message"]["content"]
    assert content == "Hello alice, we are open from nine to five."
    assert send(app, "GET", "/").read() == b"The shop's own page."
    listed = send(app, "GET", "/oneai/v1/models", b"", headers).json["data"]
    assert [model["id"] for model in listed][-1] == "opening-hours"


def test_the_wsgi_example_lists_the_models_of_its_provider(key: str, send: Any) -> None:
    app = load("wsgi_app.py").app
    listed = send(app, "GET", "/oneai/v1/models", b"", {"x-api-key": key}).json["data"]
    assert {model["owned_by"] for model in listed} == {"deepseek"}
    assert send(app, "GET", "/").read() == b"The application's own page.\n"


# --- a model that answers by who asks ---------------------------------------------


@pytest.fixture
def bot_keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    keys = {"alice": new_secret(), "bob": new_secret()}
    for name, secret in keys.items():
        monkeypatch.setenv(f"{name.upper()}_KEY", secret)
    return keys


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("alice", "How many holidays are there?", "Holidays: thirty days a year, to be taken"),
        ("bob", "How many holidays are there?", "Holidays: twenty-five days a year, and every"),
        ("alice", "Who books trains?", "Travel: trains are booked by the front desk."),
        ("bob", "Who books trains?", "Your handbook does not say."),
    ],
)
def test_the_rag_bot_answers_from_the_documents_of_whoever_asks(
    bot_keys: dict[str, str], send: Any, name: str, question: str, answer: str
) -> None:
    app = load("rag_bot/app.py").create_app()
    body = {"model": "handbook", "messages": [{"role": "user", "content": question}]}
    headers = {"x-api-key": bot_keys[name]}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, headers)
    content = reply.json["choices"][0]["message"]["content"]
    assert content.startswith(answer)
    usage = reply.json["usage"]
    assert usage["prompt_tokens"] == len(question.split())
    assert usage["completion_tokens"] == len(content.split())
    [row] = app.extensions["oneai"].ledger.entries(name)
    assert row.cost == usage["prompt_tokens"] * 100 + usage["completion_tokens"] * 400
    assert not row.estimated


def test_the_rag_bot_streams_word_by_word(bot_keys: dict[str, str], send: Any) -> None:
    app = load("rag_bot/app.py").create_app()
    body = {"model": "handbook", "stream": True, **CHAT}
    headers = {"x-api-key": bot_keys["bob"]}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, headers)
    assert streamed(reply.read()) == ["Your ", "handbook ", "does ", "not ", "say."]


def streamed(events: bytes) -> list[str]:
    """The pieces of text in a stream, which must be complete."""
    *chunks, done, _ = events.decode().split("\n\n")
    assert done == "data: [DONE]"
    read = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    pieces = [each["delta"].get("content") for chunk in read for each in chunk["choices"]]
    return [piece for piece in pieces if piece]


# --- a Django project ---------------------------------------------------------------


@pytest.fixture
def project(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Django example, with a database of its own. Its key is ``key``."""
    monkeypatch.setenv("SHOP_DATABASE", str(tmp_path / "shop.sqlite3"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return EXAMPLES / "django_project"


def run(folder: Path, *arguments: str) -> str:
    """What Python prints there; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_django_example_passes_its_own_checks_and_tests(project: Path) -> None:
    run(project, "manage.py", "check", "--fail-level", "WARNING")
    run(project, "manage.py", "makemigrations", "--check", "--dry-run")
    run(project, "-W", "error", "manage.py", "test", "-v", "0")


def test_the_django_example_answers_from_its_database(
    project: Path, key: str, start_gunicorn: Any
) -> None:
    run(project, "manage.py", "migrate", "-v", "0")
    source = f"""
import sys
sys.path.insert(0, {str(project)!r})
from shop.wsgi import application as app
"""
    server = start_gunicorn(source, "--threads", "4")
    question = [{"role": "user", "content": "Is there a teapot, or a cup?"}]
    body = {"model": "stock", "messages": question, "stream": True}
    request = urllib.request.Request(
        f"{server.url}/oneai/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request) as reply:
        pieces = streamed(reply.read())
    assert pieces == ["We have ", "120 of the cup and 4 of the teapot", "."]
    with urllib.request.urlopen(f"{server.url}/") as reply:
        assert reply.read() == b"The shop's own page."


def test_the_django_example_shows_a_key_that_it_made_itself(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_API_KEY")
    assert "oneai-sk-" in run(project, "-c", "import shop.wsgi")


# --- a package with a backend and a key store ---------------------------------------


@pytest.fixture
def custom_backend(monkeypatch: pytest.MonkeyPatch, look_anew: Any) -> Iterator[Path]:
    """The example's folder, as if the package were installed."""
    folder = EXAMPLES / "custom_backend"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    genuine = plugins.entry_points

    def entry_points(group: str) -> list[EntryPoint]:
        offered = project["entry-points"].get(group, {})
        return [
            *genuine(group=group),
            *(EntryPoint(name, value, group) for name, value in offered.items()),
        ]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    look_anew()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "oneai_faq"]:
        del sys.modules[name]


def test_the_custom_backend_answers_by_the_settings_of_its_readme(
    custom_backend: Path, tmp_path: Path, send: Any
) -> None:
    readme = (custom_backend / "README.md").read_text(encoding="utf-8")
    [settings] = re.findall(r"```toml\n(.*?)```", readme, re.S)
    keys, secret = tmp_path / "keys", new_secret()
    keys.write_text(f"alice sha256:{digest(secret)}\n")
    config = tmp_path / "oneai.toml"
    config.write_text(settings.replace("/etc/oneai/keys", str(keys)), encoding="utf-8")
    gateway = Gateway(Settings.from_file(str(config)))
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"model": "front-desk", "messages": [{"role": "user", "content": "Opening hours?"}]}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert reply.json["choices"][0]["message"]["content"] == "We are open from nine to five."
    refused = send(gateway, "POST", "/v1/chat/completions", {"model": "front-desk", **CHAT}, {})
    assert refused.status == 401


def test_the_custom_backend_passes_its_own_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = EXAMPLES / "custom_backend"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    said = run(folder, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert re.search(r"\d\d passed", said)
