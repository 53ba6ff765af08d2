"""What a ledger could not take is tried again until it has."""

import contextlib
import threading

import pytest

from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.settlements import PATIENCE, Settlements
from oneai_middleware.testing import FakeClock, draft, hold


class Flaky(MemoryLedger):
    """One that can be out of reach, or refuse one call."""

    is_down = False
    poison = None

    def settle(self, entry):
        if self.is_down or entry.request_id == self.poison:
            raise OSError("gone")
        return super().settle(entry)


class Rounds:
    """The pauses between tries: one passes when it is let."""

    def __init__(self):
        self.begun, self.may_end = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, seconds):
        self.begun.release()
        assert self.may_end.acquire(timeout=30)

    def next(self):
        assert self.begun.acquire(timeout=30)
        self.may_end.release()


@pytest.fixture
def ledger():
    ledger = Flaky({"alice": 100})
    for name in ("a", "b", "c"):
        hold(ledger, draft(name), 10, 30)
    return ledger


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def rounds():
    return Rounds()


@pytest.fixture
def settlements(ledger, clock, rounds):
    yield Settlements(ledger, scope=contextlib.nullcontext, clock=clock, pause=rounds)
    for thread in threading.enumerate():  # its last line is of this test and not of the next
        if thread.name == "oneai-settle":
            thread.join(30)


def spent(ledger):
    return ledger.balance("alice").spent


def test_what_can_be_settled_is_settled_at_once(settlements, ledger):
    assert settlements.settle(draft("a", cost=200)) == 40  # all that the others do not hold
    assert spent(ledger) == 40
    assert settlements.retry() == 0


def test_calls_are_settled_when_the_ledger_is_back(settlements, ledger, rounds, caplog, eventually):
    ledger.is_down = True
    for name in ("a", "b", "c"):
        assert settlements.settle(draft(name, cost=7)) == 7
    for _ in range(3):
        rounds.next()
    assert rounds.begun.acquire(timeout=30)
    assert spent(ledger) == 0
    ledger.is_down = False
    rounds.may_end.release()
    eventually(lambda: spent(ledger) == 21)
    eventually(lambda: len(caplog.records) == 2)
    assert [record.getMessage() for record in caplog.records] == [
        "calls cannot be settled and will be later: the ledger failed: OSError",
        "all calls are settled",
    ]


def test_a_second_outage_is_seen_to_as_well(settlements, ledger, rounds, eventually):
    for name, total in (("a", 7), ("b", 14)):
        ledger.is_down = True
        settlements.settle(draft(name, cost=7))
        ledger.is_down = False
        rounds.next()
        eventually(lambda total=total: spent(ledger) == total)


def test_one_that_fails_alone_is_in_nobodys_way(settlements, ledger, rounds, caplog):
    ledger.is_down = True
    for name in ("a", "b", "c"):
        settlements.settle(draft(name, cost=7))
    ledger.is_down, ledger.poison = False, "a"
    assert [settlements.retry() for _ in range(3)] == [3, 1, 1]
    assert spent(ledger) == 14
    ledger.poison = None
    assert settlements.retry() == 0
    rounds.next()


def test_one_that_fails_for_a_day_is_named_with_its_cost(
    settlements, ledger, clock, rounds, caplog
):
    ledger.poison = "a"
    settlements.settle(draft("a", cost=7))
    clock.advance(PATIENCE - 1)
    assert settlements.retry() == 1
    clock.advance(1)
    assert settlements.retry() == 0
    assert caplog.records[-1].getMessage() == "a: given up unsettled: 7 nano-dollars"
    rounds.next()


def test_a_scope_that_cannot_be_entered_stops_nothing(ledger, clock, rounds, eventually):
    entered = []

    @contextlib.contextmanager
    def scope():
        entered.append(True)
        if len(entered) == 1:
            raise RuntimeError("the host is not ready")
        yield

    settlements = Settlements(ledger, scope=scope, clock=clock, pause=rounds)
    ledger.is_down = True
    settlements.settle(draft("a", cost=7))
    ledger.is_down = False
    rounds.next()
    rounds.next()
    eventually(lambda: spent(ledger) == 7)
