"""The usual course of a call in one statement each, for PostgreSQL.

A transaction of several statements is as many round trips, and keeps rows locked
meanwhile. These do what :mod:`.bookkeeping` does where nothing is amiss, under the same
conditions, and otherwise nothing. What they see at their beginning may have changed when
it is a row's turn, for which they may have waited: then what is written last lacks its
account, which its table does not take, and all is undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Entry

Statement = tuple[str, dict[str, Any]]
"""A text, and the values that it names."""

_NOW = "coalesce(%(now)s::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"

ASKING: Statement = f"SELECT {_NOW}", {"now": None}
"""What asks for the time."""

_HOLD = f"""
WITH key_row AS (
    {{key_row}}
), account_row AS (
    UPDATE oneai_balances SET available = available - %(amount)s, held = held + %(amount)s
    FROM key_row
    WHERE account = %(account)s AND available >= %(amount)s
    RETURNING account
)
INSERT INTO oneai_holds
    (request_id, account, key, amount, counted, budget_window, budget, expires, draft)
SELECT %(request_id)s, (SELECT account FROM account_row), %(key)s::varchar, %(amount)s,
    %(counted)s, %(budget_window)s, %(budget)s::bigint, {_NOW} + %(lease)s, %(draft)s
FROM key_row
RETURNING expires"""

_CAN_HOLD = """EXISTS (
        SELECT FROM oneai_balances WHERE account = %(account)s AND available >= %(amount)s
    ) AND NOT EXISTS (SELECT FROM oneai_entries WHERE request_id = %(request_id)s)"""

_KEY_HOLDS = f"""UPDATE oneai_key_spending SET held = held + %(counted)s
    WHERE key = %(key)s AND budget_window = %(budget_window)s
    AND spent + held <= %(most)s AND {_CAN_HOLD}
    RETURNING key"""

# It is held for the same account and key, and enough to pay for it.
_SETTLE = f"""
WITH hold AS (
    DELETE FROM oneai_holds
    WHERE request_id = %(request_id)s AND account = %(account)s
    AND key IS NOT DISTINCT FROM %(key)s AND amount >= %(spent)s
    AND (%(prepaid)s OR amount = 0)
    RETURNING amount, counted, budget_window, {_NOW} AS now
), key_row AS (
    {{key_row}}
), account_row AS (
    UPDATE oneai_balances AS its SET
        available = its.available + key_row.amount - %(spent)s,
        held = its.held - key_row.amount,
        spent = its.spent + %(spent)s,
        invoiced = its.invoiced + %(invoiced)s
    FROM key_row
    WHERE its.account = %(account)s
    RETURNING its.account
)
INSERT INTO oneai_entries ({", ".join(Entry._fields)}, day, budget_window)
SELECT {{values}},
    to_char(to_timestamp(now / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD'), budget_window
FROM hold
RETURNING settled_at"""

_KEY_SETTLES = """UPDATE oneai_key_spending AS its
    SET spent = its.spent + %(cost)s, held = its.held - hold.counted
    FROM hold
    WHERE its.key = %(key)s AND its.budget_window = hold.budget_window
    RETURNING hold.amount"""


def _values() -> str:
    ours = {
        "account": "(SELECT account FROM account_row)",
        "key": "%(key)s::varchar",
        "settled_at": "now",
    }
    return ", ".join(ours.get(name, f"%({name})s") for name in Entry._fields)


# With a key, and without.
_HOLDS = {
    True: _HOLD.format(key_row=_KEY_HOLDS),
    False: _HOLD.format(key_row=f"SELECT WHERE {_CAN_HOLD}"),
}
_SETTLEMENTS = {
    True: _SETTLE.format(key_row=_KEY_SETTLES, values=_values()),
    False: _SETTLE.format(key_row="SELECT amount FROM hold", values=_values()),
}


def holding(row: Mapping[str, Any], lease: int, most: int, now: int | None) -> Statement:
    """What writes down ``row``, a hold, and sets aside all of it, if the key has neither
    spent nor holds more than ``most`` so far. Times are microseconds."""
    return _HOLDS[row["key"] is not None], {**row, "lease": lease, "most": most, "now": now}


def settling(entry: Entry, now: int | None) -> Statement:
    """What closes a hold that pays for ``entry``, writes the row, and gives its time."""
    taken = (entry.cost, 0) if entry.prepaid else (0, entry.cost)
    values = {**entry._asdict(), "spent": taken[0], "invoiced": taken[1], "now": now}
    return _SETTLEMENTS[entry.key is not None], values
