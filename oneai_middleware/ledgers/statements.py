"""What a ledger says to an SQL database in the course of every call."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from ..database.kinds import insertion
from ..database.prepared import Prepared
from ..database.tables import BALANCES, ENTRIES, HOLDS, SPENDING
from .base import Balance
from .books import Spending

HELD = HOLDS.c["draft", "amount", "counted", "budget_window", "budget"]
"""What a hold is read from."""


class Statements:
    """The statements for one ``kind`` of database. Where its own clock is not asked, each
    that needs the time takes it as ``now``, in microseconds since 1970."""

    def __init__(self, kind: str, *, asks_clock: bool) -> None:
        self.now = _now(kind) if asks_clock else sa.bindparam("now", type_=sa.BigInteger)
        expires = self.now + sa.bindparam("lease", type_=sa.BigInteger)
        its_hold = HOLDS.c.request_id == sa.bindparam("its_request_id")
        self.open = Prepared(_opening(kind, expires))
        self.renew = Prepared(
            sa.update(HOLDS)
            .where(its_hold)
            .values(draft=sa.bindparam("new_draft"), expires=expires)
        )
        self.take = Prepared(
            sa.delete(HOLDS).where(its_hold).returning(*HELD, self.now.label("now"))
        )
        self.move = Prepared(
            sa.update(BALANCES)
            .where(
                BALANCES.c.account == sa.bindparam("its_account"),
                BALANCES.c.available >= sa.bindparam("least", type_=sa.BigInteger),
            )
            .values(_added(BALANCES, Balance._fields))
        )
        self.spend = Prepared(
            sa.update(SPENDING)
            .where(
                SPENDING.c.key == sa.bindparam("its_key"),
                SPENDING.c.budget_window == sa.bindparam("its_budget_window"),
                SPENDING.c.spent + SPENDING.c.held <= sa.bindparam("most", type_=sa.BigInteger),
            )
            .values(_added(SPENDING, Spending._fields))
        )


@functools.cache
def statements(kind: str, *, asks_clock: bool) -> Statements:
    """The same for all who use such a database."""
    return Statements(kind, asks_clock=asks_clock)


def _now(kind: str) -> sa.ColumnElement[int]:
    seconds: sa.ColumnElement[Any]
    if kind == "postgresql":
        seconds = sa.func.extract("epoch", sa.func.clock_timestamp())
    else:
        seconds = sa.func.unix_timestamp(sa.func.now(sa.literal_column("6")))
    return sa.cast(seconds * sa.literal_column("1000000"), sa.BigInteger)


def _opening(kind: str, expires: sa.ColumnElement[int]) -> Any:
    """Write down a hold, unless its request has a hold or a row."""
    has_row = sa.exists().where(ENTRIES.c.request_id == sa.bindparam("its_request_id"))
    values = [
        expires if column is HOLDS.c.expires else sa.bindparam(column.name, type_=column.type)
        for column in HOLDS.c
    ]
    return insertion(kind, HOLDS).from_select(list(HOLDS.c), sa.select(*values).where(~has_row))


def _added(table: sa.Table, names: tuple[str, ...]) -> dict[str, sa.ColumnElement[int]]:
    """Each of these figures with so much more of it."""
    return {
        name: table.c[name] + sa.bindparam(f"more_{name}", type_=sa.BigInteger) for name in names
    }
