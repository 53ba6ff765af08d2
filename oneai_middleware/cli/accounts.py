"""``oneai accounts``: list them, show one, set what one may."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..accounts import Account, Limits, dollars
from ..gateway import Gateway
from .source import FindGateway, account_of, add_source, is_in_memory, stores_of
from .table import print_table
from .values import add_limits, check_known, identifier, limits_of, names

_LISTED = ("available", "held", "spent", "invoiced")


def add_to(commands: Any, find_gateway: FindGateway | None) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser("accounts", help="list accounts, show one, set what it may")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    listed = verbs.add_parser("list", help="all accounts and their balances")
    add_source(listed, find_gateway)
    listed.set_defaults(run=_list)

    show = verbs.add_parser("show", help="one account in full")
    show.add_argument("account", type=identifier)
    add_source(show, find_gateway)
    show.set_defaults(run=_show)

    change = verbs.add_parser(
        "set",
        help="make an account, or change it",
        description="Make an account, or change what is named and leave the rest.",
    )
    change.add_argument("account", type=identifier)
    change.add_argument("--tier")
    paid = change.add_mutually_exclusive_group()
    paid.add_argument("--prepaid", dest="prepaid", action="store_true", default=None)
    paid.add_argument("--invoiced", dest="prepaid", action="store_false", default=None)
    models = change.add_mutually_exclusive_group()
    models.add_argument("--models", type=names, metavar="ID,…", help="the only models it may use")
    models.add_argument("--all-models", action="store_true", help="it may use every model")
    add_limits(change)
    change.add_argument("--tier-limits", action="store_true", help="no limits but its tier's")
    add_source(change, find_gateway)
    change.set_defaults(run=_set)


def _list(arguments: argparse.Namespace) -> int:
    with stores_of(arguments, "key_store") as gateway:
        rows = [_row(gateway, account) for account in gateway.key_store.accounts()]
    print_table(("ACCOUNT", "TIER", "PAYS", *map(str.upper, _LISTED)), rows)
    return 0


def _row(gateway: Gateway, account: Account) -> list[str]:
    amounts = _amounts(gateway, account)
    return [account.name, account.tier, _pays(account), *(amounts.get(a, "-") for a in _LISTED)]


def _show(arguments: argparse.Namespace) -> int:
    with stores_of(arguments, "key_store") as gateway:
        account = account_of(gateway, arguments.account)
        amounts = _amounts(gateway, account)
        keys = len(list(gateway.key_store.keys(account.name)))
    is_known = account.tier in gateway.tiers
    limits = account.limits or gateway.tiers.get(account.tier, Limits())
    shown = {
        "account": account.name,
        "tier": account.tier if is_known else f"{account.tier} (unknown: its calls get 503)",
        "pays": _pays(account),
        "models": "all" if account.models is None else ", ".join(sorted(account.models)),
        **{n: "unlimited" if most is None else str(most) for n, most in limits._asdict().items()},
        **amounts,
        "keys": str(keys),
    }
    for what, value in shown.items():
        print(f"{what:<11}{value}")
    return 0


def _set(arguments: argparse.Namespace) -> int:
    with stores_of(arguments, "key_store") as gateway:
        check_known("--tier", [arguments.tier] if arguments.tier else None, gateway.tiers)
        check_known("--models", arguments.models, gateway.catalog)
        account = gateway.key_store.account(arguments.account) or Account(arguments.account)
        account = _changed(account, arguments, gateway.tiers)
        gateway.key_store.save_account(account)
    print(f"saved    {account.name} (tier {account.tier})")
    return 0


def _changed(
    account: Account, arguments: argparse.Namespace, tiers: Mapping[str, Limits]
) -> Account:
    prepaid = account.prepaid if arguments.prepaid is None else arguments.prepaid
    tier = arguments.tier or account.tier
    models = None if arguments.all_models else arguments.models or account.models
    limits = None if arguments.tier_limits else account.limits
    limits = limits_of(arguments, limits or tiers.get(tier, Limits())) or limits
    return account._replace(tier=tier, prepaid=prepaid, models=models, limits=limits)


def _pays(account: Account) -> str:
    return "prepaid" if account.prepaid else "invoiced"


def _amounts(gateway: Gateway, account: Account) -> dict[str, str]:
    """The account's money in dollars, where a command reaches it."""
    if is_in_memory(gateway.ledger):
        return {}
    money = gateway.ledger.balance(account.name)
    return {name: dollars(amount) for name, amount in money._asdict().items()}
