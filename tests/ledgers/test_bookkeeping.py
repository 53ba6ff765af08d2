"""The rules of money: the same as in memory, and not shaken by a transaction broken off."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from oneai_middleware.database import kinds, postgresql
from oneai_middleware.database.engine import Database
from oneai_middleware.database.tables import BALANCES, HOLDS, METADATA, TOP_UPS
from oneai_middleware.errors import OneAIError, StoreUnavailable
from oneai_middleware.ledgers.base import Balance, Entry
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import LEASE, FakeClock, draft, hold
from oneai_middleware.transactions import TRIES, BrokenOff

# --- anything in any order ------------------------------------------------------------

accounts = st.sampled_from(["alice", "bob"])
keys = st.sampled_from([(None, None, None), ("k1", 1_500, None), ("k2", 500, "day")])
money = st.integers(0, 1_000)


class Books(RuleBasedStateMachine):
    """A ledger on SQLite decides as the one in memory does."""

    database: Database

    def __init__(self):
        super().__init__()
        clock = FakeClock(float(int(time.time())))  # which both keep to the microsecond
        with self.database.transaction() as connection:
            for table in reversed(METADATA.sorted_tables):
                connection.execute(table.delete())
        self.clock = clock
        self.model = MemoryLedger(clock=clock, now=lambda: datetime.fromtimestamp(clock(), UTC))
        self.ledger = SQLLedger(self.database, clock=clock)
        self.calls = []

    def both(self, act):
        """What ``act`` gives, which must be the same of both ledgers."""
        outcomes = []
        for ledger in (self.model, self.ledger):
            try:
                outcomes.append(act(ledger))
            except (OneAIError, ValueError) as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    @rule(account=accounts, amount=st.integers(-1, 1_000), reference=st.integers(0, 5))
    def top_up(self, account, amount, reference):
        self.both(lambda ledger: ledger.top_up(account, amount, f"r{reference}"))

    @rule(account=accounts, key=keys, least=st.integers(1, 1_000), more=money, paid=st.booleans())
    def hold(self, account, key, least, more, paid):
        name, budget, period = key
        entry = Entry(f"c{len(self.calls)}", account, key=name, prepaid=paid)
        self.calls.append(entry)
        self.both(lambda ledger: hold(ledger, entry, least, least + more, budget, period))

    @rule(data=st.data(), cost=money)
    def checkpoint(self, data, cost):
        entry = self.pick(data)._replace(cost=cost, completion_tokens=cost)
        self.both(lambda ledger: ledger.checkpoint(entry, lease=LEASE))

    @rule(data=st.data(), cost=money)
    def settle(self, data, cost):
        entry = self.pick(data)._replace(cost=cost)
        row = self.both(lambda ledger: ledger.settle(entry))
        assert self.both(lambda ledger: ledger.settle(entry._replace(cost=cost + 1))) == row

    @rule(seconds=st.sampled_from([1, 10, 30, 86_400]))
    def pass_time(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def sweep(self):
        self.both(lambda ledger: ledger.sweep())

    def pick(self, data):
        """A call that was asked for, whether it was granted or not."""
        return data.draw(st.sampled_from(self.calls or [Entry("never held", "alice")]))

    @invariant()
    def the_balances_are_the_same(self):
        for account in ("alice", "bob"):
            self.both(lambda ledger, account=account: ledger.balance(account))

    def teardown(self):
        assert self.ledger.audit() == []
        for account in ("alice", "bob"):
            self.both(lambda ledger, account=account: sorted(ledger.entries(account)))
            for by in ("day", "model"):
                self.both(lambda ledger, a=account, by=by: list(ledger.usage(a, by=by)))


TestBooks = Books.TestCase
TestBooks.settings = settings(stateful_step_count=30)


@pytest.fixture(scope="module", autouse=True)
def _file(tmp_path_factory):
    Books.database = Database(f"sqlite:///{tmp_path_factory.mktemp('books')}/oneai.db")
    # Not a test of the disk.
    sa.event.listen(
        Books.database.engine,
        "connect",
        lambda connection, _: connection.execute("PRAGMA synchronous=OFF"),
    )
    yield
    Books.database.engine.dispose()


# --- broken off -----------------------------------------------------------------------


class Interrupted(SQLLedger):
    """One whose transactions are undone at their end, so often."""

    interruptions = 0

    @contextlib.contextmanager
    def begin(self, *, reading=False):
        with super().begin(reading=reading) as books:
            yield books
            if self.interruptions and not reading:
                self.interruptions -= 1
                raise BrokenOff("in favour of another")


@pytest.fixture
def interrupted(empty_database):
    ledger = Interrupted(empty_database)
    ledger.top_up("alice", 100, "r1")
    hold(ledger, draft("a", key="k1"), 10, 60)
    ledger.hold(draft("lost"), least=10, most=10, lease=-1.0)
    return ledger


ACTS = {
    "hold": lambda ledger: hold(ledger, draft("b", key="k1"), 30, 30),
    "checkpoint": lambda ledger: ledger.checkpoint(draft("a", key="k1", cost=80), lease=LEASE),
    "settle": lambda ledger: ledger.settle(draft("a", key="k1", cost=25)),
    "top up": lambda ledger: ledger.top_up("alice", 7, "r2"),
    "sweep": lambda ledger: ledger.sweep(),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_act_that_is_broken_off_is_done_anew_and_once(interrupted, act):
    interrupted.interruptions = TRIES
    with pytest.raises(StoreUnavailable):
        act(interrupted)
    assert interrupted.balance("alice") == Balance(available=30, held=70, topped_up=100)
    interrupted.interruptions = TRIES - 1
    act(interrupted)
    assert interrupted.interruptions == 0
    assert interrupted.balance("alice") != Balance(available=30, held=70, topped_up=100)
    assert interrupted.audit() == []


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_call_in_a_deadlock_gives_way_and_is_held_all_the_same(
    empty_database, connect, eventually, monkeypatch
):
    monkeypatch.setattr(kinds, "PATIENCE", 8.0)
    monkeypatch.setattr(kinds, "SILENCE", 10.0)
    monkeypatch.setattr(postgresql, "SILENCE", 10.0)
    url = empty_database.url
    if empty_database.kind == "postgresql":  # which looks for deadlocks after a second only
        url = url.update_query_dict({"options": "-c deadlock_timeout=300ms"})
    ledger = SQLLedger(connect(url))
    ledger.top_up("alice", 100, "r1")
    with (
        ThreadPoolExecutor() as pool,
        contextlib.suppress(Undone),
        connect(empty_database.url).transaction() as other,
    ):
        # MariaDB breaks the lighter one off.
        for number in range(50):
            row = {"reference": f"x{number}", "account": "x", "amount": 1, "booked_at": 0}
            other.execute(sa.insert(TOP_UPS).values(row))
        other.execute(sa.update(BALANCES).values(held=BALANCES.c.held))
        held = pool.submit(hold, ledger, draft("a"), 10, 60)
        eventually(lambda: somebody_waits(empty_database))
        row = {"account": "x", "amount": 1, "counted": 0, "budget_window": "", "expires": 0}
        other.execute(sa.insert(HOLDS).values(request_id="a", draft="", **row))
        raise Undone
    assert held.result() == 60
    assert ledger.balance("alice") == Balance(available=40, held=60, topped_up=100)
    assert ledger.audit() == []


class Undone(Exception):
    """The other transaction is given up."""


def somebody_waits(database):
    ask = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mariadb": "SELECT count(*) FROM information_schema.processlist"
        " WHERE info LIKE 'UPDATE oneai_balances%%'",
    }
    with database.reading() as connection:
        return connection.exec_driver_sql(ask[database.kind]).scalar()
