"""The rules of money over any database: hold, checkpoint, settle, sweep, audit.

A database gives a handful of small acts inside one transaction
(:class:`~.books.Books`); what they amount to is written once, here. Money moves by
conditional updates, whose row count says whether they did: no row is read first and
locked, nothing can be spent twice, and no balance goes below zero. Rows are locked in
one order, so that no two calls wait for each other: hold, key, entry, and last the
account, which all of its calls need. (What PostgreSQL does at once writes the hold or the
entry last: it can be in the way of nobody but a call of the same id.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TypeVar

from ..accounts import Period
from ..errors import (
    APIError,
    BalanceOnHold,
    HoldLost,
    InsufficientBalance,
    KeyBudgetExhausted,
)
from ..transactions import BrokenOff, in_one
from .audit import faults
from .base import (
    ABANDONED,
    Balance,
    Entry,
    Ledger,
    budget_window,
    check_cost,
    check_top_up,
    check_total,
)
from .books import Books, Duplicate, Hold, Spending
from .refusals import booked_otherwise, held_before, no_room, used_up

T = TypeVar("T")

SWEEPING = 0.5
"""Seconds in which a call that finds no money looks for some that lost calls hold."""
LOOKS = 10
"""How often it is tried to take exactly what is there while others change it."""


class BookkeepingLedger(Ledger):
    """A ledger over a database's :class:`Books`."""

    def begin(self, *, reading: bool = False) -> AbstractContextManager[Books]:
        """A transaction, left committed, or undone if anything is raised. One that is
        only ``reading`` waits for no writer.

        :raises StoreUnavailable: the database cannot answer in time.
        :raises BrokenOff: it could at once.
        """
        raise NotImplementedError

    def hold(
        self,
        draft: Entry,
        *,
        least: int,
        most: int,
        lease: float,
        budget: int | None = None,
        period: Period | None = None,
    ) -> int:
        def act(books: Books) -> int:
            window = budget_window(period, _datetime(books.now())) if period is not None else ""
            return _hold(books, Hold(draft, window=window, budget=budget), least, most, lease)

        try:
            try:
                return self._run(act)
            except (InsufficientBalance, BalanceOnHold, KeyBudgetExhausted):
                if not self._sweep_some(draft.account):
                    raise
                return self._run(act)
        except Duplicate:
            raise held_before(draft.request_id) from None

    def checkpoint(self, draft: Entry, *, lease: float) -> None:
        check_cost(draft)

        def act(books: Books) -> bool:
            hold = books.renew(draft, lease)
            if hold is not None:
                return _enlarge(books, hold)
            written = books.entry(draft.request_id)
            if written is None or written[0].outcome == ABANDONED:
                raise HoldLost
            return True  # it has been settled meanwhile

        if not self._run(act):
            raise used_up()

    def settle(self, entry: Entry) -> Entry:
        check_cost(entry)
        return self._run(lambda books: _settle(books, entry))

    def top_up(self, account: str, amount: int, reference: str) -> bool:
        check_top_up(account, amount, reference)

        def act(books: Books) -> None:
            books.book(reference, account, amount, _datetime(books.now()))
            books.move(account, Balance(available=amount, topped_up=amount))
            check_total(books.balance(account).topped_up)

        try:
            self._run(act)
            return True
        except Duplicate:
            booked = self._run(lambda books: books.top_up(reference))
        if booked != (account, amount):
            raise booked_otherwise(reference)
        return False

    def balance(self, account: str) -> Balance:
        with self.begin(reading=True) as books:
            return books.balance(account)

    def sweep(self) -> int:
        count = 0
        while self._run(lambda books: _settle_lost(books, None)):
            count += 1
        return count

    def audit(self) -> list[str]:
        with self.begin(reading=True) as books:
            return list(faults(books))

    def _run(self, act: Callable[[Books], T]) -> T:
        """Do ``act`` in one transaction, and again if that was broken off."""
        return in_one(self.begin, act)

    def _sweep_some(self, account: str) -> bool:
        """Settle lost calls of the account while somebody waits; whether there were any.

        Each in a transaction of its own: calls that live need the same rows.
        """
        end, found = time.monotonic() + SWEEPING, False
        with self.begin(reading=True) as books:
            lost = books.has_lost(account)
        while lost and time.monotonic() < end:
            lost = self._run(lambda books: _settle_lost(books, account))
            found = found or lost
        return found


# --- setting aside -----------------------------------------------------------------


def _hold(books: Books, call: Hold, least: int, most: int, lease: float) -> int:
    """Open a hold of up to ``most``; its size."""
    opened = _sized(call, most)
    if least <= most and books.open_at_once(opened, lease):
        return most
    books.open(opened, lease)
    size = _reserve(books, call, least, most)
    if size is None:
        raise _refusal(books, call, least)
    if size < most:
        held = _sized(call, size)
        books.enlarge(call.draft.request_id, held.amount, held.counted)
    return size


