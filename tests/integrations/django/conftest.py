"""A Django project in this process, and the same one behind real servers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.test import Client, override_settings
from django.test.utils import setup_test_environment

from oneai_middleware.secret import new_secret

HERE = Path(__file__).parent

# Django has one configuration a process. The environment stays as it is: other
# tests start projects of their own.
sys.path.insert(0, str(HERE))
from project import settings as project  # noqa: E402

settings.configure(**{name: value for name, value in vars(project).items() if name.isupper()})
django.setup()
setup_test_environment()

MODELS = {
    "bot": {"routes": ["echo/bot"], "input": "1", "output": "2"},
    "pausing": {"routes": ["pausing/bot"], "input": "1", "output": "2"},
    "silent": {"routes": ["silent/bot"], "input": "1", "output": "2"},
    "notes": {"routes": ["notes/bot"], "input": "1", "output": "2"},
}
PROVIDERS = {
    "echo": {"backend": "echo"},
    "pausing": {"backend": "project.bots:pausing"},
    "silent": {"backend": "project.bots:silent"},
    "notes": {"backend": "project.bots:notes"},
}


@pytest.fixture(scope="session", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that holds the project's tables."""
    path = tmp_path_factory.mktemp("django") / "project.sqlite3"
    connections.settings["default"]["NAME"] = str(path)
    connections.settings["other"]["NAME"] = f"{path}.other"
    call_command("migrate", run_syncdb=True, verbosity=0)
    connections.close_all()
    return path


@pytest.fixture(autouse=True)
def _no_connection_is_left() -> Iterator[None]:
    yield
    connections.close_all()


@pytest.fixture
def empty(database: Path) -> Iterator[None]:
    """No rows, before and after."""
    call_command("flush", interactive=False, verbosity=0)
    yield
    call_command("flush", interactive=False, verbosity=0)


@pytest.fixture(scope="session")
def secret() -> str:
    """The key of ``alice``; the servers are started with it."""
    return new_secret()


@pytest.fixture(scope="session")
def bobs_key() -> str:
    return new_secret()


@pytest.fixture(scope="session")
def oneai(secret: str, bobs_key: str) -> dict[str, Any]:
    """The setting ``ONEAI``: alice, who may make one call at once, and bob, who is poor."""
    return {
        "PROVIDERS": PROVIDERS,
        "MODELS": MODELS,
        "ACCOUNTS": {
            "alice": {"balance": "1", "keys": [secret], "limits": {"concurrent": 1}},
            "bob": {"balance": "0.000001", "keys": [bobs_key]},
        },
        "KEEP_ALIVE": 0.05,
    }


@pytest.fixture
def use(oneai: dict[str, Any]) -> Iterator[Callable[..., Client]]:
    """A test client of the project with ``ONEAI`` changed by the options.

    What is no setting of ours is one of Django's.
    """
    overrides: list[Any] = []

    def use(**changes: Any) -> Client:
        ours = {name: changes.pop(name) for name in list(changes) if not hasattr(settings, name)}
        override = override_settings(**{"ONEAI": {**oneai, **ours}, **changes})
        override.enable()
        overrides.append(override)
        return Client(enforce_csrf_checks=True)

    yield use
    for override in reversed(overrides):
        override.disable()


@pytest.fixture(scope="session")
def project_environment(database: Path, oneai: dict[str, Any]) -> Callable[..., dict[str, str]]:
    """The environment of a process that runs the project."""

    def environment(**changes: Any) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "error",
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "PROJECT_DATABASE": str(database),
            "PROJECT_ONEAI": json.dumps({**oneai, **changes}),
        }

    return environment
