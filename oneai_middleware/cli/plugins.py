"""``oneai plugins``: which parts are installed, from where, and which are in use."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import ConfigurationError
from ..plugins import GROUPS, installed
from ..settings import CONFIG_VARIABLE, Settings
from .source import FindGateway, add_source, gateway_of
from .table import print_table


def add_to(commands: Any, find_gateway: FindGateway | None) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "plugins",
        help="backends, key stores, rate limiters and ledgers that are installed",
        description="List what is installed, from which package and version, and mark what the "
        "settings chose.",
    )
    add_source(parser, find_gateway)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a row a part, and then what is wrong with the settings, if anything is."""
    wrong = None
    try:
        chosen = _chosen(arguments)
    except ConfigurationError as error:
        chosen, wrong = set(), error  # it may be about a plug-in: all the more to see
    rows = []
    for group in GROUPS:
        for name, entries in sorted(installed(group).items()):
            for entry in entries:
                package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?"
                used = "in use" if (group, name) in chosen else ""
                rows.append((group, name, package, entry.value, used))
    print_table(("group", "name", "package", "object", ""), rows)
    if wrong is not None:
        raise wrong
    return 0


def _chosen(arguments: argparse.Namespace) -> set[tuple[str, str]]:
    """The (group, name) pairs that the settings name; none without settings."""
    if not _names_a_gateway(arguments):
        return set()
    settings: Settings = gateway_of(arguments).settings
    ledger = settings.ledger if settings.ledger is not None else settings.key_store
    specs = [
        ("key_stores", settings.key_store),
        ("rate_limiters", settings.rate_limiter),
        ("ledgers", ledger),
        *(("backends", row.get("backend", "openai")) for row in settings.providers.values()),
    ]
    return {(group, spec.partition("://")[0]) for group, spec in specs if isinstance(spec, str)}


def _names_a_gateway(arguments: argparse.Namespace) -> bool:
    if arguments.find_gateway is not None:
        return True
    return bool(arguments.app or arguments.config or os.environ.get(CONFIG_VARIABLE))
