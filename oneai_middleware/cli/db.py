"""``oneai db``: make and upgrade the tables of the databases that the settings name."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ConfigurationError
from ..key_stores.cached import CachedKeyStore
from .source import FindGateway, add_source, stores_of


def add_to(commands: Any, find_gateway: FindGateway | None) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("db", help="make and upgrade the database's tables")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    upgrade = verbs.add_parser("upgrade", help="bring the tables to this package's version")
    add_source(upgrade, find_gateway)
    upgrade.set_defaults(run=_upgrade)


def _upgrade(arguments: argparse.Namespace) -> int:
    with stores_of(arguments) as gateway:
        keys = gateway.key_store
        genuine = keys.store if isinstance(keys, CachedKeyStore) else keys
        done = {"key_store": genuine.upgrade(), "ledger": gateway.ledger.upgrade()}
    if not any(done.values()):
        raise ConfigurationError(
            "the settings name no database of ours; name one, such as "
            "key_store = 'sqlite:///oneai.db'"
        )
    for part, words in done.items():
        print(f"{part:<11}{words or 'has no tables of ours'}")
    return 0
