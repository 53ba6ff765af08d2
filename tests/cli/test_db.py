"""`oneai db upgrade`, and the way from nothing to a funded key in all three spellings."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from flask import Flask

from oneai_middleware.database.engine import database_at
from oneai_middleware.integrations.flask import OneAI
from oneai_middleware.secret import is_well_formed

# --- three commands -----------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Where a database is to be."""
    file = tmp_path / "shop.db"
    yield file
    database_at(f"sqlite:///{file}").engine.dispose()


@pytest.fixture
def as_oneai(oneai: Any, config: Any, file: Path, monkeypatch: Any) -> Callable[..., str]:
    path = config(f'key_store = "sqlite:///{file}"')

    def run(*arguments: str) -> str:
        ran = oneai(*arguments, "--config", path)
        assert (ran.status, ran.err) == (0, "")
        out: str = ran.out
        return out

    return run


@pytest.fixture
def as_flask(file: Path) -> Callable[..., str]:
    app = Flask("shop")
    app.config["ONEAI_KEY_STORE"] = f"sqlite:///{file}"
    OneAI(app)

    def run(*arguments: str) -> str:
        result = app.test_cli_runner().invoke(args=["oneai", *arguments])
        assert (result.exit_code, result.stderr) == (0, "")
        out: str = result.output
        return out

    return run


DJANGO = """
    import sys
    from django.conf import settings
    from django.core.management import execute_from_command_line

    settings.configure(
        SECRET_KEY="x",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "oneai_middleware.integrations.django",
        ],
        ONEAI={{"KEY_STORE": "sqlite:///{file}"}},
    )
    execute_from_command_line(sys.argv)
"""


@pytest.fixture
def as_manage_py(file: Path, tmp_path: Path, warm: Any) -> Callable[..., str]:
    (tmp_path / "manage.py").write_text(dedent(DJANGO).format(file=file))

    def run(*arguments: str) -> str:
        done = warm.run(
            ["-W", "error", "manage.py", "oneai", *arguments],
            cwd=tmp_path,
            env={name: text for name, text in os.environ.items() if name != "PYTHONWARNINGS"},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.mark.parametrize("spelling", ["oneai", "flask", "manage_py"])
def test_three_commands_lead_from_nothing_to_a_funded_key(
    request: pytest.FixtureRequest, file: Path, spelling: str
) -> None:
    run = request.getfixturevalue(f"as_{spelling}")
    upgraded = run("db", "upgrade")
    assert re.fullmatch(
        r"key_store  sqlite: upgraded from nothing to version (\d+)\n"
        r"ledger     sqlite: is at version \1\n",
        upgraded,
    )
    created = run("keys", "create", "alice", "--tier", "pro")
    [secret] = re.findall(r"^secret +(\S+)$", created, re.MULTILINE)
    assert is_well_formed(secret)
    assert run("top-up", "alice", "25").endswith("available  25.00\n")
    store = database_at(f"sqlite:///{file}")
    with store.reading() as connection:
        row = connection.exec_driver_sql("SELECT account, available FROM oneai_balances").one()
    assert tuple(row) == ("alice", 25_000_000_000)


# --- upgrade ------------------------------------------------------------------


def test_an_upgrade_is_done_once_and_loses_nothing(as_oneai: Any) -> None:
    as_oneai("db", "upgrade")
    as_oneai("keys", "create", "alice")
    before = as_oneai("keys", "list")
    again = as_oneai("db", "upgrade")
    assert re.fullmatch(r"(\w+ +sqlite: is at version \d+\n){2}", again)
    assert as_oneai("keys", "list") == before


def test_a_file_of_a_newer_package_is_left_alone(
    as_oneai: Any, oneai: Any, file: Path, tmp_path: Path
) -> None:
    as_oneai("db", "upgrade")
    database_at(f"sqlite:///{file}").engine.dispose()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE oneai_schema SET version_num = '9999'")
    connection.close()
    ran = oneai("db", "upgrade", "--config", str(tmp_path / "oneai.toml"))
    assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "9999" in ran.err
    assert "upgrade oneai_middleware" in ran.err


def test_a_folder_that_is_not_there_is_one_line(oneai: Any, config: Any, tmp_path: Path) -> None:
    path = config(f'key_store = "sqlite:///{tmp_path}/nowhere/oneai.db"')
    ran = oneai("db", "upgrade", "--config", path)
    assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "unable to open database file" in ran.err


def test_settings_without_a_database_are_told_to_name_one(oneai: Any, config: Any) -> None:
    ran = oneai("db", "upgrade", "--config", config('ledger = "unlimited"'))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "oneai: the settings name no database of ours; name one, such as "
        "key_store = 'sqlite:///oneai.db'\n"
    )


def test_of_two_parts_the_one_with_tables_is_upgraded(oneai: Any, config: Any, file: Path) -> None:
    path = config(f'key_store = "sqlite:///{file}"\nledger = "unlimited"')
    ran = oneai("db", "upgrade", "--config", path)
    assert ran.status == 0
    assert ran.said("key_store").startswith("sqlite: upgraded from nothing to version ")
    assert ran.said("ledger") == "has no tables of ours"


@pytest.mark.parametrize("address", ["sqlite", "sqlite://", "sqlite:///:memory:"])
def test_an_address_without_a_file_is_refused(oneai: Any, config: Any, address: str) -> None:
    ran = oneai("db", "upgrade", "--config", config(f'key_store = "{address}"'))
    assert (ran.status, ran.out) == (1, "")
    assert "'sqlite:///oneai.db'" in ran.err


DOWN = """
    from oneai_middleware.errors import StoreUnavailable
    from oneai_middleware.key_stores.base import KeyStore

    class Keys(KeyStore):
        @classmethod
        def from_settings(cls, settings, url=None):
            return cls()

        def refuse(self, *_, **__):
            raise {error}

        account = accounts = keys = create = update = save_account = upgrade = refuse
"""


COMMANDS = (
    *("db upgrade", "keys create alice", "keys list", "keys revoke key_0", "keys rotate key_0"),
    *("accounts list", "accounts show alice", "accounts set alice"),
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ConnectionError('db://alice:hunter2@host')", "the store failed: ConnectionError"),
        ("StoreUnavailable('Later.', detail='run `oneai db upgrade`')", "run `oneai db upgrade`"),
        ("StoreUnavailable('The keys are away.')", "The keys are away."),
    ],
)
def test_a_store_that_is_down_is_one_line_without_its_password(
    oneai: Any, config: Any, install: Any, error: str, said: str
) -> None:
    name = "cli_down_" + re.sub(r"\W", "", error)
    files = {f"{name}.py": dedent(DOWN).format(error=error)}
    install("down", "key_stores", f"down = {name}:Keys", files=files)
    path = config('key_store = "down://alice:hunter2@host"\nledger = "unlimited"')
    for command in COMMANDS:
        ran = oneai(*command.split(), "--config", path)
        assert (ran.status, ran.out, ran.err) == (1, "", f"oneai: {said}\n"), command
