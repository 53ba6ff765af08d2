"""``oneai top-up``, ``usage``, ``audit`` and ``sweep``: the money and its record."""

from __future__ import annotations

import argparse
import csv
import json
import secrets
import sys
from collections.abc import Callable
from typing import Any

from ..accounts import dollars
from ..errors import ConfigurationError, StoreUnavailable
from ..ledgers.base import UsageRow
from .source import FindGateway, account_of, add_source, stores_of
from .table import print_table
from .values import identifier, moment, payment


def add_to(commands: Any, find_gateway: FindGateway | None) -> None:
    """Add the commands to the parser."""
    top_up = commands.add_parser("top-up", help="add money to an account")
    top_up.add_argument("account", type=identifier)
    top_up.add_argument("amount", type=payment, help="in dollars, such as 25 or 12.50")
    top_up.add_argument(
        "--reference",
        type=identifier,
        metavar="TEXT",
        help="names the payment: the same one is booked once, however often it is given",
    )
    add_source(top_up, find_gateway)
    top_up.set_defaults(run=_top_up)

    usage = commands.add_parser("usage", help="an account's calls, tokens and costs")
    usage.add_argument("account", type=identifier)
    usage.add_argument("--by", choices=("day", "model"), default="day")
    usage.add_argument("--since", type=moment, metavar="TIME")
    usage.add_argument("--until", type=moment, metavar="TIME")
    usage.add_argument("--format", choices=tuple(_FORMATS), default="table")
    add_source(usage, find_gateway)
    usage.set_defaults(run=_usage)

    audit = commands.add_parser("audit", help="do the books add up? Exits with 1 if not")
    add_source(audit, find_gateway)
    audit.set_defaults(run=_audit)

    sweep = commands.add_parser("sweep", help="settle what killed workers left on hold")
    add_source(sweep, find_gateway)
    sweep.set_defaults(run=_sweep)


def _top_up(arguments: argparse.Namespace) -> int:
    reference = arguments.reference or f"oneai-{secrets.token_hex(8)}"
    with stores_of(arguments, "ledger") as gateway:
        account_of(gateway, arguments.account)
        try:
            booked = gateway.ledger.top_up(arguments.account, arguments.amount, reference)
        except ValueError as error:
            raise ConfigurationError(f"amount: {error}") from None
        except StoreUnavailable:
            # A database can book it and be gone before it says so.
            print(f"It may have been booked: repeat it with --reference {reference}")
            raise
        available = gateway.ledger.balance(arguments.account).available
    print(f"{'booked' if booked else 'was booked before':<10} {reference}")
    print(f"available  {dollars(available)}")
    return 0


def _usage(arguments: argparse.Namespace) -> int:
    span = {"since": arguments.since, "until": arguments.until}
    with stores_of(arguments, "ledger") as gateway:
        rows = list(gateway.ledger.patient().usage(arguments.account, **span, by=arguments.by))
        if not rows:
            account_of(gateway, arguments.account)
    _FORMATS[arguments.format](arguments.by, rows)
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    with stores_of(arguments, "ledger") as gateway:
        faults = gateway.ledger.audit()
    for fault in faults:
        print(f"FAULT   {fault}")
    if not faults:
        print("ok      the books add up")
    return 1 if faults else 0


def _sweep(arguments: argparse.Namespace) -> int:
    with stores_of(arguments, "ledger") as gateway:
        count = gateway.ledger.sweep()
    print(f"settled  {count} lost {'call' if count == 1 else 'calls'}")
    return 0


# --- how usage is printed -----------------------------------------------------


def _cells(row: UsageRow) -> tuple[str, ...]:
    figures = (row.calls, row.prompt_tokens, row.completion_tokens)
    return (row.group, *map(str, figures), dollars(row.cost))


def _as_table(by: str, rows: list[UsageRow]) -> None:
    print_table((by.upper(), "CALLS", "PROMPT", "COMPLETION", "DOLLARS"), [*map(_cells, rows)])


def _as_csv(by: str, rows: list[UsageRow]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((by, "calls", "prompt_tokens", "completion_tokens", "cost"))
    writer.writerows(map(_cells, rows))


def _as_json(by: str, rows: list[UsageRow]) -> None:
    named = [{by: row.group, **row._asdict(), "cost": dollars(row.cost)} for row in rows]
    for row in named:
        del row["group"]
    print(json.dumps(named, indent=2))


_FORMATS: dict[str, Callable[[str, list[UsageRow]], None]] = {
    "table": _as_table,
    "csv": _as_csv,
    "json": _as_json,
}
