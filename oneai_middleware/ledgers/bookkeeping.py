"""The rules of money over any database: hold, checkpoint, settle, sweep, audit.

A database gives a handful of small acts inside one transaction (:class:`Books`);
what they amount to is written once, here. Money moves by conditional updates, whose
row count says whether they did: no row is read first and locked, nothing can be
spent twice, and no balance goes below zero.
"""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeVar

from ..accounts import Period
from ..errors import (
    APIError,
    BalanceOnHold,
    InsufficientBalance,
    KeyBudgetExhausted,
    ReferenceConflict,
    StoreUnavailable,
)
from .base import Balance, Entry, Ledger, budget_window, check_top_up, check_total

T = TypeVar("T")

SWEPT_AT_ONCE = 100
"""Lost holds that are looked for at a time."""
TRIES = 5
"""How often a transaction is begun that the database breaks off."""


class Hold(NamedTuple):
    """An open call: its draft is what the sweep would write, ``draft.cost`` the floor.

    ``amount`` is in nano-dollars; ``window`` names the stretch of time whose budget
    it counts against.
    """

    draft: Entry
    amount: int
    window: str


class Spending(NamedTuple):
    """What a key has spent and holds in one window, in nano-dollars."""

    spent: int = 0
    held: int = 0


class Books(Protocol):
    """The tables, inside one transaction that is undone if anything is raised.

    Times are seconds since 1970 of the database's own clock.
    """

    def now(self) -> float:
        """The time."""

    def balance(self, account: str) -> Balance:
        """The account's row as last committed, or zeros."""

    def move(self, account: str, change: Balance) -> bool:
        """Add ``change`` to the account's row, unless ``available`` would go below zero.

        A missing row counts as zeros. False if nothing was changed.
        """

    def spending(self, key: str, window: str) -> Spending:
        """The key's row of this window, or zeros."""

    def spend(self, key: str, window: str, change: Spending, budget: int | None = None) -> bool:
        """Add ``change`` to the key's row, unless spent and held together would go
        beyond ``budget``. False if nothing was changed."""

    def open(self, hold: Hold, expires: float) -> None:
        """Write down a hold.

        :raises Duplicate: its request has one.
        """

    def renew(self, draft: Entry, expires: float) -> Hold | None:
        """Give an open hold a new draft and time; the hold, locked until the end of
        the transaction, or ``None`` if there is none."""

    def enlarge(self, request_id: str, amount: int) -> None:
        """Set the amount of an open hold."""

    def take(self, request_id: str, expired: float | None = None) -> Hold | None:
        """Remove a hold and return it; ``None`` if there is none (any more), or none
        that had expired by the time ``expired``."""

    def expired(self, now: float, account: str | None, most: int) -> list[str]:
        """The requests whose holds have expired, at most so many."""

    def entry(self, request_id: str) -> Entry | None:
        """The row of a request."""

    def write(self, entry: Entry) -> None:
        """Write down a row.

        :raises Duplicate: its request has one.
        """

    def top_up(self, reference: str) -> tuple[str, int] | None:
        """The account and amount booked with this reference."""

    def book(self, reference: str, account: str, amount: int, at: datetime) -> None:
        """Write down a top-up.

        :raises Duplicate: the reference has been booked.
        """

    def faults(self) -> Iterable[str]:
        """Sentences about sums of rows that differ from what the balances say."""


class Duplicate(Exception):
    """A row of this name has been written by somebody else meanwhile."""


class BrokenOff(StoreUnavailable):
    """The database undid a transaction in favour of another: it may be begun again."""


