"""The contract of ledgers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ..accounts import Period
from ..errors import (
    BalanceOnHold,
    InsufficientBalance,
    KeyBudgetExhausted,
    ReferenceConflict,
)
from ..ledgers.base import Balance, Entry, Ledger, UsageRow
from .contract import LEASE, NAMES, in_threads
from .holds import draft, hold, try_hold
from .lost_calls import LostCallsContract


class LedgerContract(LostCallsContract):
    """What every ledger that sells prepaid calls does. It starts empty."""

    def make_ledger(self) -> Ledger:
        """A fresh, empty ledger."""
        raise NotImplementedError

    @pytest.fixture
    def ledger(self) -> Iterator[Ledger]:
        ledger = self.make_ledger()
        yield ledger
        assert ledger.audit() == []

    def test_an_account_never_seen_has_nothing(self, ledger: Ledger) -> None:
        assert ledger.balance("alice") == Balance()
        assert list(ledger.entries("alice")) == []
        assert list(ledger.usage("alice")) == []

    # --- topping up

    def test_a_top_up_is_available_at_once(self, ledger: Ledger) -> None:
        assert ledger.top_up("alice", 2**61, "r1") is True
        assert ledger.balance("alice") == Balance(available=2**61, topped_up=2**61)
        assert ledger.balance("bob") == Balance()

    def test_a_reference_is_booked_once(self, ledger: Ledger) -> None:
        assert ledger.top_up("alice", 100, "r1") is True
        assert ledger.top_up("alice", 100, "r1") is False
        assert ledger.balance("alice").topped_up == 100

    def test_a_reference_with_another_amount_or_account_is_a_conflict(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        with pytest.raises(ReferenceConflict):
            ledger.top_up("alice", 101, "r1")
        with pytest.raises(ReferenceConflict):
            ledger.top_up("bob", 100, "r1")
        assert ledger.balance("alice").topped_up == 100
        assert ledger.balance("bob") == Balance()

    @pytest.mark.parametrize("amount", [0, -1, 1.5, "5", True])
    def test_a_top_up_is_a_whole_number_above_zero(self, ledger: Ledger, amount: Any) -> None:
        with pytest.raises(ValueError, match="above zero"):
            ledger.top_up("alice", amount, "r1")
        assert ledger.balance("alice") == Balance()

    def test_nobody_owns_more_than_can_be_counted(self, ledger: Ledger) -> None:
        for number in range(2):
            ledger.top_up("alice", 2**61, f"r{number}")
        for amount in (1, 2**63):
            with pytest.raises(ValueError, match="billion"):
                ledger.top_up("alice", amount, "r3")
        assert ledger.balance("alice") == Balance(available=2**62, topped_up=2**62)
        assert ledger.top_up("bob", 1, "r3") is True

    @pytest.mark.parametrize("name", ["", "a" * 191, "a\0", "a\ud800"])
    def test_what_is_no_name_is_not_booked(self, ledger: Ledger, name: str) -> None:
        for account, reference in (("alice", name), (name, "r1")):
            with pytest.raises(ValueError, match="190"):
                ledger.top_up(account, 1, reference)
        assert ledger.balance("alice") == Balance()

    def test_names_are_told_apart_to_the_letter(self, ledger: Ledger) -> None:
        for amount, name in enumerate(NAMES, 1):
            assert ledger.top_up(name, amount, name) is True
        for amount, name in enumerate(NAMES, 1):
            hold(ledger, draft(f"c{amount}", account=name), amount, amount)
            ledger.settle(draft(f"c{amount}", account=name, cost=amount))
        for amount, name in enumerate(NAMES, 1):
            assert ledger.balance(name) == Balance(spent=amount, topped_up=amount)
            assert [row.cost for row in ledger.entries(name)] == [amount]

    def test_threads_that_top_up_a_new_account_lose_nothing(self, ledger: Ledger) -> None:
        numbers = itertools.count()

        def top_up() -> bool:
            number = next(numbers)
            return ledger.top_up(f"new{number // 8}", 7, f"r{number}")

        assert all(in_threads(top_up, 64))
        assert [ledger.balance(f"new{number}").available for number in range(8)] == [56] * 8

    def test_threads_book_a_reference_once(self, ledger: Ledger) -> None:
        booked = in_threads(lambda: ledger.top_up("alice", 7, "r1"), 24)
        assert booked.count(True) == 1
        assert ledger.balance("alice").topped_up == 7

    # --- holding

    def test_a_hold_takes_the_most_it_asks_for(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        assert hold(ledger, draft("a"), 10, 60) == 60
        assert ledger.balance("alice") == Balance(available=40, held=60, topped_up=100)

    def test_a_hold_makes_do_with_what_there_is(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 60, 60)
        assert hold(ledger, draft("b"), 40, 60) == 40
        assert ledger.balance("alice") == Balance(held=100, topped_up=100)

    def test_a_call_that_the_account_cannot_pay_is_refused(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        with pytest.raises(InsufficientBalance):
            hold(ledger, draft("a"), 101, 200)
        with pytest.raises(InsufficientBalance):
            hold(ledger, draft("b", account="bob"), 1, 1)
        assert ledger.balance("alice") == Balance(available=100, topped_up=100)

    def test_money_held_by_other_calls_is_worth_waiting_for(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 80, 80)
        with pytest.raises(BalanceOnHold) as refused:
            hold(ledger, draft("b"), 21, 50)
        assert refused.value.retry_after == 1
        with pytest.raises(InsufficientBalance):
            hold(ledger, draft("b"), 101, 200)
        assert ledger.balance("alice").held == 80

    def test_a_refused_call_may_ask_again(self, ledger: Ledger) -> None:
        with pytest.raises(InsufficientBalance):
            hold(ledger, draft("a"), 10, 10)
        ledger.top_up("alice", 10, "r1")
        assert hold(ledger, draft("a"), 10, 10) == 10

    def test_a_free_call_needs_no_money(self, ledger: Ledger) -> None:
        assert hold(ledger, draft("a"), 0, 0) == 0
        assert ledger.settle(draft("a", outcome="answered")).cost == 0

    def test_an_invoiced_call_holds_nothing_and_gets_all(self, ledger: Ledger) -> None:
        call = draft("a", prepaid=False)
        assert hold(ledger, call, 10, 60) == 60
        assert ledger.balance("alice") == Balance()
        ledger.checkpoint(call._replace(cost=10_000), lease=LEASE)
        assert ledger.settle(call._replace(cost=12_345)).cost == 12_345
        assert ledger.balance("alice") == Balance(invoiced=12_345)

    def test_threads_cannot_hold_more_than_there_is(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 1_000, "r1")
        numbers = itertools.count()
        granted = in_threads(lambda: try_hold(ledger, draft(f"c{next(numbers)}"), 50), 48)
        assert granted.count(True) == 20
        assert ledger.balance("alice") == Balance(held=1_000, topped_up=1_000)

    # --- a key's own budget

    def test_a_key_spends_no_more_than_its_budget(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 1_000, "r1")
        assert hold(ledger, draft("a", key="k1"), 10, 60, budget=100) == 60
        ledger.settle(draft("a", key="k1", cost=50))
        assert hold(ledger, draft("b", key="k1"), 50, 80, budget=100) == 50
        ledger.settle(draft("b", key="k1", cost=50))
        with pytest.raises(KeyBudgetExhausted):
            hold(ledger, draft("c", key="k1"), 1, 1, budget=100)
        assert hold(ledger, draft("d", key="k2"), 60, 60, budget=60) == 60
        assert hold(ledger, draft("e", key="k1"), 1, 1, budget=None) == 1

    def test_what_a_key_holds_counts_against_its_budget(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 1_000, "r1")
        hold(ledger, draft("a", key="k1"), 90, 90, budget=100)
        with pytest.raises((KeyBudgetExhausted, BalanceOnHold)):
            hold(ledger, draft("b", key="k1"), 11, 11, budget=100)
        ledger.settle(draft("a", key="k1", cost=5))
        assert hold(ledger, draft("b", key="k1"), 11, 200, budget=100) == 95

    def test_an_invoiced_key_spends_no_more_than_its_budget(self, ledger: Ledger) -> None:
        call = draft("a", key="k1", prepaid=False)
        assert hold(ledger, call, 10, 60, budget=100) == 60
        assert hold(ledger, call._replace(request_id="b"), 10, 60, budget=100) == 40
        with pytest.raises(BalanceOnHold):
            hold(ledger, call._replace(request_id="c"), 1, 1, budget=100)
        for each in ("a", "b"):
            ledger.settle(call._replace(request_id=each, cost=40))
        assert hold(ledger, call._replace(request_id="c"), 10, 60, budget=100) == 20
        with pytest.raises(KeyBudgetExhausted):
            hold(ledger, call._replace(request_id="d"), 21, 60, budget=100)

    @pytest.mark.parametrize("prepaid", [True, False])
    def test_a_hold_does_not_grow_beyond_the_budget(self, ledger: Ledger, prepaid: bool) -> None:
        ledger.top_up("alice", 1_000, "r1")
        call = draft("a", key="k1", prepaid=prepaid)
        hold(ledger, call, 10, 60, budget=100)
        ledger.checkpoint(call._replace(cost=100), lease=LEASE)
        with pytest.raises(InsufficientBalance):
            ledger.checkpoint(call._replace(cost=101), lease=LEASE)
        with pytest.raises(BalanceOnHold):
            hold(ledger, call._replace(request_id="b"), 1, 1, budget=100)
        ledger.settle(call._replace(cost=90))
        assert hold(ledger, call._replace(request_id="b"), 1, 60, budget=100) == 10

    @pytest.mark.parametrize("cost", [-1, 1.5, None, True])
    def test_no_call_gives_money(self, ledger: Ledger, cost: Any) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        for act in (ledger.settle, lambda entry: ledger.checkpoint(entry, lease=LEASE)):
            with pytest.raises(ValueError, match="below zero"):
                act(draft("a", cost=cost))
        assert ledger.balance("alice") == Balance(available=40, held=60, topped_up=100)

    @pytest.mark.parametrize(("period", "days"), [("day", 1), ("month", 31)])
    def test_a_budget_is_whole_again_in_the_next_period(
        self, ledger: Ledger, period: Period, days: int
    ) -> None:
        ledger.top_up("alice", 1_000, "r1")
        for call in ("a", "b"):
            assert hold(ledger, draft(call, key="k1"), 60, 60, 100, period) == 60
            ledger.settle(draft(call, key="k1", cost=60))
            with pytest.raises(KeyBudgetExhausted):
                hold(ledger, draft("c", key="k1"), 41, 60, 100, period)
            assert hold(ledger, draft(f"{call}2", key="k1"), 40, 60, 100, period) == 40
            ledger.settle(draft(f"{call}2", key="k1", cost=40))
            self.pass_time(days * 86_400)
        assert ledger.balance("alice") == Balance(available=800, spent=200, topped_up=1_000)

    @pytest.mark.parametrize("prepaid", [True, False])
    def test_a_call_counts_in_the_period_it_began_in(self, ledger: Ledger, prepaid: bool) -> None:
        ledger.top_up("alice", 1_000, "r1")
        for call in ("a", "lost"):
            entry = draft(call, key="k1", prepaid=prepaid)
            hold(ledger, entry, 40, 40, 100, "day")
            ledger.checkpoint(entry._replace(cost=40), lease=LEASE)
        self.pass_time(86_400)
        ledger.settle(draft("a", key="k1", prepaid=prepaid, cost=40))
        assert ledger.sweep() == 1
        assert hold(ledger, draft("b", key="k1"), 100, 100, 100, "day") == 100

    # --- settling

    def test_settling_charges_the_cost_and_frees_the_rest(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        assert ledger.settle(draft("a", cost=25)).cost == 25
        assert ledger.balance("alice") == Balance(available=75, spent=25, topped_up=100)

    def test_settling_at_zero_releases_the_hold_and_records_the_call(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        ledger.settle(draft("a", outcome="model_overloaded"))
        assert ledger.balance("alice") == Balance(available=100, topped_up=100)
        assert [row.outcome for row in ledger.entries("alice")] == ["model_overloaded"]

    def test_a_cost_above_the_hold_is_paid_from_what_is_available(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        assert ledger.settle(draft("a", cost=90)).cost == 90
        assert ledger.balance("alice") == Balance(available=10, spent=90, topped_up=100)

    def test_a_cost_above_everything_is_cut_to_what_there_is(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 60, 60)
        hold(ledger, draft("b"), 30, 30)
        assert ledger.settle(draft("a", cost=500)).cost == 70
        assert ledger.balance("alice") == Balance(held=30, spent=70, topped_up=100)

    def test_a_call_is_settled_once(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        first = ledger.settle(draft("a", cost=25, outcome="answered"))
        assert ledger.settle(draft("a", cost=60, outcome="caller_left")) == first
        assert ledger.balance("alice").spent == 25
        assert list(ledger.entries("alice")) == [first]

    def test_threads_settle_a_call_once(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 100, "r1")
        hold(ledger, draft("a"), 10, 60)
        rows = in_threads(lambda: ledger.settle(draft("a", cost=25)), 16)
        assert len(set(rows)) == 1
        assert ledger.balance("alice") == Balance(available=75, spent=25, topped_up=100)

    def test_the_row_says_all_that_the_entry_said(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 10**12, "r1")
        entry = Entry(
            "a", "alice", "k1", "deepseek-v3", "deepseek", 300, 1_200, 75, True,
            1_000, 500, 200, 100, True, "answered", 840_000, 1.5,
        )  # fmt: skip
        hold(ledger, entry._replace(cost=0), 10, 10**6)
        row = ledger.settle(entry)
        assert row._replace(settled_at=None) == entry
        assert row.settled_at is not None
        assert abs(row.settled_at - datetime.now(UTC)) < timedelta(days=1)
        assert list(ledger.entries("alice")) == [row]

    # --- looking back

    def test_entries_are_the_accounts_own_oldest_first(self, ledger: Ledger) -> None:
        for number in range(5):
            ledger.settle(draft(f"a{number}", prepaid=False, cost=number))
            ledger.settle(draft(f"b{number}", account="bob", prepaid=False))
        assert [row.request_id for row in ledger.entries("alice")] == ["a0", "a1", "a2", "a3", "a4"]

    def test_entries_are_cut_from_since_up_to_before_until(self, ledger: Ledger) -> None:
        row = ledger.settle(draft("a", prepaid=False))
        at = row.settled_at
        assert at is not None
        later, earlier = at + timedelta(hours=1), at - timedelta(hours=1)
        assert list(ledger.entries("alice", since=at, until=later)) == [row]
        assert list(ledger.entries("alice", since=earlier, until=at)) == []
        assert list(ledger.entries("alice", since=later)) == []
        assert list(ledger.usage("alice", since=later)) == []
        assert [group.calls for group in ledger.usage("alice", since=at, until=later)] == [1]

    def test_usage_is_summed_up_by_model_and_by_day(self, ledger: Ledger) -> None:
        days = set()
        for number, model in enumerate(["m1", "m2", "m1"]):
            row = ledger.settle(
                draft(
                    f"a{number}",
                    prepaid=False,
                    model=model,
                    prompt_tokens=10,
                    completion_tokens=number,
                    cost=100,
                )
            )
            assert row.settled_at is not None
            days.add(row.settled_at.astimezone(UTC).date().isoformat())
        ledger.settle(draft("b", account="bob", prepaid=False, model="m1"))
        by_model = {row.group: row for row in ledger.usage("alice", by="model")}
        assert set(by_model) == {"m1", "m2"}
        assert by_model["m1"] == UsageRow("m1", 2, 20, 2, 200)
        by_day = list(ledger.usage("alice", by="day"))
        assert {row.group for row in by_day} == days
        assert sum(row.cost for row in by_day) == 300

    def test_the_books_balance_after_threads_have_done_everything(self, ledger: Ledger) -> None:
        ledger.top_up("alice", 500, "r1")
        numbers = itertools.count()

        def call() -> None:
            number = next(numbers)
            entry = draft(f"c{number}", key="k1")
            if not try_hold(ledger, entry, 20 + number % 50):
                return
            with suppress(InsufficientBalance):
                ledger.checkpoint(entry._replace(cost=number % 90), lease=LEASE)
            ledger.settle(entry._replace(cost=number % 7))

        in_threads(call, 64)
        balance = ledger.balance("alice")
        assert balance.held == 0
        assert balance.available + balance.spent == balance.topped_up == 500
        assert balance.spent == sum(row.cost for row in ledger.entries("alice"))
