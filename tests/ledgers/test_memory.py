import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from oneai_middleware.errors import (
    BalanceOnHold,
    ConfigurationError,
    HoldLost,
    InsufficientBalance,
    KeyBudgetExhausted,
)
from oneai_middleware.ledgers import memory
from oneai_middleware.ledgers.base import ABANDONED, Balance, Entry
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.testing import LEASE, FakeClock, LedgerContract, draft, hold


def fork(monkeypatch):
    """Let the code under test believe that it runs in a forked child."""
    child = SimpleNamespace(getpid=lambda: -1)
    monkeypatch.setattr("oneai_middleware.per_process.os", child)


class TestMemoryLedger(LedgerContract):
    def make_ledger(self):
        self.clock = FakeClock(time.time())
        return MemoryLedger(clock=self.clock, now=lambda: datetime.fromtimestamp(self.clock(), UTC))

    def advance(self, seconds):
        self.clock.advance(seconds)


accounts = st.sampled_from(["alice", "bob"])
keys = st.sampled_from([None, "k1", "k2"])
money = st.integers(0, 1_000)
BUDGET = 2_000


class Books(RuleBasedStateMachine):
    """Anything in any order: the books add up and nobody is refused wrongly."""

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.ledger = MemoryLedger({"alice": 500}, clock=self.clock)
        self.drafts = []
        self.paid_in = {"alice": 500, "bob": 0}
        self.references = 0

    @rule(account=accounts, amount=st.integers(1, 1_000))
    def top_up(self, account, amount):
        self.references += 1
        assert self.ledger.top_up(account, amount, f"r{self.references}")
        assert not self.ledger.top_up(account, amount, f"r{self.references}")
        self.paid_in[account] += amount

    @rule(account=accounts, key=keys, least=money, more=money, prepaid=st.booleans())
    def hold(self, account, key, least, more, prepaid):
        entry = Entry(f"c{len(self.drafts)}", account, key=key, prepaid=prepaid)
        budget = BUDGET if key else None
        try:
            amount = hold(self.ledger, entry, least, least + more, budget)
        except InsufficientBalance:  # after it has swept up what was due
            now = self.ledger.balance(account)
            assert now.available + now.held < least
        except BalanceOnHold:
            now = self.ledger.balance(account)
            assert not prepaid or now.available + now.held >= least
        except KeyBudgetExhausted:
            assert key
        else:
            assert least <= amount <= least + more
            self.drafts.append(entry)

    @rule(data=st.data(), cost=money)
    def checkpoint(self, data, cost):
        entry = self.pick(data)
        if entry:
            before = self.ledger.balance(entry.account)
            try:
                self.ledger.checkpoint(entry._replace(cost=cost), lease=LEASE)
            except InsufficientBalance:
                assert entry.key or before.available < cost
            except HoldLost:
                assert self.row(entry) is None or self.row(entry).outcome == ABANDONED

    @rule(data=st.data(), cost=money)
    def settle(self, data, cost):
        entry = self.pick(data)
        if entry:
            row = self.ledger.settle(entry._replace(cost=cost))
            assert self.ledger.settle(entry._replace(cost=cost + 1)) == row

    @rule(seconds=st.integers(1, 40))
    def pass_time(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def sweep(self):
        self.ledger.sweep()
        assert self.ledger.sweep() == 0

    def pick(self, data):
        return data.draw(st.sampled_from(self.drafts)) if self.drafts else None

    def row(self, entry):
        rows = self.ledger.entries(entry.account)
        return next((row for row in rows if row.request_id == entry.request_id), None)

    @invariant()
    def the_books_add_up(self):
        assert self.ledger.audit() == []
        for account, paid_in in self.paid_in.items():
            balance = self.ledger.balance(account)
            assert balance.available + balance.held + balance.spent == paid_in
            assert balance.topped_up == paid_in
            assert min(balance.available, balance.held, balance.spent) >= 0
            rows = self.ledger.entries(account)
            assert balance.spent == sum(row.cost for row in rows if row.prepaid)
            assert balance.invoiced == sum(row.cost for row in rows if not row.prepaid)


TestBooks = Books.TestCase
TestBooks.settings = settings(stateful_step_count=40)


@pytest.fixture
def ledger():
    return MemoryLedger({"alice": 100}, clock=FakeClock())


def test_opening_balances_count_as_topped_up(ledger):
    assert ledger.balance("alice") == Balance(available=100, topped_up=100)


def test_a_million_charges_add_up_without_drift():
    """Conformance 101."""
    ledger = MemoryLedger({"alice": 2**62})
    cost = 7 * 300 + 3 * 1_200
    entry = Entry("c", "alice", input_price=300, output_price=1_200, cost=cost)
    books = ledger._state()
    for _ in range(1_000_000):
        books.charge(entry, (None, ""), cost)
    assert ledger.balance("alice").spent == cost * 1_000_000
    assert ledger.audit() == []


def test_two_calls_cannot_both_spend_the_last_cent(ledger):
    """Conformance 105."""
    hold(ledger, draft("a"), 100, 100)
    with pytest.raises(BalanceOnHold):
        hold(ledger, draft("b"), 1, 100)
    ledger.settle(draft("a", cost=100))
    with pytest.raises(InsufficientBalance):
        hold(ledger, draft("b"), 1, 100)


def test_only_the_last_entries_are_kept_but_the_sums_are_exact(ledger, monkeypatch):
    monkeypatch.setattr(memory, "KEPT_ENTRIES", 10)
    for number in range(25):
        ledger.settle(draft(f"a{number}", cost=1))
    assert [row.request_id for row in ledger.entries("alice")] == [f"a{n}" for n in range(15, 25)]
    assert ledger.balance("alice") == Balance(available=75, spent=25, topped_up=100)


def test_a_call_that_never_held_is_charged_what_there_is(ledger):
    assert ledger.settle(draft("a", cost=70)).cost == 70
    assert ledger.settle(draft("b", cost=70)).cost == 30
    assert ledger.balance("alice") == Balance(spent=100, topped_up=100)


@pytest.mark.parametrize("settled", [True, False])
def test_a_request_id_holds_once(ledger, settled):
    hold(ledger, draft("a"), 10, 10)
    if settled:
        ledger.settle(draft("a"))
    with pytest.raises(ValueError, match="already"):
        hold(ledger, draft("a"), 10, 10)


def test_a_budget_held_by_the_keys_own_calls_is_worth_waiting_for(ledger):
    hold(ledger, draft("a", key="k1"), 60, 60, budget=60)
    with pytest.raises(BalanceOnHold):
        hold(ledger, draft("b", key="k1"), 10, 10, budget=60)


def test_a_key_in_want_of_budget_sweeps_too():
    clock = FakeClock()
    ledger = MemoryLedger({"alice": 100}, clock=clock)
    hold(ledger, draft("a", key="k1"), 60, 60, budget=60)
    clock.advance(LEASE)
    assert hold(ledger, draft("b", key="k1"), 10, 10, budget=60) == 10


def test_the_audit_names_the_account_whose_books_are_wrong(ledger):
    ledger._state().sums["alice"].spent -= 1
    faults = ledger.audit()
    assert len(faults) == 2
    assert all("alice" in fault for fault in faults)
    hold(ledger, draft("a"), 10, 10)
    ledger._state().holds.clear()
    assert len(ledger.audit()) == 3


def test_a_forked_child_starts_from_the_opening_balances(ledger, monkeypatch):
    ledger.settle(draft("a", cost=70))
    with ledger._state().lock:
        fork(monkeypatch)
        assert ledger.balance("alice") == Balance(available=100, topped_up=100)


def test_the_accounts_setting_gives_the_balances():
    accounts = {"alice": {"balance": "12.50"}, "bob": {}}
    ledger = MemoryLedger.from_settings({"accounts": accounts, "tiers": {}})
    assert ledger.balance("alice").available == 12_500_000_000
    assert ledger.balance("bob") == Balance()
    assert ledger.one_process


def test_a_url_is_refused():
    with pytest.raises(ConfigurationError, match="ledger"):
        MemoryLedger.from_settings({"accounts": {}, "tiers": {}}, "memory://")
