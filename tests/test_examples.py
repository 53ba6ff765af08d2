"""What the README and the examples show is run as it stands there."""

from __future__ import annotations

import importlib.util
import re
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.serving import make_server

from oneai_middleware import OneAIMiddleware
from oneai_middleware.cli.demo import demo_gateway
from oneai_middleware.secret import new_secret

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHAT = {"messages": [{"role": "user", "content": "When are you open?"}]}


def load(path: str) -> ModuleType:
    """The example at ``path`` as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "examples" / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def snippet(beginning: str) -> str:
    """The README's Python snippet that begins so."""
    found = re.findall(r"```python\n(.*?)```", README, re.S)
    [code] = [code for code in found if code.startswith(beginning)]
    return str(code)


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


def test_the_readmes_mounts_work_as_written(key: str, send: Any) -> None:
    flask: dict[str, Any] = {"__name__": "__main__"}
    exec(snippet("from flask import Flask"), flask)  # noqa: S102
    plain: dict[str, Any] = {"app": lambda environ, start_response: []}
    exec(snippet("from oneai_middleware import OneAIMiddleware"), plain)  # noqa: S102
    for app in (flask["app"], plain["app"]):
        reply = send(app, "GET", "/oneai/v1/models", b"", {"Authorization": f"Bearer {key}"})
        assert reply.status == 200


def test_the_readmes_function_is_a_model(key: str, send: Any) -> None:
    from flask import Flask

    from oneai_middleware.integrations.flask import OneAI

    app = Flask("shop")
    exec(snippet("def answer(request)"), {"app": app})  # noqa: S102
    app.config["ONEAI_ACCOUNTS"] = {"alice": {"balance": "1", "keys": [key]}}
    OneAI(app)
    body = {"model": "support-bot", **CHAT}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, {"x-api-key": key})
    assert reply.json["choices"][0]["message"]["content"] == "You asked: When are you open?"


def test_the_readmes_first_lines_of_python_print_what_the_demo_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {name: new_secret() for name in ("free", "pro", "enterprise", "empty")}
    monkeypatch.setenv("ONEAI_API_KEY", keys["free"])
    app = OneAIMiddleware(lambda environ, start_response: [], demo_gateway(keys))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        code = snippet("import os").replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        names: dict[str, Any] = {}
        exec(code, names)  # noqa: S102
        names["client"].close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert capsys.readouterr().out == "Write a haiku about AI"
