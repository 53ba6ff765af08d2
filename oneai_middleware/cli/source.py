"""Which gateway a command is about: a file's, an application's, or the host's own."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator

from ..accounts import Account
from ..errors import ConfigurationError, store_errors
from ..gateway import Gateway
from ..key_stores.base import KeyStore
from ..ledgers.base import Ledger
from ..ledgers.memory import MemoryLedger
from ..settings import CONFIG_VARIABLE, Settings, config_file

FindGateway = Callable[[], Gateway]


def add_source(parser: argparse.ArgumentParser, find_gateway: FindGateway | None) -> None:
    """Let ``parser`` say which gateway, unless the host has."""
    parser.set_defaults(find_gateway=find_gateway)
    if find_gateway is not None:
        return
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--config", metavar="FILE", help=f"a TOML file of settings (default: ${CONFIG_VARIABLE})"
    )
    source.add_argument(
        "--app", metavar="MODULE:APP", help="a Flask app or WSGI application that mounts us"
    )


def gateway_of(arguments: argparse.Namespace) -> Gateway:
    """The gateway that the command line names.

    :raises ConfigurationError: there is none, or its settings are wrong.
    """
    if arguments.find_gateway is not None:
        found: Gateway = arguments.find_gateway()
        return found
    if arguments.app:
        return _from_app(arguments.app)
    if arguments.config:
        return Gateway(Settings.from_file(arguments.config))
    if not os.environ.get(CONFIG_VARIABLE):
        raise ConfigurationError(
            f"no settings: give --config FILE, set {CONFIG_VARIABLE}, or give --app MODULE:APP"
        )
    return Gateway(Settings.from_file(config_file()))


@contextlib.contextmanager
def stores_of(arguments: argparse.Namespace, *parts: str) -> Iterator[Gateway]:
    """The same, inside its scope. Its ``parts``, which are ``"key_store"`` and
    ``"ledger"``, are where a command reaches them.

    :raises ConfigurationError: they are not.
    :raises StoreUnavailable: one of them cannot answer.
    """
    gateway = gateway_of(arguments)
    for part in parts:
        if is_in_memory(getattr(gateway, part)):
            raise ConfigurationError(
                f"{part}: lives in the memory of each process, where no command reaches it; "
                f"name a database, such as {part} = 'sqlite:///oneai.db'"
            )
    with gateway.scope(), store_errors("store"):
        yield gateway


def is_in_memory(part: KeyStore | Ledger) -> bool:
    """Whether every process knows something else."""
    return part.one_process or isinstance(part, MemoryLedger)


def account_of(gateway: Gateway, name: str) -> Account:
    """The account of this name.

    :raises ConfigurationError: there is none.
    """
    account = gateway.key_store.account(name)
    if account is None:
        raise ConfigurationError(f"no account {name!r}; see `oneai accounts list`")
    return account


def _from_app(spec: str) -> Gateway:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - where the user stands, as flask does
    module, _, attribute = spec.partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute or "app")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"--app {spec}: {error}") from error
    found = app if isinstance(app, Gateway) else getattr(app, "gateway", None)
    found = found or getattr(app, "extensions", {}).get("oneai")
    if not isinstance(found, Gateway):
        raise ConfigurationError(
            f"--app {spec}: no gateway of ours is mounted in it (of a Django project or an app "
            "factory ask `manage.py oneai` or `flask --app … oneai`)"
        )
    return found