class BookkeepingLedger(Ledger):
    """A ledger over a database's :class:`Books`.

    ``books()`` begins a transaction and leaves it committed, or undone if anything
    is raised. It raises StoreUnavailable when the database cannot answer in time, and
    :class:`BrokenOff` when it could at once.
    """

    settling = 5.0
    """Seconds in which a settlement that fails is tried again: its call has been
    answered, and one that is lost is an answer given away."""

    def __init__(self, books: Callable[[], AbstractContextManager[Books]]) -> None:
        self._books = books

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
        def act(books: Books) -> int | APIError:
            if books.entry(draft.request_id) is not None:
                raise Duplicate(draft.request_id)
            now = books.now()
            call = _Holding(books, draft, least, budget, budget_window(period, _datetime(now)))
            amount = call.take(most)
            if amount is None:
                return call.refusal()
            books.open(Hold(draft, amount if draft.prepaid else 0, call.window), now + lease)
            return amount

        try:
            held = self._run(act)
            if isinstance(held, APIError) and draft.prepaid and self._sweep(draft.account):
                held = self._run(act)
        except Duplicate:
            raise ValueError(
                f"request {draft.request_id!r} has a hold or an entry already"
            ) from None
        if isinstance(held, APIError):
            raise held
        return held

    def checkpoint(self, draft: Entry, *, lease: float) -> None:
        def act(books: Books) -> bool:
            hold = books.renew(draft, books.now() + lease)
            # Without one the sweep was faster, and its row is written.
            return hold is None or not draft.prepaid or _enlarge(books, hold, draft)

        if not self._run(act):
            raise InsufficientBalance("The balance of this account is used up.")

    def settle(self, entry: Entry) -> Entry:
        end = time.monotonic() + self.settling
        while True:
            try:
                return self._settle(entry)
            except StoreUnavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(random.uniform(0.1, 0.3))

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
            raise ReferenceConflict(
                f"top-up reference {reference!r} was booked with another amount "
                "or for another account"
            )
        return False

    def balance(self, account: str) -> Balance:
        return self._run(lambda books: books.balance(account))

    def sweep(self) -> int:
        count = 0
        while swept := self._sweep(None):
            count += swept
        return count

    def audit(self) -> list[str]:
        return self._run(lambda books: list(books.faults()))

    def _run(self, act: Callable[[Books], T]) -> T:
        """Do ``act`` in one transaction, and again if that was broken off."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(BrokenOff), self._books() as books:
                return act(books)
        with self._books() as books:
            return act(books)

    def _settle(self, entry: Entry) -> Entry:
        try:
            return self._run(lambda books: _settle(books, entry, books.take(entry.request_id)))
        except Duplicate:
            written = self._run(lambda books: books.entry(entry.request_id))
        assert written is not None
        return written

    def _sweep(self, account: str | None) -> int:
        """Settle lost calls at their floor, some at a time; how many there were.

        Each in a transaction of its own: calls that live need the same rows.
        """
        lost = self._run(lambda books: books.expired(books.now(), account, SWEPT_AT_ONCE))
        return sum(self._run(functools.partial(_settle_lost, id)) for id in lost)


def _settle_lost(request_id: str, books: Books) -> bool:
    hold = books.take(request_id, books.now())
    if hold is None:
        return False  # somebody was faster, or its call has come back
    _settle(books, hold.draft, hold)
    return True


class _Holding:
    """One try to set money aside."""

    def __init__(
        self, books: Books, draft: Entry, least: int, budget: int | None, window: str
    ) -> None:
        self.window = window
        self._books = books
        self._draft = draft
        self._least = least
        self._budget = budget

    def take(self, most: int) -> int | None:
        """Set aside up to ``most``, or nothing if there is less than the least."""
        amount = most
        while amount >= self._least:
            if not self._draft.prepaid:
                return most if self._room_of_key() >= self._least else None
            if not self._move(amount):
                amount = min(amount, self._available())
            elif self._spend(amount):
                return amount
            else:
                self._move(-amount)
                amount = min(amount, self._room_of_key())
        return None

    def refusal(self) -> APIError:
        """Why there is no room: for want of money, or of patience."""
        balance = self._books.balance(self._draft.account)
        if self._draft.prepaid and balance.available + balance.held < self._least:
            return InsufficientBalance("The balance of this account does not cover the request.")
        spending = self._spending()
        if self._budget is not None and self._budget - spending.spent < self._least:
            return KeyBudgetExhausted("The budget of this API key does not cover the request.")
        return BalanceOnHold(
            "The balance is on hold for other requests that are still running. Try again in 1s.",
            retry_after=1,
        )

    def _move(self, amount: int) -> bool:
        return self._books.move(self._draft.account, Balance(available=-amount, held=amount))

    def _available(self) -> int:
        return self._books.balance(self._draft.account).available

    def _spend(self, amount: int) -> bool:
        key = self._draft.key
        return key is None or self._books.spend(
            key, self.window, Spending(held=amount), self._budget
        )

    def _spending(self) -> Spending:
        key = self._draft.key
        return self._books.spending(key, self.window) if key is not None else Spending()

    def _room_of_key(self) -> int:
        spending = self._spending()
        if self._budget is None:
            return 2**62
        return self._budget - spending.spent - (spending.held if self._draft.prepaid else 0)


def _enlarge(books: Books, hold: Hold, draft: Entry) -> bool:
    """Let the hold grow to the cost so far, as far as the money goes."""
    more = draft.cost - hold.amount
    while more > 0:
        if books.move(draft.account, Balance(available=-more, held=more)):
            if draft.key is not None:
                books.spend(draft.key, hold.window, Spending(held=more))
            books.enlarge(draft.request_id, hold.amount + more)
            break
        more = min(more, books.balance(draft.account).available)
    return hold.amount + more >= draft.cost


def _settle(books: Books, entry: Entry, hold: Hold | None) -> Entry:
    """Charge what ``entry`` costs and the account has, and write the row."""
    written = books.entry(entry.request_id)
    if written is not None:
        return written
    held = hold.amount if hold is not None else 0
    at = books.now()
    cost = _charge(books, entry, held)  # late: other calls of the account wait for this row
    if entry.key is not None:
        window = hold.window if hold is not None else ""
        books.spend(entry.key, window, Spending(spent=cost, held=-held))
    row = entry._replace(cost=cost, settled_at=_datetime(at))
    books.write(row)
    return row


def _charge(books: Books, entry: Entry, held: int) -> int:
    """Release what is held and take the cost, or all there is; the amount taken."""
    if not entry.prepaid:
        books.move(entry.account, Balance(invoiced=entry.cost))
        return entry.cost
    cost = entry.cost
    while not books.move(entry.account, Balance(available=held - cost, held=-held, spent=cost)):
        cost = min(cost, held + books.balance(entry.account).available)
    return cost


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
