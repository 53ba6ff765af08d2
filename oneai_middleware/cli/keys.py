"""``oneai keys``: create, list, revoke and rotate API keys."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from .. import secret as secrets
from ..accounts import Account, ApiKey, Limits, dollars
from ..errors import ConfigurationError
from ..gateway import Gateway
from .source import FindGateway, account_of, add_source, stores_of
from .table import print_table
from .values import (
    add_limits,
    check_known,
    duration,
    future,
    identifier,
    key_or_secret,
    label,
    limits_of,
    money,
    names,
)

_LAST = datetime.max.replace(tzinfo=UTC).timestamp() - 1
"""The end of the calendar: later times cannot be written as dates."""


def add_to(commands: Any, find_gateway: FindGateway | None) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser("keys", help="create, list, revoke and rotate API keys")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    create = verbs.add_parser(
        "create",
        help="a new key; its secret is shown this once",
        description="Make a key for an account, and the account if there is none of that name. "
        "The secret is shown this once and kept nowhere.",
    )
    create.add_argument("account", type=identifier, help="whose key it is")
    create.add_argument("--tier", help="the tier of an account that is made (default: free)")
    create.add_argument("--label", type=label, default="", help="what the key is for")
    create.add_argument("--models", type=names, metavar="ID,…", help="the only models it opens")
    create.add_argument("--budget", type=money, metavar="DOLLARS", help="the most it may spend")
    create.add_argument("--period", choices=("day", "month"), help="when its budget starts anew")
    create.add_argument("--expires", type=future, metavar="TIME", help="when it stops working")
    add_limits(create)
    add_source(create, find_gateway)
    create.set_defaults(run=_create)

    listed = verbs.add_parser("list", help="all keys, or those of one account")
    listed.add_argument("account", type=identifier, nargs="?")
    add_source(listed, find_gateway)
    listed.set_defaults(run=_list)

    revoke = verbs.add_parser("revoke", help="close a key for good")
    revoke.add_argument(
        "key", type=key_or_secret, help="its id, as `keys list` shows it, or itself"
    )
    add_source(revoke, find_gateway)
    revoke.set_defaults(run=_revoke)

    rotate = verbs.add_parser("rotate", help="a new key in place of an old one")
    rotate.add_argument("key", type=identifier, help="the old one's id")
    rotate.add_argument(
        "--overlap", type=duration, default=0.0, metavar="24h", help="how long the old one works on"
    )
    add_source(rotate, find_gateway)
    rotate.set_defaults(run=_rotate)


def _create(arguments: argparse.Namespace) -> int:
    if arguments.period and arguments.budget is None:
        raise ConfigurationError("--period goes with a --budget")
    fields = {
        "label": arguments.label,
        "models": arguments.models,
        "limits": limits_of(arguments, Limits()),
        "budget": arguments.budget,
        "period": arguments.period,
        "expires": arguments.expires.timestamp() if arguments.expires else None,
    }
    with stores_of(arguments, "key_store") as gateway:
        check_known("--models", arguments.models, gateway.catalog)
        _make_account(gateway, arguments.account, arguments.tier)
        key, secret = gateway.key_store.create(arguments.account, **fields)
    _show(key, secret)
    return 0


def _make_account(gateway: Gateway, name: str, tier: str | None) -> None:
    check_known("--tier", [tier] if tier else None, gateway.tiers)
    found = gateway.key_store.account(name)
    if found is None:
        gateway.key_store.save_account(Account(name, tier or "free"))
        print(f"account  {name} (tier {tier or 'free'})")
    elif tier not in (None, found.tier):
        raise ConfigurationError(
            f"--tier: account {name!r} is of tier {found.tier!r} already; "
            "change it with `oneai accounts set`"
        )


def _list(arguments: argparse.Namespace) -> int:
    with stores_of(arguments, "key_store") as gateway:
        keys = list(gateway.key_store.keys(arguments.account))
        if arguments.account is not None and not keys:
            account_of(gateway, arguments.account)
    heading = ("ID", "ACCOUNT", "KEY", "LABEL", "STATE", "BUDGET", "EXPIRES", "LAST USED")
    print_table(heading, [_row(key) for key in keys])
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    with stores_of(arguments, "key_store") as gateway:
        id = _id_of(gateway, arguments.key)
        with _known(f"no key {id!r}"):
            gateway.key_store.update(id, revoked=True)
    print(f"revoked  {id}")
    return 0


def _id_of(gateway: Gateway, given: str) -> str:
    """The id of a key that is given by it, or by the secret: whoever found a leaked key has
    that alone."""
    if not given.startswith(secrets.PREFIX):
        return given
    digest = gateway.key_store.digest(given)
    key = gateway.key_store.find(digest) if digest is not None else None
    if key is None:
        raise ConfigurationError("no key has this secret")
    return key.id


def _rotate(arguments: argparse.Namespace) -> int:
    unknown = f"no key {arguments.key!r}, or it is revoked"
    with stores_of(arguments, "key_store") as gateway, _known(unknown):
        key, secret = gateway.key_store.rotate(arguments.key, overlap=arguments.overlap)
    _show(key, secret)
    return 0


@contextlib.contextmanager
def _known(otherwise: str) -> Iterator[None]:
    """Say in a sentence that there is no such key."""
    try:
        yield
    except KeyError:
        raise ConfigurationError(f"{otherwise}; `oneai keys list` shows them") from None


def _show(key: ApiKey, secret: str) -> None:
    print(f"id       {key.id}")
    print(f"secret   {secret}")
    print("The secret is not kept anywhere: hand it over now.")


def _row(key: ApiKey) -> tuple[str, ...]:
    budget = "-" if key.budget is None else dollars(key.budget)
    return (
        key.id,
        key.account.name,
        key.hint,
        key.label or "-",
        _state(key),
        budget if key.period is None else f"{budget} a {key.period}",
        _time(key.expires),
        _time(key.last_used),
    )


def _state(key: ApiKey) -> str:
    if key.revoked:
        return "revoked"
    return "valid" if key.is_valid(datetime.now(UTC).timestamp()) else "expired"


def _time(at: float | None) -> str:
    return "-" if at is None else f"{datetime.fromtimestamp(min(at, _LAST), UTC):%Y-%m-%d %H:%M}"
