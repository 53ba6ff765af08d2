"""The part of the contract of ledgers that is about leases and the sweep."""

from __future__ import annotations

import pytest

from ..errors import HoldLost, InsufficientBalance
from ..ledgers.base import ABANDONED, Balance, Ledger
from .contract import LEASE, Contract, in_threads
from .holds import draft, hold


class LostCallsContract(Contract):
    """What every ledger does with calls that are renewed, lost, and found again."""

    def test_a_checkpoint_enlarges_the_hold_to_the_cost(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        ledger.checkpoint(draft("a", cost=50), lease=LEASE)
        assert ledger.balance("alice").held == 60
        ledger.checkpoint(draft("a", cost=80), lease=LEASE)
        assert ledger.balance("alice") == Balance(available=20, held=80, topped_up=100)

    def test_a_hold_that_cannot_grow_to_the_cost_says_so(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        with pytest.raises(InsufficientBalance):
            ledger.checkpoint(draft("a", cost=101), lease=LEASE)
        assert ledger.settle(draft("a", cost=101)).cost == 100

    def test_a_checkpoint_of_a_settled_call_changes_nothing(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        ledger.settle(draft("a", cost=25))
        ledger.checkpoint(draft("a", cost=90), lease=LEASE)
        assert ledger.balance("alice") == Balance(available=75, spent=25, topped_up=100)

    def test_the_sweep_leaves_living_calls_alone(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        for _ in range(5):
            self.pass_time(LEASE - 1)
            ledger.checkpoint(draft("a", cost=10), lease=LEASE)
        assert ledger.sweep() == 0
        assert ledger.balance("alice").held == 60

    def test_the_sweep_settles_a_lost_call_at_its_floor(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a", model="deepseek-v3"), 10, 60)
        last = draft("a", model="deepseek-v3", cost=33, prompt_tokens=3, completion_tokens=4)
        ledger.checkpoint(last, lease=LEASE)
        self.pass_time(LEASE + 1)
        assert ledger.sweep() == 1
        assert ledger.sweep() == 0
        assert ledger.balance("alice") == Balance(available=67, spent=33, topped_up=100)
        (row,) = ledger.entries("alice")
        assert row._replace(settled_at=None) == last._replace(outcome=ABANDONED)

    def test_a_call_lost_before_any_checkpoint_costs_nothing(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        self.pass_time(LEASE + 1)
        assert ledger.sweep() == 1
        assert ledger.balance("alice") == Balance(available=100, topped_up=100)

    def test_the_floor_holds_though_the_hold_could_not_grow(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 60, 60)
        hold(ledger, draft("b"), 40, 40)
        self.pass_time(LEASE - 1)
        with pytest.raises(InsufficientBalance):
            ledger.checkpoint(draft("a", cost=70), lease=LEASE)
        self.pass_time(2)
        assert ledger.sweep() == 1  # b alone: the lease of a was renewed
        self.pass_time(LEASE)
        assert ledger.sweep() == 1
        assert ledger.balance("alice") == Balance(available=30, spent=70, topped_up=100)

    @pytest.mark.parametrize("prepaid", [True, False])
    @pytest.mark.parametrize("cost", [60, 20, 5, 0])
    def test_a_lost_call_that_comes_back_is_charged_what_it_really_took(
        self, ledger: Ledger, cost: int, prepaid: bool
    ) -> None:
        ledger.top_up("alice", 100, "r1")
        call = draft("a", key="k1", prepaid=prepaid)
        hold(ledger, call, 10, 60, 100, "day")
        ledger.checkpoint(call._replace(cost=20), lease=LEASE)
        self.pass_time(LEASE + 1)
        assert ledger.sweep() == 1
        back = call._replace(cost=cost, outcome="answered", completion_tokens=9)
        row = ledger.settle(back)
        assert row._replace(settled_at=None) == back
        assert ledger.settle(call._replace(cost=99)) == row
        assert list(ledger.entries("alice")) == [row]
        balance = ledger.balance("alice")
        assert (balance.spent, balance.invoiced) == ((cost, 0) if prepaid else (0, cost))
        assert hold(ledger, draft("b", key="k1", prepaid=False), 1, 200, 100, "day") == 100 - cost

    def test_a_lost_call_that_comes_back_is_charged_what_is_left(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        ledger.checkpoint(draft("a", cost=20), lease=LEASE)
        self.pass_time(LEASE + 1)
        assert ledger.sweep() == 1
        hold(ledger, draft("b"), 70, 70)
        assert ledger.settle(draft("a", cost=60, outcome="answered")).cost == 30
        assert ledger.balance("alice") == Balance(held=70, spent=30, topped_up=100)

    def test_threads_complete_a_lost_call_once(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        self.pass_time(LEASE + 1)
        assert ledger.sweep() == 1
        rows = in_threads(lambda: ledger.settle(draft("a", cost=25, outcome="answered")), 16)
        assert len(set(rows)) == 1
        assert ledger.balance("alice") == Balance(available=75, spent=25, topped_up=100)

    def test_a_lost_call_that_still_runs_is_told_to_end(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        self.pass_time(LEASE + 1)
        assert ledger.sweep() == 1
        with pytest.raises(HoldLost):
            ledger.checkpoint(draft("a", cost=30), lease=LEASE)
        assert ledger.balance("alice") == Balance(available=100, topped_up=100)

    def test_a_call_in_want_of_money_sweeps_its_account_first(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 100, 100)
        ledger.checkpoint(draft("a", cost=30), lease=LEASE)
        self.pass_time(LEASE + 1)
        assert hold(ledger, draft("b"), 10, 100) == 70
        assert ledger.balance("alice") == Balance(held=70, spent=30, topped_up=100)

    def test_a_lost_invoiced_call_is_invoiced_at_its_floor(self, ledger: Ledger) -> None:
        call = draft("a", prepaid=False)
        hold(ledger, call, 10, 60)
        ledger.checkpoint(call._replace(cost=5), lease=LEASE)
        self.pass_time(LEASE + 1)
        assert ledger.sweep() == 1
        assert ledger.balance("alice") == Balance(invoiced=5)
