import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from oneai_middleware.database.tables import BALANCES, ENTRIES, HOLDS, TOP_UPS
from oneai_middleware.errors import BalanceOnHold, ConfigurationError
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import LEASE, FakeClock, LedgerContract, draft, hold


class TestSQLLedger(LedgerContract):
    @pytest.fixture(autouse=True)
    def _database(self, empty_database):
        self.database = empty_database

    def make_ledger(self):
        self.clock = FakeClock(time.time())
        return SQLLedger(self.database, clock=self.clock)

    def advance(self, seconds):
        self.clock.advance(seconds)


@pytest.fixture
def ledger(empty_database):
    """One in which alice owns 100, on the clock of the database."""
    ledger = SQLLedger(empty_database)
    ledger.top_up("alice", 100, "r1")
    return ledger


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_rows_are_stamped_by_the_clock_of_the_database_in_utc(ledger):
    hold(ledger, draft("a"), 10, 60)
    row = ledger.settle(draft("a", cost=5))
    assert abs(row.settled_at - datetime.now(UTC)) < timedelta(seconds=60)
    assert ledger.sweep() == 0
    ledger.hold(draft("b"), least=1, most=1, lease=-1.0)
    assert ledger.sweep() == 1


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_mariadb_neither_has_an_hour_twice_nor_cuts_what_does_not_fit(empty_database):
    with empty_database.reading() as connection:
        ask = "SELECT @@session.time_zone, @@session.sql_mode"
        zone, mode = connection.exec_driver_sql(ask).one()
    assert zone == "+00:00"
    assert "STRICT_ALL_TABLES" in mode


def test_what_the_rows_say_may_be_long(ledger):
    entry = draft("a", model="m" * 1_000, provider="p" * 1_000, outcome="o" * 1_000)
    hold(ledger, entry, 1, 1)
    row = ledger.settle(entry)
    assert list(ledger.entries("alice")) == [row]
    assert [group.group for group in ledger.usage("alice", by="model")] == [entry.model]


def test_the_books_add_up_at_every_moment_while_calls_go_on(ledger):
    numbers = iter(range(10**6))

    def call(_):
        entry = draft(f"c{next(numbers)}", key="k1")
        hold(ledger, entry, 1, 1)
        ledger.settle(entry._replace(cost=1))

    with ThreadPoolExecutor(2) as pool:
        calls = pool.map(call, range(60))
        for _ in range(5):
            assert ledger.audit() == []
            balance = ledger.balance("alice")
            assert balance.available + balance.held + balance.spent == 100
        assert len(list(calls)) == 60
    assert ledger.balance("alice") == Balance(available=40, spent=60, topped_up=100)


def test_the_sweep_goes_on_until_no_lost_call_is_left(ledger):
    for number in range(7):
        ledger.hold(draft(f"c{number}"), least=10, most=10, lease=-1.0)
    assert ledger.sweep() == 7
    assert ledger.balance("alice") == Balance(available=100, topped_up=100)


@on_sqlite
@pytest.mark.parametrize("figure", ["available", "held", "spent", "topped_up", "invoiced"])
def test_the_audit_names_the_account_and_the_figure_that_is_wrong(ledger, empty_database, figure):
    ledger.settle(draft("b", account="bob", prepaid=False, cost=5))
    hold(ledger, draft("a"), 10, 60)
    assert ledger.audit() == []
    its = BALANCES.c.account == "alice"
    with empty_database.transaction() as connection:
        wrong = {figure: BALANCES.c[figure] + 1}
        connection.execute(sa.update(BALANCES).where(its).values(wrong))
    faults = ledger.audit()
    assert faults
    assert all(fault.startswith("alice: ") and figure in fault for fault in faults)


@on_sqlite
@pytest.mark.parametrize("table", [HOLDS, ENTRIES, TOP_UPS], ids=str)
def test_the_audit_misses_a_row_that_is_gone(ledger, empty_database, table):
    hold(ledger, draft("a"), 10, 60)
    ledger.settle(draft("b", cost=5))
    with empty_database.transaction() as connection:
        connection.execute(sa.delete(table))
    (fault,) = ledger.audit()
    assert fault.startswith("alice: ")


