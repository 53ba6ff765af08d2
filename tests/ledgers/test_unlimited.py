import pytest

from oneai_middleware.errors import ConfigurationError, KeyBudgetExhausted
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.unlimited import UnlimitedLedger
from oneai_middleware.testing import LEASE, FakeClock, draft, hold


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def ledger(clock):
    return UnlimitedLedger(clock=clock)


def test_nobody_is_refused_and_every_call_is_invoiced(ledger):
    assert hold(ledger, draft("a"), 10, 10**18) == 10**18
    ledger.checkpoint(draft("a", cost=10**18), lease=LEASE)
    row = ledger.settle(draft("a", cost=2 * 10**18))
    assert (row.cost, row.prepaid) == (2 * 10**18, False)
    assert ledger.balance("alice") == Balance(invoiced=2 * 10**18)
    assert ledger.entries("alice") == [row]


def test_a_lost_call_is_invoiced_at_its_floor(ledger, clock):
    hold(ledger, draft("a"), 10, 60)
    ledger.checkpoint(draft("a", cost=7), lease=LEASE)
    clock.advance(LEASE)
    assert ledger.sweep() == 1
    assert ledger.balance("alice") == Balance(invoiced=7)


def test_several_workers_have_no_balance_to_disagree_about():
    assert not UnlimitedLedger.from_settings({}).one_process


def test_a_url_is_refused():
    with pytest.raises(ConfigurationError, match="UnlimitedLedger"):
        UnlimitedLedger.from_settings({}, "unlimited://")


def test_a_balance_that_nobody_would_ask_for_is_refused():
    settings = {"accounts": {"alice": {"balance": "10"}, "bob": {}}}
    with pytest.raises(ConfigurationError, match=r"accounts\['alice'\].* 'memory' reads a balance"):
        UnlimitedLedger.from_settings(settings)


def test_a_key_may_spend_no_more_than_its_budget_though_nobody_asks_for_money(ledger):
    hold(ledger, draft("a", key="k"), 10, 100, budget=50)
    ledger.settle(draft("a", key="k", cost=45))
    with pytest.raises(KeyBudgetExhausted):
        hold(ledger, draft("b", key="k"), 10, 100, budget=50)
