"""A Django project in this process, and the same one behind real servers."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import django
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import OperationalError, connections, transaction
from django.test import Client, override_settings
from django.test.utils import setup_test_environment

from oneai_middleware.accounts import NANO, Account
from oneai_middleware.integrations.django.conf import database_scope, gateway
from oneai_middleware.secret import new_secret

HERE = Path(__file__).parent

# Django has one configuration a process. The environment stays as it is: other
# tests start projects of their own.
sys.path.insert(0, str(HERE))
from project import settings as project  # noqa: E402

settings.configure(**{name: value for name, value in vars(project).items() if name.isupper()})
django.setup()
setup_test_environment()
from django.contrib.admin.models import LogEntry  # noqa: E402
from django.contrib.auth.models import Permission, User  # noqa: E402
from django.contrib.contenttypes.models import ContentType  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from project.databases import database as database_at  # noqa: E402
from project.routers import Chosen  # noqa: E402

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
def database(swift_folder: Path) -> Path:
    """The file that holds the project's tables."""
    path = swift_folder / "project.sqlite3"
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
    """No rows, before and after, but for those that ``migrate`` makes."""
    models = set(apps.get_models(include_auto_created=True)) - {ContentType, Permission}
    _wipe("default", *models)
    yield
    _wipe("default", *models)


# --- our tables on every kind of database --------------------------------------------


class Engine(NamedTuple):
    """A database with our tables: its name in ``DATABASES``, and where it is."""

    alias: str
    place: str


SERVERS = {
    "postgresql": ("ONEAI_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test"),
    "mariadb": ("ONEAI_TEST_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test"),
}


@pytest.fixture(scope="session", params=["sqlite", *SERVERS])
def engine(request: Any, database: Path, require: Callable[..., None]) -> Iterator[Engine]:
    """Each kind of database, with the project's tables in one of the tests' own."""
    alias = request.param
    if alias == "sqlite":
        yield Engine("default", str(database))
        return
    variable, default = SERVERS[alias]
    server = os.environ.get(variable, default)
    place = f"{server.rpartition('/')[0]}/oneai_django_{os.getpid()}"
    _add(alias, server)
    try:
        _run(alias, f"CREATE DATABASE oneai_django_{os.getpid()}")
    except OperationalError as error:
        require(False, f"no {alias} at ${variable}: {type(error.__cause__).__name__}")
    if alias == "postgresql":  # nobody will ask for what is here after a crash
        _run(alias, f"ALTER DATABASE oneai_django_{os.getpid()} SET synchronous_commit = off")
    _add(alias, place)
    call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    connections[alias].close()
    yield Engine(alias, place)
    _add(alias, server)
    _run(alias, f"DROP DATABASE oneai_django_{os.getpid()}")
    del connections[alias]
    del connections.settings[alias]


def _add(alias: str, place: str) -> None:
    """Let ``alias`` be the database at ``place`` from now on."""
    known = {"default": connections.settings["default"], alias: database_at(place)}
    connections.settings[alias] = connections.configure_settings(known)[alias]
    connections[alias] = connections.create_connection(alias)


def _run(alias: str, statement: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
    connections[alias].close()


@pytest.fixture
def tables(engine: Engine) -> Iterator[Engine]:
    """The same, with our tables empty and in use."""
    _wipe(engine.alias, *apps.get_app_config("oneai").get_models())
    Chosen.alias = engine.alias
    yield engine
    Chosen.alias = None


@pytest.fixture
def clean(database: Path) -> None:
    """No users, no sessions, and nothing in our tables."""
    ours = apps.get_app_config("oneai").get_models()
    _wipe("default", User, User.user_permissions.through, Session, LogEntry, *ours)


def _wipe(alias: str, *models: Any) -> None:
    """Empty the tables of ``models``, each after those that refer to it."""
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        for model in reversed(models):
            cursor.execute(f"DELETE FROM {model._meta.db_table}")


@pytest.fixture
def writing() -> Callable[[str], Any]:
    """A context in which another process is in the middle of writing to SQLite's file."""

    @contextlib.contextmanager
    def writing(place: str) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(place, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.close()

    return writing


class InScope:
    """A store whose methods run as the gateway runs them."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def run(*arguments: Any, **named: Any) -> Any:
            with database_scope():
                return method(*arguments, **named)

        return run


@pytest.fixture(scope="session")
def in_scope() -> Callable[[Any], InScope]:
    return InScope


# --- a gateway in the project -----------------------------------------------------------


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


@pytest.fixture
def shop(use: Callable[..., Client], clean: None) -> None:
    """The project with keys and money in its database, and alice, who has a dollar."""
    use(KEY_STORE="django", ACCOUNTS={})
    gateway().key_store.save_account(Account("alice", "pro"))
    gateway().ledger.top_up("alice", NANO, "opening")


@pytest.fixture
def boss() -> Client:
    """A client in which a superuser is logged in."""
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    return client


@pytest.fixture
def staff() -> Callable[..., Client]:
    """Makes clients in which somebody is logged in who has just these permissions."""

    def staff(*permissions: str) -> Client:
        user = User.objects.create_user("staff", is_staff=True)
        for name in permissions:
            user.user_permissions.add(
                Permission.objects.get(codename=name, content_type__app_label="oneai")
            )
        client = Client()
        client.force_login(user)
        return client

    return staff


@pytest.fixture
def use_included(use: Callable[..., Client], oneai: dict[str, Any]) -> Callable[..., Client]:
    """The same with the API in the project's URLs, and with keys and money in its database."""

    def use_included(**changes: Any) -> Client:
        middleware = [*settings.MIDDLEWARE[1:], "project.middleware.counting"]
        return use(
            **{
                "ROOT_URLCONF": "project.included",
                "MIDDLEWARE": middleware,
                "KEY_STORE": "django",
                "ACCOUNTS": {},
                "SHOP_ACCOUNTS": oneai["ACCOUNTS"],
                **changes,
            }
        )

    return use_included


@pytest.fixture(scope="session")
def project_environment(database: Path, oneai: dict[str, Any]) -> Callable[..., dict[str, str]]:
    """The environment of a process that runs the project.

    With ``included`` its URLs include the API, and its database has keys and money.
    """

    def environment(*, included: bool = False, **changes: Any) -> dict[str, str]:
        if included:
            changes |= {"KEY_STORE": "django", "ACCOUNTS": {}}
        return {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "error",
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "PROJECT_DATABASE": str(database),
            "PROJECT_INCLUDED": str(int(included)),
            "PROJECT_ACCOUNTS": json.dumps(oneai["ACCOUNTS"]),
            "PROJECT_ONEAI": json.dumps({**oneai, **changes}),
        }

    return environment