@on_sqlite
def test_an_account_without_a_row_of_money_is_missed_too(ledger, empty_database):
    with empty_database.transaction() as connection:
        connection.execute(sa.delete(BALANCES))
    assert ledger.audit() == ["alice: topped_up is 0, its rows add up to 100"]


@on_sqlite
@pytest.mark.parametrize("settled", [True, False])
def test_a_request_id_holds_once(ledger, settled):
    hold(ledger, draft("a"), 10, 10)
    if settled:
        ledger.settle(draft("a"))
    with pytest.raises(ValueError, match="already"):
        hold(ledger, draft("a"), 10, 10)
    assert ledger.audit() == []


@on_sqlite
def test_a_lost_call_is_swept_at_the_very_end_of_its_lease(empty_database):
    clock = FakeClock(time.time())
    ledger = SQLLedger(empty_database, clock=clock)
    hold(ledger, draft("a", prepaid=False), 1, 1)
    clock.advance(LEASE - 0.001)
    assert ledger.sweep() == 0
    clock.advance(0.001)
    assert ledger.sweep() == 1


@on_sqlite
def test_a_call_that_a_newer_package_has_begun_is_swept_all_the_same(ledger, empty_database):
    ledger.hold(draft("a", model="bot"), least=10, most=60, lease=-1.0)
    with empty_database.transaction() as connection:
        (row,) = connection.execute(sa.select(HOLDS))
        newer = row.draft[:-1] + ',"colour":{"red":[1,2]},"mood":null}'
        connection.execute(sa.update(HOLDS).values(draft=newer))
    assert ledger.sweep() == 1
    (row,) = ledger.entries("alice")
    assert (row.request_id, row.model, row.outcome) == ("a", "bot", "abandoned")
    assert ledger.balance("alice") == Balance(available=100, topped_up=100)
    assert ledger.audit() == []


@on_sqlite
def test_a_call_that_an_older_package_has_begun_is_swept_all_the_same(ledger, empty_database):
    ledger.hold(draft("a"), least=10, most=60, lease=-1.0)
    with empty_database.transaction() as connection:
        connection.execute(sa.update(HOLDS).values(draft='{"request_id":"a","account":"alice"}'))
    assert ledger.sweep() == 1
    assert ledger.audit() == []


class Interrupted(SQLLedger):
    """One to which something happens after it has looked, before it acts."""

    happens = None

    @contextlib.contextmanager
    def begin(self, *, reading=False):
        with super().begin(reading=reading) as books:
            yield books
        happens, self.happens = (None, self.happens) if not reading else (self.happens, None)
        if happens:
            happens()


def test_a_call_that_is_renewed_between_being_found_and_being_swept_is_spared(empty_database):
    ledger = Interrupted(empty_database)
    ledger.top_up("alice", 100, "r1")
    ledger.hold(draft("a"), least=100, most=100, lease=-1.0)
    ledger.happens = lambda: ledger.checkpoint(draft("a", cost=30), lease=LEASE)
    with pytest.raises(BalanceOnHold):
        hold(ledger, draft("b"), 10, 60)
    assert ledger.happens is None
    assert ledger.balance("alice") == Balance(held=100, topped_up=100)
    assert ledger.settle(draft("a", cost=40, outcome="answered")).cost == 40


def test_a_url_names_the_database(tmp_path):
    with pytest.raises(ConfigurationError, match="sqlite:///oneai.db"):
        SQLLedger.from_settings({})
    ledger = SQLLedger.from_settings({}, f"sqlite:///{tmp_path}/oneai.db")
    assert ledger.upgrade() == "sqlite: upgraded from nothing to version 0001"
    assert ledger.top_up("alice", 1, "r1")


def test_a_balance_in_the_settings_is_refused_at_start(make_gateway, tmp_path):
    url = f"sqlite:///{tmp_path}/oneai.db"
    with pytest.raises(ConfigurationError, match=r"accounts\['alice'\].* 'memory' reads a balance"):
        make_gateway(ledger=url)
    gateway = make_gateway(ledger=url, accounts={"alice": {"tier": "pro"}})
    assert gateway.ledger.balance("alice") == Balance()
    assert (tmp_path / "oneai.db").exists()
