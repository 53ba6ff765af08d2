"""``oneai check``: are the settings right, and can stores and providers be reached?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from ..accounts import Limits
from ..errors import APIError
from ..gateway import Gateway
from ..key_stores.cached import CachedKeyStore
from ..rate_limiters.base import Claim
from ..secret import digest, new_secret
from .source import FindGateway, add_source, gateway_of


def add_to(commands: Any, find_gateway: FindGateway | None) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check",
        help="settings, plug-ins, stores and providers",
        description="Build the gateway as the settings say, ask every store something, and every "
        "provider whether it accepts us. Exits with 1 if anything is wrong.",
    )
    add_source(parser, find_gateway)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report what is found, a line each."""
    gateway = gateway_of(arguments)
    print(
        f"ok      settings: mount {gateway.settings.mount or '/'!r}, {len(gateway.catalog)} models"
    )
    reached = [_reaches(gateway, store, "", probe) for store, probe in _stores(gateway)]
    for warning in _warnings(gateway):
        print(f"warning {warning}")
    if not gateway.catalog:
        print("warning models: none has a configured provider, so callers can use none")
    for name, provider in gateway.providers.items():
        reached.append(_reaches(gateway, f"provider {name}", ": reached", provider.backend.check))
    return 0 if all(reached) else 1


def _warnings(gateway: Gateway) -> Iterator[str]:
    """What is right with one process and wrong with several."""
    if gateway.rate_limiter.one_process and gateway.settings.processes is None:
        yield (
            "rate_limiter: counts in memory, so N worker processes admit N times the limit; set "
            "rate_limiter = 'redis://…', or processes = N"
        )
    if gateway.ledger.one_process:
        several = (
            "each of several worker processes has balances of its own"
            if gateway.settings.allow_memory_ledger
            else "with several worker processes prepaid calls are refused"
        )
        yield f"ledger: lives in memory; {several}"


def _stores(gateway: Gateway) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each store's name with a question that costs nothing and changes nothing."""
    keys, limiter, ledger = gateway.key_store, gateway.rate_limiter, gateway.ledger
    genuine = keys.store if isinstance(keys, CachedKeyStore) else keys
    yield f"key_store: {type(genuine).__name__}", lambda: keys.find(digest(new_secret()))
    nobody = [Claim("account:", Limits(rpm=1))]
    yield f"rate_limiter: {type(limiter).__name__}", lambda: limiter.status("", nobody)
    yield f"ledger: {type(ledger).__name__}", lambda: ledger.balance("")


def _reaches(gateway: Gateway, what: str, found: str, probe: Callable[[], object]) -> bool:
    try:
        with gateway.scope():
            probe()
    except APIError as error:
        print(f"FAILED  {what}: {error.code}: {error.detail or error.message}")
        return False
    except Exception as error:  # a part of somebody else's, whose words may hold a password
        print(f"FAILED  {what}: {type(error).__name__}")
        return False
    print(f"ok      {what}{found}")
    return True
