"""Several who sweep at once: each lost call is settled once, and nobody waits for another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from oneai_middleware.database.engine import Database
from oneai_middleware.database.tables import HOLDS
from oneai_middleware.errors import BalanceOnHold
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import draft, hold

LOST = 50

Connect = Callable[..., Database]


@pytest.fixture
def ledger(empty_database: Database) -> SQLLedger:
    """One in which lost calls hold all that alice has, and have cost half of it."""
    ledger = SQLLedger(empty_database)
    ledger.top_up("alice", 10 * LOST, "r1")
    for number in range(LOST):
        lost = draft(f"lost{number}", key=f"k{number % 3}")
        ledger.hold(lost, least=10, most=10, lease=60.0)
        ledger.checkpoint(lost._replace(cost=5), lease=-1.0)
    return ledger


def try_to_hold(ledger: SQLLedger, number: int) -> int:
    """What a call gets that is in want of money; it is patient, as the SDK is."""
    for _ in range(100):
        with contextlib.suppress(BalanceOnHold):
            return hold(ledger, draft(f"call{number}", key="k0"), 20, 20)
    return 0


def test_sweeps_and_callers_in_want_of_money_settle_every_lost_call_once(
    ledger: SQLLedger, empty_database: Database, connect: Connect
) -> None:
    processes = [SQLLedger(connect(empty_database.url)) for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        sweeps = [pool.submit(process.sweep) for process in processes]
        calls = [pool.submit(try_to_hold, processes[n % 2], n) for n in range(4)]
        assert sum(sweep.result() for sweep in sweeps) <= LOST
        assert [call.result() for call in calls] == [20] * 4
    assert ledger.sweep() == 0
    rows = list(ledger.entries("alice"))
    assert {row.request_id for row in rows} == {f"lost{number}" for number in range(LOST)}
    assert [(row.outcome, row.cost) for row in rows] == [("abandoned", 5)] * LOST
    spent, held = 5 * LOST, 4 * 20
    assert ledger.balance("alice") == Balance(
        available=10 * LOST - spent - held, held=held, spent=spent, topped_up=10 * LOST
    )
    assert ledger.audit() == []


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_lost_call_that_somebody_else_is_at_is_left_to_them(
    ledger: SQLLedger, empty_database: Database, connect: Connect
) -> None:
    others = connect(empty_database.url)
    first = sa.select(HOLDS).order_by(HOLDS.c.expires, HOLDS.c.request_id).limit(1)
    with others.transaction() as connection:
        connection.execute(first.with_for_update())
        assert try_to_hold(ledger, 1) == 20
        ledger.sweep()
        assert len(list(ledger.entries("alice"))) == LOST - 1
    assert ledger.sweep() == 1
    assert ledger.audit() == []
