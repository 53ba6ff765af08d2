"""`flask oneai …`: the same commands on the gateway of a Flask app."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app

from oneai_middleware.integrations.flask import OneAI
from oneai_middleware.key_stores.base import KeyStore

SHOP = """
from flask import Flask
from oneai_middleware.integrations.flask import OneAI

def create_app(**config):
    app = Flask(__name__)
    app.config.update(ONEAI_MOUNT="/ai", ONEAI_PROVIDERS={"zhipu": {"backend": "echo"}}, **config)
    OneAI(app)
    return app

def misspelt():
    return create_app(ONEAI_LEDGRE="memory")

plain = Flask("plain")
"""


@pytest.fixture
def flask(tmp_path: Path, warm: Any) -> Any:
    """Run `flask --app shop…` as its users do."""
    (tmp_path / "shop.py").write_text(SHOP)

    def flask(app: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        said: subprocess.CompletedProcess[str] = warm.run(
            ["-W", "error", "-m", "flask", "--app", app, "oneai", *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
        )
        return said

    return flask


def test_flask_oneai_works_from_the_terminal(flask: Any) -> None:
    check = flask("shop:create_app", "check")
    assert (check.returncode, check.stderr) == (0, "")
    assert "ok      settings: mount '/ai', 1 models\n" in check.stdout
    plugins = flask("shop:create_app", "plugins")
    assert (plugins.returncode, plugins.stderr) == (0, "")
    assert re.search(r"^backends +echo .* in use$", plugins.stdout, re.MULTILINE)


def test_flask_oneai_shows_its_own_help(flask: Any) -> None:
    done = flask("shop:create_app", "check", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: flask oneai check")
    assert "--config" not in done.stdout  # the app has said where its settings are
    assert flask("shop:create_app").returncode == 2


def test_an_app_without_a_gateway_is_told_how_to_get_one(flask: Any) -> None:
    done = flask("shop:plain", "check")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "oneai: this app has no gateway: call OneAI(app) or init_app(app)\n"


def test_settings_that_stop_the_app_are_one_line_and_no_traceback(flask: Any) -> None:
    done = flask("shop:misspelt", "check")
    assert done.returncode == 1
    assert done.stderr == "oneai: unknown setting 'ledgre'; did you mean 'ledger'?\n"


def test_an_app_that_is_not_there_is_flasks_own_business(flask: Any) -> None:
    done = flask("nowhere", "check")
    assert done.returncode == 2
    assert "Could not import 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr
    assert flask("nowhere", "secret").returncode == 0  # which needs no app


# --- in the app's own tests ------------------------------------------------------------


@pytest.fixture
def shop() -> Flask:
    app = Flask("shop")
    app.config["ONEAI_PROVIDERS"] = {"zhipu": {"backend": "echo"}}
    OneAI(app)
    return app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check"], "ok      provider zhipu: reached"),
        (["models"], "glm-4 "),
        (["plugins"], "oneai_middleware.backends.echo:EchoBackend"),
        (["secret"], "digest  sha256:"),
    ],
)
def test_the_apps_own_test_runner_finds_the_commands(
    shop: Flask, arguments: list[str], said: str
) -> None:
    result = shop.test_cli_runner().invoke(args=["oneai", *arguments])
    assert result.exit_code == 0
    assert said in result.output


def test_the_exit_status_is_handed_on(shop: Flask) -> None:
    runner = shop.test_cli_runner()
    assert runner.invoke(args=["oneai", "serve"]).exit_code == 2
    shop.extensions.pop("oneai")
    result = runner.invoke(args=["oneai", "models"])
    assert result.exit_code == 1
    assert "no gateway" in result.output


def test_a_store_that_needs_the_app_is_asked_in_its_context() -> None:
    seen = []

    class Rows(KeyStore):
        def find(self, digest: str) -> None:
            seen.append(current_app.name)

    app = Flask("rows")
    app.config.update(ONEAI_KEY_STORE=Rows(), ONEAI_LEDGER="memory")
    OneAI(app)
    result = app.test_cli_runner().invoke(args=["oneai", "check"])
    assert result.exit_code == 0
    assert "ok      key_store: Rows\n" in result.output
    assert seen == ["rows"]
