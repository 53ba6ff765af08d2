"""Books whose reads are not what their updates meet, as in a snapshot: nobody looks for ever."""

import contextlib

import pytest

from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.bookkeeping import LOOKS
from oneai_middleware.ledgers.books import Spending
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import LEASE, draft, hold
from oneai_middleware.transactions import TRIES, BrokenOff

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

LIES = {
    "balance": lambda account: Balance(available=1_000, topped_up=1_000),
    "spending": lambda key, window: Spending(),
}


class Lying:
    """Books that say of some things what is not so."""

    def __init__(self, books, lies):
        self._books = books
        self._lies = lies
        self.tries = {"move": 0, "spend": 0}

    def __getattr__(self, name):
        if name in self._lies:
            return LIES[name]
        if name in self.tries:
            self.tries[name] += 1
            assert self.tries[name] <= 4 * LOOKS, "it never ends"
        return getattr(self._books, name)


class Ledger(SQLLedger):
    """One over lying books, if it is to be."""

    lies = ()
    begun = 0

    @contextlib.contextmanager
    def begin(self, *, reading=False):
        with super().begin(reading=reading) as books:
            self.begun += not reading
            yield Lying(books, self.lies)


@pytest.fixture
def ledger(empty_database):
    """One in which alice has 39 left of 100, and her key 40 of its budget of 100."""
    ledger = Ledger(empty_database)
    ledger.top_up("alice", 100, "r1")
    hold(ledger, draft("a", key="k1"), 10, 60, budget=100)
    hold(ledger, draft("c"), 1, 1)
    ledger.begun = 0
    return ledger


ACTS = {
    "hold": ("balance", lambda ledger: hold(ledger, draft("b"), 10, 60)),
    "hold of a key": (
        "spending",
        lambda ledger: hold(ledger, draft("b", key="k1", prepaid=False), 10, 60, budget=100),
    ),
    "checkpoint": (
        "balance",
        lambda ledger: ledger.checkpoint(draft("c", cost=99), lease=LEASE),
    ),
    "settle": ("balance", lambda ledger: ledger.settle(draft("a", key="k1", cost=500))),
}


@pytest.mark.parametrize(("lie", "act"), ACTS.values(), ids=ACTS)
def test_an_act_that_never_meets_what_it_reads_is_given_up(ledger, lie, act):
    before = ledger.balance("alice")
    ledger.lies = (lie,)
    with pytest.raises(StoreUnavailable) as refused:
        act(ledger)
    assert isinstance(refused.value, BrokenOff)
    assert "READ COMMITTED" in refused.value.detail
    assert refused.value.headers()[0] == ("Retry-After", "1")
    assert ledger.begun == TRIES
    ledger.lies = ()
    assert ledger.balance("alice") == before
    assert ledger.audit() == []