def _sized(call: Hold, more: int) -> Hold:
    """The hold, so much larger."""
    draft = call.draft
    return call._replace(
        amount=call.amount + (more if draft.prepaid else 0),
        counted=call.counted + (more if draft.key is not None else 0),
    )


def _reserve(books: Books, call: Hold, least: int, most: int) -> int | None:
    """Set aside what there is up to ``most``: of the account's money, and of the key's
    budget; ``None`` if there is less than ``least``."""
    draft, size = call.draft, most
    for _ in range(LOOKS):
        if size < least:
            return None
        if not _count(books, call, Spending(held=size), call.budget):
            size = min(size, _room_of_key(books, call))
        elif not draft.prepaid or books.move(draft.account, Balance(available=-size, held=size)):
            return size
        else:
            _count(books, call, Spending(held=-size))
            size = min(size, books.balance(draft.account).available)
    raise _unsteady()


def _refusal(books: Books, call: Hold, least: int) -> APIError:
    balance = books.balance(call.draft.account)
    return no_room(
        least,
        owned=balance.available + balance.held if call.draft.prepaid else None,
        unspent=None if call.budget is None else call.budget - _spending(books, call).spent,
    )


def _enlarge(books: Books, hold: Hold) -> bool:
    """Let the hold grow to the cost so far, as far as money and budget go; whether they
    went that far."""
    draft = hold.draft
    size = hold.amount if draft.prepaid else hold.counted
    if draft.cost <= size or not (draft.prepaid or draft.key is not None):
        return True
    more = _reserve(books, hold, 1, draft.cost - size)
    if more is None:
        return False
    larger = _sized(hold, more)
    books.enlarge(draft.request_id, larger.amount, larger.counted)
    return size + more >= draft.cost


def _count(books: Books, call: Hold, change: Spending, budget: int | None = None) -> bool:
    key = call.draft.key
    return key is None or books.spend(key, call.window, change, budget)


def _spending(books: Books, call: Hold) -> Spending:
    key = call.draft.key
    return books.spending(key, call.window) if key is not None else Spending()


def _room_of_key(books: Books, call: Hold) -> int:
    spending = _spending(books, call)
    return (call.budget or 0) - spending.spent - spending.held


# --- settling ----------------------------------------------------------------------


def _settle(books: Books, entry: Entry) -> Entry:
    """Charge what ``entry`` costs and the account has, and write the row."""
    settled = books.settle_at_once(entry)
    if settled is not None:
        return settled
    hold = books.take(entry.request_id)
    if hold is not None:
        return _write(books, entry, hold)
    written = books.entry(entry.request_id)
    if written is None:
        return _write(books, entry, Hold(entry))
    row, window = written
    return _complete(books, entry, row, window) if row.outcome == ABANDONED else row


def _settle_lost(books: Books, account: str | None) -> bool:
    hold = books.take_lost(account)
    if hold is None:
        return False
    _write(books, hold.draft._replace(outcome=ABANDONED), hold)
    return True


def _write(books: Books, entry: Entry, hold: Hold) -> Entry:
    row = entry._replace(settled_at=_datetime(books.now()))
    books.write(row, hold.window)
    return _charge(books, row, hold, paid=0)


def _complete(books: Books, entry: Entry, row: Entry, window: str) -> Entry:
    """A call that was given up as lost has come back: let its row say what it really took."""
    entry = entry._replace(settled_at=row.settled_at)
    if books.rewrite(entry, ABANDONED):
        return _charge(books, entry, Hold(entry, window=window), paid=row.cost)
    written = books.entry(entry.request_id)
    assert written is not None
    return written[0]


def _charge(books: Books, row: Entry, hold: Hold, *, paid: int) -> Entry:
    """Release what is held and take the cost, or all there is, of which ``paid`` has been
    taken before; the row as it is now. The account comes last: its other calls wait for it.
    """
    cost = row.cost
    _count(books, hold, Spending(spent=cost - paid, held=-hold.counted))
    for _ in range(LOOKS):
        if books.move(row.account, _change(hold, cost - paid)):
            break
        affordable = max(0, hold.amount + paid + books.balance(row.account).available)
        _count(books, hold, Spending(spent=min(cost, affordable) - cost))
        cost = min(cost, affordable)
    else:
        raise _unsteady()
    if cost < row.cost:
        row = row._replace(cost=cost)
        books.rewrite(row, row.outcome)
    return row


def _change(hold: Hold, taken: int) -> Balance:
    if not hold.draft.prepaid:
        return Balance(invoiced=taken)
    return Balance(available=hold.amount - taken, held=-hold.amount, spent=taken)


def _unsteady() -> BrokenOff:
    return BrokenOff(
        "The service cannot check your account at the moment. Try again shortly.",
        detail="a balance never was what had just been read; is its database's isolation level "
        "READ COMMITTED?",
        retry_after=1,
    )


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
