"""Calls as the contract of ledgers makes them."""

from __future__ import annotations

from typing import Any

from ..accounts import Period
from ..errors import BalanceOnHold, InsufficientBalance
from ..ledgers.base import Entry, Ledger
from .contract import LEASE


def draft(request_id: str, **fields: Any) -> Entry:
    """An entry of alice, unless ``fields`` say otherwise."""
    return Entry(**{"request_id": request_id, "account": "alice", **fields})


def hold(
    ledger: Ledger,
    entry: Entry,
    least: int,
    most: int,
    budget: int | None = None,
    period: Period | None = None,
) -> int:
    """A hold with the usual lease."""
    return ledger.hold(entry, least=least, most=most, lease=LEASE, budget=budget, period=period)


def try_hold(ledger: Ledger, entry: Entry, amount: int) -> bool:
    """Whether exactly ``amount`` could be held."""
    try:
        return hold(ledger, entry, amount, amount) == amount
    except (BalanceOnHold, InsufficientBalance):
        return False
