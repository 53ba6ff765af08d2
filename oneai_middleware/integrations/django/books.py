"""The books in the project's own tables, inside one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F, Model, Q, QuerySet, Sum, Value

from ...ledgers.base import Balance, Entry
from ...ledgers.bookkeeping import Duplicate, Hold, Spending
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
    """See :class:`~oneai_middleware.ledgers.bookkeeping.Books`.

    ``clock``, seconds since 1970, replaces the database's own in tests.
    """

    def __init__(self, connection: Any, clock: Callable[[], float] | None = None) -> None:
        self._connection = connection
        self._clock = clock

    def now(self) -> float:
        """The time."""
        if self._clock is not None:
            return self._clock()
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

    def open(self, hold: Hold, expires: float) -> None:
        """Write down a hold.

        :raises ValueError: its request has a hold or an entry already.
        """
        draft = hold.draft
        row = {
            "request_id": draft.request_id,
            "account": draft.account,
            "amount": hold.amount,
            "budget_window": hold.window,
            "expires": moment(expires),
            "draft": _packed(draft),
        }
        if self.entry(draft.request_id) is not None or not insert(self._rows(models.Hold), row):
            raise ValueError(f"request {draft.request_id!r} has a hold or an entry already")

    def renew(self, draft: Entry, expires: float) -> Hold | None:
        """Give an open hold a new draft and time; the hold, or ``None``."""
        its = self._rows(models.Hold).filter(request_id=draft.request_id)
        if not its.update(draft=_packed(draft), expires=moment(expires)):
            return None
        return _hold(its.get())

    def enlarge(self, request_id: str, amount: int) -> None:
        """Set the amount of an open hold."""
        self._rows(models.Hold).filter(request_id=request_id).update(amount=amount)

    def take(self, request_id: str, expired: float | None = None) -> Hold | None:
        """Remove a hold and return it, if there is one (that had expired)."""
        its = self._rows(models.Hold).filter(request_id=request_id)
        if expired is not None:
            its = its.filter(expires__lte=moment(expired))
        # Locked first: a checkpoint might enlarge it before it is removed.
        row = its.select_for_update().first()
        if row is None:
            return None
        self._rows(models.Hold).filter(request_id=request_id).delete()
        return _hold(row)

    def expired(self, now: float, account: str | None, most: int) -> list[str]:
        """The requests whose holds have expired, at most so many."""
        rows = self._rows(models.Hold).filter(expires__lte=moment(now))
        if account is not None:
            rows = rows.filter(account=account)
        return list(rows.order_by("expires").values_list("request_id", flat=True)[:most])

    # --- rows ---------------------------------------------------------------------

    def entry(self, request_id: str) -> Entry | None:
        """The row of a request."""
        row = self._rows(models.Entry).filter(request_id=request_id).first()
        return None if row is None else entry_of(row)

    def write(self, entry: Entry) -> None:
        """Write down a row.

        :raises Duplicate: its request has one.
        """
        assert entry.settled_at is not None
        day = entry.settled_at.date().isoformat()
        if not insert(self._rows(models.Entry), {**entry._asdict(), "day": day}):
            raise Duplicate(entry.request_id)

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

    def faults(self) -> Iterator[str]:
        """Sentences about sums of rows that differ from what the balances say."""
        said, added = self._sums()
        for account in sorted({account for account, _ in (*said, *added)}):
            row = {name: said.get((account, name), 0) for name in Balance._fields}
            if row["available"] + row["held"] + row["spent"] != row["topped_up"]:
                yield f"{account}: available, held and spent are not what was topped up: {row}"
            for name in ("held", "spent", "topped_up", "invoiced"):
                total = added.get((account, name), 0)
                if row[name] != total:
                    yield f"{account}: {name} is {row[name]}, its rows add up to {total}"

    def _sums(self) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
        """What the balances say and what the rows add up to, by account and name.

        In one statement, which sees one moment: calls go on meanwhile.
        """
        entries = self._rows(models.Entry)
        sums = [
            ("held", self._rows(models.Hold), "amount"),
            ("spent", entries.filter(prepaid=True), "cost"),
            ("invoiced", entries.filter(prepaid=False), "cost"),
            ("topped_up", self._rows(models.TopUp), "amount"),
        ]
        parts = [_part("said", name, self._rows(models.Balance), name) for name in Balance._fields]
        parts += [_part("added", name, rows, column) for name, rows, column in sums]
        found: dict[str, dict[tuple[str, str], int]] = {"said": {}, "added": {}}
        for account, kind, name, total in parts[0].union(*parts[1:], all=True):
            found[kind][account, name] = int(total)
        return found["said"], found["added"]

    def _rows(self, table: Any) -> QuerySet[Any]:
        rows: QuerySet[Any] = table.objects.using(self._connection.alias)
        return rows

    def _latest(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """As others have left them, where a transaction may see what was before it."""
        return rows.select_for_update() if self._connection.vendor == "mysql" else rows


def entry_of(row: models.Entry) -> Entry:
    """The record that a row holds."""
    return Entry(**{name: getattr(row, name) for name in Entry._fields})


def moment(seconds: float) -> datetime:
    """A time of the database's clock, as the tables hold it."""
    return EPOCH + timedelta(seconds=seconds)


def _part(kind: str, name: str, rows: QuerySet[Any], column: str) -> QuerySet[Any]:
    """A sum of ``rows`` for every account, labelled."""
    labels = rows.values("account").annotate(kind=Value(kind), name=Value(name))
    return labels.annotate(total=Sum(column)).values_list("account", "kind", "name", "total")


def _packed(draft: Entry) -> str:
    return json.encode({**draft._asdict(), "settled_at": None}).decode()


def _hold(row: models.Hold) -> Hold:
    return Hold(Entry(**json.decode(row.draft.encode())), row.amount, row.budget_window)
