"""``oneai check``: are the settings right, and can the providers be reached?"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from ..errors import APIError, ConfigurationError
from ..gateway import Gateway
from ..settings import Settings

CONFIG_VARIABLE = "ONEAI_CONFIG"


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check",
        help="settings, plug-ins and providers",
        description="Build the gateway as the settings say and ask every provider whether it "
        "accepts us. Exits with 1 if anything is wrong.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--config", metavar="FILE", help=f"a TOML file of settings (default: ${CONFIG_VARIABLE})"
    )
    source.add_argument(
        "--app", metavar="MODULE:APP", help="a Flask app or WSGI application that mounts us"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report what is found, a line each."""
    gateway = _from_app(arguments.app) if arguments.app else _from_file(arguments.config)
    settings = gateway.settings
    print(f"ok      settings: mount {settings.mount or '/'!r}, {len(gateway.catalog)} models")
    for setting, part in (
        ("key_store", gateway.key_store),
        ("rate_limiter", gateway.rate_limiter),
        ("ledger", gateway.ledger),
    ):
        print(f"ok      {setting}: {type(part).__name__}")
    if not gateway.catalog:
        print("warning models: none has a configured provider, so callers can use none")
    failed = [name for name in gateway.providers if not _reaches(gateway, name)]
    return 1 if failed else 0


def _reaches(gateway: Gateway, name: str) -> bool:
    try:
        gateway.providers[name].backend.check()
    except APIError as error:
        print(f"FAILED  provider {name}: {error.code}: {error.detail or error.message}")
        return False
    except Exception as error:  # a backend of somebody else's
        print(f"FAILED  provider {name}: {type(error).__name__}")
        return False
    print(f"ok      provider {name}: reached")
    return True


def _from_file(path: str | None) -> Gateway:
    path = path or os.environ.get(CONFIG_VARIABLE)
    if not path:
        raise ConfigurationError(
            f"no settings: give --config FILE, set {CONFIG_VARIABLE}, or give --app MODULE:APP"
        )
    return Gateway(Settings.from_file(path))


def _from_app(spec: str) -> Gateway:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - where the user stands, as flask does
    module, _, attribute = spec.partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute or "app")
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"--app {spec}: {error}") from error
    found = app if isinstance(app, Gateway) else getattr(app, "gateway", None)
    found = found or getattr(app, "extensions", {}).get("oneai")
    if not isinstance(found, Gateway):
        raise ConfigurationError(f"--app {spec}: no gateway of ours is mounted in it")
    return found
