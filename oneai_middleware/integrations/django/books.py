"""The books in the project's own tables, inside one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F, Model, Q, QuerySet, TextField, Value
from django.db.models import Sum as Total
from django.db.models.functions import Concat

from ...ledgers.base import Balance, Entry
from ...ledgers.books import Duplicate, Hold, Spending, Sum
from ...protocol import json
from . import models
from .database import insert
from .fields import EPOCH

# Not unix_timestamp(now()): where clocks are put back, an hour of it comes twice.
_CLOCKS = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6)) / 1000000",
}


class DjangoBooks:
    """See :class:`~oneai_middleware.ledgers.books.Books`.

    ``clock``, seconds since 1970, replaces the database's own in tests.
    """

    def __init__(self, connection: Any, clock: Callable[[], float] | None = None) -> None:
        self._connection = connection
        self._clock = clock
        self._now: float | None = None

    def now(self) -> float:
        """The time, as it was when it was asked for first."""
        if self._now is None:
            self._now = self._clock() if self._clock is not None else self._read_clock()
        return self._now

    def _read_clock(self) -> float:
        if self._connection.vendor not in _CLOCKS:
            return time.time()  # SQLite's file is on this machine
        with self._connection.cursor() as cursor:
            cursor.execute(_CLOCKS[self._connection.vendor])
            return float(cursor.fetchone()[0])

    # --- money ----------------------------------------------------------------

    def balance(self, account: str) -> Balance:
        """The account's row, or zeros."""
        row = self._latest(self._rows(models.Balance).filter(account=account)).first()
        return Balance(*(getattr(row, name) for name in Balance._fields)) if row else Balance()

    def move(self, account: str, change: Balance) -> bool:
        """Add to the account's row, unless ``available`` would go below zero."""
        room = Q(available__gte=-change.available)
        return self._add(models.Balance, {"account": account}, change._asdict(), room)

    def spending(self, key: str, window: str) -> Spending:
        """The key's row of this window, or zeros."""
        its = self._rows(models.KeySpending).filter(key=key, budget_window=window)
        row = self._latest(its).first()
        return Spending(row.spent, row.held) if row else Spending()

    def spend(self, key: str, window: str, change: Spending, budget: int | None = None) -> bool:
        """Add to the key's row, unless it would go beyond ``budget``."""
        names = {"key": key, "budget_window": window}
        if budget is None:
            return self._add(models.KeySpending, names, change._asdict())
        left = budget - change.spent - change.held
        room = Q(spent__lte=left - F("held"))
        return self._add(models.KeySpending, names, change._asdict(), room, fits=left >= 0)

    def _add(
        self,
        table: type[Model],
        names: Mapping[str, str],
        change: Mapping[str, int],
        room: Q | None = None,
        *,
        fits: bool = True,
    ) -> bool:
        """Add ``change`` to the figures of a row, if there is ``room``. A row that is
        missing is made, if the change ``fits`` one of zeros."""
        added = {name: F(name) + more for name, more in change.items() if more}
        if not added:
            return True
        its = self._rows(table).filter(**names)
        roomy = its.filter(room) if room is not None else its
        if roomy.update(**added):
            return True
        if not fits or min(change.values()) < 0:
            return False
        if not its.exists() and insert(its, {**names, **change}):
            return True
        # Somebody may have been faster to make it.
        return roomy.update(**added) > 0

    # --- holds ------------------------------------------------------------------

    def open(self, hold: Hold, lease: float) -> None:
        """Write down a hold.

        :raises Duplicate: its request has a hold or a row.
        """
        draft = hold.draft
        row = {
            "request_id": draft.request_id,
            "account": draft.account,
            "key": draft.key,
            "amount": hold.amount,
            "counted": hold.counted,
            "budget_window": hold.window,
            "budget": hold.budget,
            "expires": moment(self.now() + lease),
            "draft": _packed(draft),
        }
        if self.entry(draft.request_id) is not None or not insert(self._rows(models.Hold), row):
            raise Duplicate(draft.request_id)

    def open_at_once(self, hold: Hold, lease: float) -> bool:
        """Never: Django has no such statement."""
        return False

    def renew(self, draft: Entry, lease: float) -> Hold | None:
        """Give an open hold a new draft and lease; the hold, or ``None``."""
        its = self._rows(models.Hold).filter(request_id=draft.request_id)
        if not its.update(draft=_packed(draft), expires=moment(self.now() + lease)):
            return None
        return _hold(its.get())

    def enlarge(self, request_id: str, amount: int, counted: int) -> None:
        """Set the amounts of an open hold."""
        its = self._rows(models.Hold).filter(request_id=request_id)
        its.update(amount=amount, counted=counted)

    def take(self, request_id: str) -> Hold | None:
        """Remove a hold and return it, if there is one."""
        return self._take(self._rows(models.Hold).filter(request_id=request_id))

    def take_lost(self, account: str | None) -> Hold | None:
        """Remove a hold whose lease is over, and that nobody else is at, and return it."""
        return self._take(self._lost(account).order_by("expires"), of_others=False)

    def has_lost(self, account: str) -> bool:
        """Whether there is a hold of the account whose lease is over."""
        return self._lost(account).exists()

    def _lost(self, account: str | None) -> QuerySet[Any]:
        rows = self._rows(models.Hold).filter(expires__lte=moment(self.now()))
        return rows if account is None else rows.filter(account=account)

    def _take(self, its: QuerySet[Any], *, of_others: bool = True) -> Hold | None:
        # Locked first: a checkpoint might enlarge it before it is removed.
        can_skip = self._connection.features.has_select_for_update_skip_locked
        row = its.select_for_update(skip_locked=can_skip and not of_others).first()
        if row is None:
            return None
        self._rows(models.Hold).filter(request_id=row.request_id).delete()
        return _hold(row)

    # --- rows ---------------------------------------------------------------------

    def entry(self, request_id: str) -> tuple[Entry, str] | None:
        """The row of a request, and the window that it counts in."""
        row = self._latest(self._rows(models.Entry).filter(request_id=request_id)).first()
        return None if row is None else (entry_of(row), row.budget_window)

    def settle_at_once(self, entry: Entry) -> Entry | None:
        """Never: Django has no such statement."""
        return None

    def write(self, entry: Entry, window: str) -> None:
        """Write down a row.

        :raises Duplicate: its request has one.
        """
        if not insert(self._rows(models.Entry), {**_columns(entry), "budget_window": window}):
            raise Duplicate(entry.request_id)

    def rewrite(self, entry: Entry, outcome: str) -> bool:
        """Write down a row in place of the one of its request with this ``outcome``."""
        its = self._rows(models.Entry).filter(request_id=entry.request_id, outcome=outcome)
        return its.update(**_columns(entry)) > 0

    def top_up(self, reference: str) -> tuple[str, int] | None:
        """The account and amount booked with this reference."""
        row = self._rows(models.TopUp).filter(reference=reference).first()
        return None if row is None else (row.account, row.amount)

    def book(self, reference: str, account: str, amount: int, at: datetime) -> None:
        """Write down a top-up.

        :raises Duplicate: the reference has been booked.
        """
        row = {"reference": reference, "account": account, "amount": amount, "booked_at": at}
        if not insert(self._rows(models.TopUp), row):
            raise Duplicate(reference)

    # --- do they add up? ------------------------------------------------------------

    def account_sums(self) -> Iterator[Sum]:
        """What the accounts' rows say, and what holds, rows and top-ups add up to."""
        entries = self._rows(models.Entry)
        parts = [_said(self._rows(models.Balance), F("account"), name) for name in Balance._fields]
        parts += [
            _added(self._rows(models.Hold), F("account"), "held", "amount"),
            _added(entries.filter(prepaid=True), F("account"), "spent", "cost"),
            _added(entries.filter(prepaid=False), F("account"), "invoiced", "cost"),
            _added(self._rows(models.TopUp), F("account"), "topped_up", "amount"),
        ]
        return _sums(parts)

    def key_sums(self) -> Iterator[Sum]:
        """The same of the keys' rows, in each window, and of holds and rows."""
        whose = Concat(Value("key "), "key", Value(" "), "budget_window", output_field=TextField())
        holds = self._rows(models.Hold).filter(key__isnull=False)
        entries = self._rows(models.Entry).filter(key__isnull=False)
        parts = [_said(self._rows(models.KeySpending), whose, name) for name in Spending._fields]
        parts += [
            _added(holds, whose, "held", "counted"),
            _added(entries, whose, "spent", "cost"),
        ]
        return _sums(parts)

    def _rows(self, table: Any) -> QuerySet[Any]:
        rows: QuerySet[Any] = table.objects.using(self._connection.alias)
        return rows

    def _latest(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """As others have left them, where a transaction may see what was before it."""
        snapshot = self._connection.vendor == "mysql" and self._connection.in_atomic_block
        return rows.select_for_update() if snapshot else rows


def entry_of(row: models.Entry) -> Entry:
    """The record that a row holds."""
    return Entry(**{name: getattr(row, name) for name in Entry._fields})


def moment(seconds: float) -> datetime:
    """A time of the database's clock, as the tables hold it."""
    return EPOCH + timedelta(seconds=seconds)


def _said(rows: QuerySet[Any], whose: Any, name: str) -> QuerySet[Any]:
    return _added(rows, whose, name, name, is_said=True)


def _added(
    rows: QuerySet[Any], whose: Any, name: str, column: str, *, is_said: bool = False
) -> QuerySet[Any]:
    """A sum of ``rows`` for everybody, labelled."""
    labels = rows.annotate(whose=whose).values("whose")
    labels = labels.annotate(figure=Value(name), is_said=Value(int(is_said)), total=Total(column))
    return labels.order_by().values_list("whose", "figure", "is_said", "total")


def _sums(parts: list[QuerySet[Any]]) -> Iterator[Sum]:
    """In one statement, which sees one moment: calls go on meanwhile."""
    for whose, name, is_said, total in parts[0].union(*parts[1:], all=True):
        yield Sum(whose.rstrip(), name, bool(is_said), int(total))


def _packed(draft: Entry) -> str:
    return json.encode({**draft._asdict(), "settled_at": None}).decode()


def _columns(entry: Entry) -> dict[str, Any]:
    assert entry.settled_at is not None
    return {**entry._asdict(), "day": entry.settled_at.date().isoformat()}


def _hold(row: models.Hold) -> Hold:
    """The hold in a row, also in one that a newer version of this package has written."""
    draft = json.decode(row.draft.encode())
    known = {name: draft[name] for name in Entry._fields if name in draft}
    return Hold(Entry(**known), row.amount, row.counted, row.budget_window, row.budget)
