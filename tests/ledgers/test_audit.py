"""The audit of keys: what they have spent and hold is what their rows add up to."""

import pytest
import sqlalchemy as sa

from oneai_middleware.database.tables import ENTRIES, HOLDS, SPENDING
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import draft, hold


@pytest.fixture
def ledger(empty_database):
    """Books in which a key has spent 25 of its account's money and holds 60, and another
    has spent 5 on a bill today."""
    ledger = SQLLedger(empty_database)
    ledger.top_up("alice", 100, "r1")
    hold(ledger, draft("a", key="k1"), 10, 60)
    ledger.settle(draft("a", key="k1", cost=25))
    hold(ledger, draft("b", key="k1"), 10, 60)
    billed = draft("c", account="bob", key="k2", prepaid=False, cost=5)
    hold(ledger, billed._replace(cost=0), 1, 10, budget=100, period="day")
    ledger.settle(billed)
    ledger.settle(draft("d", cost=1))  # of no key
    assert ledger.audit() == []
    return ledger


def change(database, statement):
    with database.transaction() as connection:
        assert connection.execute(statement).rowcount == 1


@pytest.mark.parametrize(
    ("figure", "fault"),
    [
        ("spent", "key k1: spent is 32, its rows add up to 25"),
        ("held", "key k1: held is 67, its rows add up to 60"),
    ],
)
def test_a_figure_of_a_key_that_is_wrong_is_named(ledger, empty_database, figure, fault):
    bent = {figure: SPENDING.c[figure] + 7}
    change(empty_database, sa.update(SPENDING).where(SPENDING.c.key == "k1").values(bent))
    assert ledger.audit() == [fault]


def test_a_key_without_its_row_is_missed(ledger, empty_database):
    change(empty_database, sa.delete(SPENDING).where(SPENDING.c.key == "k1"))
    assert ledger.audit() == [
        "key k1: held is 0, its rows add up to 60",
        "key k1: spent is 0, its rows add up to 25",
    ]


def test_a_row_in_another_period_is_named_with_both(ledger, empty_database):
    moved = sa.update(SPENDING).where(SPENDING.c.key == "k2")
    change(empty_database, moved.values(budget_window="2001-01-01"))
    [there, here] = ledger.audit()
    assert there == "key k2 2001-01-01: spent is 5, its rows add up to 0"
    assert here.endswith(": spent is 0, its rows add up to 5")


def test_the_hold_of_a_key_that_is_gone_is_missed(ledger, empty_database):
    change(empty_database, sa.delete(HOLDS).where(HOLDS.c.request_id == "b"))
    assert ledger.audit() == [
        "alice: held is 60, its rows add up to 0",
        "key k1: held is 60, its rows add up to 0",
    ]


def test_the_entry_of_a_key_that_is_gone_is_missed(ledger, empty_database):
    change(empty_database, sa.delete(ENTRIES).where(ENTRIES.c.request_id == "c"))
    bobs, keys = ledger.audit()
    assert bobs == "bob: invoiced is 5, its rows add up to 0"
    assert keys.startswith("key k2 20")
    assert keys.endswith(": spent is 5, its rows add up to 0")
