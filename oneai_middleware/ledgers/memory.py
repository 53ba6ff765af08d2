"""Money and the record of calls in this process: for one worker, and for tests."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self

from ..accounts import Period, read_accounts, read_tiers
from ..errors import (
    APIError,
    ConfigurationError,
    HoldLost,
)
from ..per_process import PerProcess
from .base import (
    ABANDONED,
    Balance,
    Entry,
    Ledger,
    UsageRow,
    budget_window,
    check_cost,
    check_top_up,
    check_total,
)
from .refusals import booked_otherwise, held_before, no_room, used_up

KEPT_ENTRIES = 10_000


class MemoryLedger(Ledger):
    """Exact sums for every account, and the last 10,000 entries of all together.

    ``balances`` are what the accounts start with, in nano-dollars; ``clock``
    answers seconds and never goes back, ``now`` the time of day. Nothing survives
    the process, and a forked child starts from ``balances``.
    """

    one_process = True

    def __init__(
        self,
        balances: Mapping[str, int] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        opening = dict(balances or {})
        self._clock = clock
        self._now = now
        self._state = PerProcess(lambda: _Books(opening))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is not None:
            raise ConfigurationError(f"ledger: {cls.__name__} is not configured by a URL")
        declared = read_accounts(settings["accounts"], read_tiers(settings["tiers"]))
        return cls({name: row.balance for name, row in declared.items()})

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
        books = self._state()
        purse = draft.key, budget_window(period, self._now()) if period else ""
        with books.lock:
            now = self._clock()
            room = books.room(draft, purse, budget)
            if room < least:
                books.sweep(now, self._now(), draft.account)
                room = books.room(draft, purse, budget)
            size = int(min(most, room))
            if size < least:
                raise books.refusal(draft, purse, least, budget)
            books.open(_Hold(draft, purse, budget, now + lease), size)
            return size

    def checkpoint(self, draft: Entry, *, lease: float) -> None:
        check_cost(draft)
        books = self._state()
        with books.lock:
            hold = books.holds.get(draft.request_id)
            if hold is None:
                if books.is_lost(draft.request_id):
                    raise HoldLost
                return  # it has been settled meanwhile
            hold.draft = draft
            hold.expires = self._clock() + lease
            if not books.enlarge(hold, draft.cost):
                raise used_up()

    def settle(self, entry: Entry) -> Entry:
        check_cost(entry)
        books = self._state()
        with books.lock:
            return books.settle(entry, self._now())

    def top_up(self, account: str, amount: int, reference: str) -> bool:
        check_top_up(account, amount, reference)
        books = self._state()
        with books.lock:
            booked = books.references.get(reference)
            if booked is None:
                check_total(books.sums[account].topped_up + amount)
                books.references[reference] = (account, amount)
                books.add(account, amount)
                return True
            if booked != (account, amount):
                raise booked_otherwise(reference)
            return False

    def balance(self, account: str) -> Balance:
        books = self._state()
        with books.lock:
            sums = books.sums.get(account)
            return Balance(**asdict(sums)) if sums else Balance()

    def entries(
        self, account: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[Entry]:
        books = self._state()
        with books.lock:
            rows = [row for row in books.rows.values() if row.account == account]
        return [row for row in rows if _is_within(row, since, until)]

    def usage(
        self,
        account: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: Literal["day", "model"] = "day",
    ) -> list[UsageRow]:
        groups: dict[str, UsageRow] = {}
        for row in self.entries(account, since=since, until=until):
            name = row.model if by == "model" else _day(row)
            sums = groups.get(name, UsageRow(name, 0, 0, 0, 0))
            groups[name] = UsageRow(
                name,
                sums.calls + 1,
                sums.prompt_tokens + row.prompt_tokens,
                sums.completion_tokens + row.completion_tokens,
                sums.cost + row.cost,
            )
        return [groups[name] for name in sorted(groups)]

    def sweep(self) -> int:
        books = self._state()
        with books.lock:
            return books.sweep(self._clock(), self._now())

    def audit(self) -> list[str]:
        books = self._state()
        with books.lock:
            return list(books.faults())


@dataclass(slots=True)
class _Sums:
    """The money of one account; the names are those of :class:`Balance`."""

    available: int = 0
    held: int = 0
    spent: int = 0
    topped_up: int = 0
    invoiced: int = 0


Purse = tuple[str | None, str]
"""A key and the stretch of time whose budget a call counts against."""


@dataclass(slots=True)
class _Hold:
    """An open call, or one that was lost. Its draft is what the sweep writes, and the
    draft's cost the floor; ``size`` is held of the account's money if that is prepaid,
    and counts against the ``budget`` of the purse."""

    draft: Entry
    purse: Purse
    budget: int | None
    expires: float
    size: int = 0

    @property
    def amount(self) -> int:
        """What is held of the account's money."""
        return self.size if self.draft.prepaid else 0


