"""What a database gives to the rules of money: small acts inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple, Protocol

from .base import Balance, Entry


class Hold(NamedTuple):
    """An open call: its draft is what the sweep would write, ``draft.cost`` the floor.

    ``amount`` is held of the account's money, which is none if the account is invoiced,
    and ``counted`` against the key's ``budget`` in the stretch of time ``window``; all in
    nano-dollars.
    """

    draft: Entry
    amount: int = 0
    counted: int = 0
    window: str = ""
    budget: int | None = None


class Spending(NamedTuple):
    """What a key has spent and holds in one window, in nano-dollars."""

    spent: int = 0
    held: int = 0


class Sum(NamedTuple):
    """A figure of an account or of a key in a window: as its own row has it (``is_said``),
    or as others add up to it. All of one list are of one moment."""

    whose: str
    name: str
    is_said: bool
    total: int


class Books(Protocol):
    """The tables, inside one transaction that is undone if anything is raised.

    Times are seconds since 1970 of the database's own clock, leases seconds.
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

    def open(self, hold: Hold, lease: float) -> None:
        """Write down a hold.

        :raises Duplicate: its request has a hold or a row.
        """

    def open_at_once(self, hold: Hold, lease: float) -> bool:
        """Write down a hold and set aside all of it in one statement, before anything else.
        False if nothing was done: something is not as usual, or the database has no such
        statement."""

    def renew(self, draft: Entry, lease: float) -> Hold | None:
        """Give an open hold a new draft and lease; the hold, locked until the end of
        the transaction, or ``None`` if there is none."""

    def enlarge(self, request_id: str, amount: int, counted: int) -> None:
        """Set the amounts of an open hold."""

    def take(self, request_id: str) -> Hold | None:
        """Remove a hold and return it; ``None`` if there is none (any more)."""

    def take_lost(self, account: str | None) -> Hold | None:
        """Remove a hold whose lease is over, and that nobody else is at, and return it;
        ``None`` if there is none, of this account or of any."""

    def has_lost(self, account: str) -> bool:
        """Whether there is a hold of the account whose lease is over."""

    def entry(self, request_id: str) -> tuple[Entry, str] | None:
        """The row of a request, and the window that it counts in."""

    def settle_at_once(self, entry: Entry) -> Entry | None:
        """Close a hold that pays for the entry, charge it and write the row in one statement,
        before anything else; the row. ``None`` if nothing was done, as at :meth:`open_at_once`.
        """

    def write(self, entry: Entry, window: str) -> None:
        """Write down a row.

        :raises Duplicate: its request has one.
        """

    def rewrite(self, entry: Entry, outcome: str) -> bool:
        """Write down a row in place of the one of its request with this ``outcome``.
        False if there is none."""

    def top_up(self, reference: str) -> tuple[str, int] | None:
        """The account and amount booked with this reference."""

    def book(self, reference: str, account: str, amount: int, at: datetime) -> None:
        """Write down a top-up.

        :raises Duplicate: the reference has been booked.
        """

    def account_sums(self) -> Iterable[Sum]:
        """What the accounts' rows say, and what holds, rows and top-ups add up to."""

    def key_sums(self) -> Iterable[Sum]:
        """The same of the keys' rows, in each window, and of holds and rows."""


class Duplicate(Exception):
    """A row of this name has been written by somebody else meanwhile."""