class _Books:
    """What one process knows. The lock is held over every use.

    ``rows`` is the record of calls, oldest first, and what makes settling
    idempotent; ``lost`` are the calls that were swept, which may come back;
    ``spent_by`` and ``held_by`` count by purse.
    """

    def __init__(self, opening: Mapping[str, int]) -> None:
        self.lock = threading.Lock()
        self.sums: defaultdict[str, _Sums] = defaultdict(_Sums)
        self.holds: dict[str, _Hold] = {}
        self.lost: OrderedDict[str, _Hold] = OrderedDict()
        self.rows: OrderedDict[str, Entry] = OrderedDict()
        self.references: dict[str, tuple[str, int]] = {}
        self.spent_by: defaultdict[Purse, int] = defaultdict(int)
        self.held_by: defaultdict[Purse, int] = defaultdict(int)
        for account, amount in opening.items():
            self.add(account, amount)

    def add(self, account: str, amount: int) -> None:
        self.sums[account].available += amount
        self.sums[account].topped_up += amount

    def room(self, draft: Entry, purse: Purse, budget: int | None) -> float:
        """The most that a call may hold now."""
        available = self.sums[draft.account].available if draft.prepaid else math.inf
        if budget is None:
            return available
        return min(available, budget - self.spent_by[purse] - self.held_by[purse])

    def refusal(self, draft: Entry, purse: Purse, least: int, budget: int | None) -> APIError:
        """Why there is no room for ``least``."""
        sums = self.sums[draft.account]
        return no_room(
            least,
            owned=sums.available + sums.held if draft.prepaid else None,
            unspent=None if budget is None else budget - self.spent_by[purse],
        )

    def open(self, hold: _Hold, size: int) -> None:
        id = hold.draft.request_id
        if id in self.holds or id in self.rows:
            raise held_before(id)
        self.holds[id] = hold
        if hold.draft.prepaid or hold.draft.key:
            self.grow(hold, size)

    def is_lost(self, request_id: str) -> bool:
        """Whether the call has been swept, or was never here."""
        return request_id in self.lost or request_id not in self.rows

    def enlarge(self, hold: _Hold, to: int) -> bool:
        """Hold up to ``to`` in all, as far as money and budget go; whether they went that
        far."""
        if not (hold.draft.prepaid or hold.draft.key):
            return True
        room = self.room(hold.draft, hold.purse, hold.budget)
        self.grow(hold, max(0, int(min(to - hold.size, room))))
        return hold.size >= to

    def grow(self, hold: _Hold, more: int) -> None:
        """Set so much more aside, or less."""
        hold.size += more
        self.held_by[hold.purse] += more
        if hold.draft.prepaid:
            sums = self.sums[hold.draft.account]
            sums.available -= more
            sums.held += more

    def settle(self, entry: Entry, at: datetime) -> Entry:
        hold = self.holds.pop(entry.request_id, None)
        if hold is not None:
            self.grow(hold, -hold.size)
            return self.write(entry._replace(settled_at=at), hold.purse)
        lost = self.lost.pop(entry.request_id, None)
        if lost is not None:  # and it has come back
            self.charge(lost.draft, lost.purse, -lost.draft.cost)
            return self.write(entry._replace(settled_at=lost.draft.settled_at), lost.purse)
        written = self.rows.get(entry.request_id)
        return written or self.write(entry._replace(settled_at=at), (entry.key, ""))

    def write(self, entry: Entry, purse: Purse) -> Entry:
        """Take what the entry costs and the account has, and write the row."""
        cost = entry.cost
        if entry.prepaid and cost > self.sums[entry.account].available:
            cost = self.sums[entry.account].available
            entry = entry._replace(cost=cost)
        self.charge(entry, purse, cost)
        self.rows[entry.request_id] = entry
        if len(self.rows) > KEPT_ENTRIES:
            self.rows.popitem(last=False)
        return entry

    def charge(self, entry: Entry, purse: Purse, cost: int) -> None:
        sums = self.sums[entry.account]
        if entry.prepaid:
            sums.available -= cost
            sums.spent += cost
        else:
            sums.invoiced += cost
        self.spent_by[purse] += cost

    def sweep(self, now: float, at: datetime, account: str | None = None) -> int:
        """Settle at their floor the holds that have expired; how many there were."""
        expired = [
            hold
            for hold in self.holds.values()
            if hold.expires <= now and account in (None, hold.draft.account)
        ]
        for hold in expired:
            hold.draft = self.settle(hold.draft._replace(outcome=ABANDONED), at)
            self.lost[hold.draft.request_id] = hold
            if len(self.lost) > KEPT_ENTRIES:
                self.lost.popitem(last=False)
        return len(expired)

    def faults(self) -> Iterator[str]:
        """A sentence for every account whose books do not add up."""
        held: defaultdict[str, int] = defaultdict(int)
        for hold in self.holds.values():
            held[hold.draft.account] += hold.amount
        for account, sums in self.sums.items():
            if sums.available + sums.held + sums.spent != sums.topped_up:
                yield f"account {account!r}: available + held + spent is not what was topped up"
            if sums.held != held[account]:
                yield f"account {account!r}: held is not the sum of its open holds"
            if min(sums.available, sums.held, sums.spent) < 0:
                yield f"account {account!r}: a sum is below zero"


def _is_within(row: Entry, since: datetime | None, until: datetime | None) -> bool:
    at = _settled_at(row)
    return (since is None or at >= since) and (until is None or at < until)


def _day(row: Entry) -> str:
    return _settled_at(row).date().isoformat()


def _settled_at(row: Entry) -> datetime:
    assert row.settled_at is not None  # a row is always written with its time
    return row.settled_at
