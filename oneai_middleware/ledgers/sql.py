"""Money in an SQL database: SQLite, PostgreSQL, MariaDB."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

import sqlalchemy as sa

from ..database.engine import Database, database_at
from ..database.kinds import insert, is_passing
from ..database.tables import BALANCES, ENTRIES, HOLDS, SPENDING, TOP_UPS
from ..errors import ConfigurationError, StoreUnavailable
from ..protocol import json
from .base import Balance, Entry, UsageRow
from .bookkeeping import BookkeepingLedger, Books, BrokenOff, Duplicate, Hold, Spending

MICRO = 1_000_000

# What the rows must add up to.
_SUMS: dict[str, tuple[sa.Column[int], sa.ColumnElement[bool]]] = {
    "held": (HOLDS.c.amount, sa.true()),
    "spent": (ENTRIES.c.cost, ENTRIES.c.prepaid),
    "invoiced": (ENTRIES.c.cost, ~ENTRIES.c.prepaid),
    "topped_up": (TOP_UPS.c.amount, sa.true()),
}


class SQLLedger(BookkeepingLedger):
    """Balances and entries in the tables of ``database``.

    ``clock``, seconds since 1970, replaces the database's own in tests.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(self._begin)
        self._database = database
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is None:
            raise ConfigurationError("ledger: a database's address, such as 'sqlite:///oneai.db'")
        return cls(database_at(url))

    def upgrade(self) -> str:
        return self._database.upgrade()

    def audit(self) -> list[str]:
        with self._database.patiently_reading() as connection:
            return list(_SQLBooks(connection, self._clock).faults())

    @contextlib.contextmanager
    def _begin(self) -> Iterator[Books]:
        try:
            with self._database.transaction() as connection:
                yield _SQLBooks(connection, self._clock)
        except StoreUnavailable as error:
            if is_passing(error.__cause__):
                raise BrokenOff(error.message, detail=error.detail) from error
            raise

    def entries(
        self, account: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Iterable[Entry]:
        chosen = sa.select(ENTRIES).where(*_within(account, since, until))
        with self._database.reading() as connection:
            rows = connection.execute(chosen.order_by(ENTRIES.c.settled_at, ENTRIES.c.request_id))
            return [_entry(row) for row in rows]

    def usage(
        self,
        account: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: Literal["day", "model"] = "day",
    ) -> Iterable[UsageRow]:
        group = ENTRIES.c.model if by == "model" else ENTRIES.c.day
        sums = (ENTRIES.c.prompt_tokens, ENTRIES.c.completion_tokens, ENTRIES.c.cost)
        chosen = (
            sa.select(group, sa.func.count(), *map(sa.func.sum, sums))
            .where(*_within(account, since, until))
            .group_by(group)
            .order_by(group)
        )
        with self._database.reading() as connection:
            return [
                UsageRow(name, *(int(figure) for figure in figures))
                for name, *figures in connection.execute(chosen)
            ]


class _SQLBooks:
    """See :class:`~.bookkeeping.Books`."""

    def __init__(self, connection: sa.Connection, clock: Callable[[], float] | None) -> None:
        self._connection = connection
        self._clock = clock

    def now(self) -> float:
        if self._clock is not None:
            return self._clock()
        kind = self._connection.dialect.name
        if kind == "sqlite":
            return time.time()  # the file is on this machine
        clock = (
            sa.func.extract("epoch", sa.func.clock_timestamp())
            if kind == "postgresql"
            else sa.func.unix_timestamp(sa.func.now(6))
        )
        return float(self._connection.execute(sa.select(clock)).scalar_one())

    # --- money ----------------------------------------------------------------

    def balance(self, account: str) -> Balance:
        row = self._row(BALANCES, account=account)
        return Balance(*(getattr(row, name) for name in Balance._fields)) if row else Balance()

    def move(self, account: str, change: Balance) -> bool:
        room = BALANCES.c.available >= -change.available
        return self._add(BALANCES, {"account": account}, change._asdict(), room)

    def spending(self, key: str, window: str) -> Spending:
        row = self._row(SPENDING, key=key, budget_window=window)
        return Spending(row.spent, row.held) if row else Spending()

    def spend(self, key: str, window: str, change: Spending, budget: int | None = None) -> bool:
        names = {"key": key, "budget_window": window}
        if budget is None:
            return self._add(SPENDING, names, change._asdict())
        more = change.spent + change.held
        room = SPENDING.c.spent + SPENDING.c.held <= budget - more
        return self._add(SPENDING, names, change._asdict(), room, fits=more <= budget)

    def _add(
        self,
        table: sa.Table,
        names: Mapping[str, str],
        change: Mapping[str, int],
        room: sa.ColumnElement[bool] | None = None,
        *,
        fits: bool = True,
    ) -> bool:
        """Add ``change`` to the figures of a row, if there is ``room``. A row that is
        missing is made, if the change ``fits`` one of zeros."""
        its = [table.c[name] == value for name, value in names.items()]
        added = {name: table.c[name] + more for name, more in change.items() if more}
        if not added:
            return True
        update = sa.update(table).where(*its).values(added)
        if room is not None:
            update = update.where(room)
        if self._connection.execute(update).rowcount:
            return True
        if not fits or min(change.values()) < 0:
            return False
        missing = self._row(table, **names) is None
        if missing and insert(self._connection, table, {**names, **change}):
            return True
        # Somebody may have been faster to make it.
        return self._connection.execute(update).rowcount > 0

    # --- holds ------------------------------------------------------------------

    def open(self, hold: Hold, expires: float) -> None:
        draft = hold.draft
        row = {
            "request_id": draft.request_id,
            "account": draft.account,
            "amount": hold.amount,
            "budget_window": hold.window,
            "expires": _micro(expires),
            "draft": _packed(draft),
        }
        if not insert(self._connection, HOLDS, row):
            raise Duplicate(draft.request_id)

    def renew(self, draft: Entry, expires: float) -> Hold | None:
        its = HOLDS.c.request_id == draft.request_id
        renewed = sa.update(HOLDS).where(its)
        values = {"draft": _packed(draft), "expires": _micro(expires)}
        if not self._connection.execute(renewed.values(values)).rowcount:
            return None
        return self._hold(self._connection.execute(sa.select(HOLDS).where(its)).one())

    def enlarge(self, request_id: str, amount: int) -> None:
        enlarged = sa.update(HOLDS).where(HOLDS.c.request_id == request_id)
        self._connection.execute(enlarged.values(amount=amount))

    def take(self, request_id: str, expired: float | None = None) -> Hold | None:
        # Locked first: a checkpoint might enlarge it before it is removed.
        chosen = sa.select(HOLDS).where(HOLDS.c.request_id == request_id).with_for_update()
        if expired is not None:
            chosen = chosen.where(HOLDS.c.expires <= _micro(expired))
        row = self._connection.execute(chosen).one_or_none()
        if row is None:
            return None
        self._connection.execute(sa.delete(HOLDS).where(HOLDS.c.request_id == request_id))
        return self._hold(row)

    def expired(self, now: float, account: str | None, most: int) -> list[str]:
        chosen = sa.select(HOLDS.c.request_id).where(HOLDS.c.expires <= _micro(now))
        if account is not None:
            chosen = chosen.where(HOLDS.c.account == account)
        return list(self._connection.scalars(chosen.order_by(HOLDS.c.expires).limit(most)))

    @staticmethod
    def _hold(row: Any) -> Hold:
        return Hold(Entry(**json.decode(row.draft.encode())), row.amount, row.budget_window)

    # --- rows ---------------------------------------------------------------------

    def entry(self, request_id: str) -> Entry | None:
        row = self._row(ENTRIES, request_id=request_id)
        return None if row is None else _entry(row)

    def write(self, entry: Entry) -> None:
        at = entry.settled_at
        assert at is not None
        values = {**entry._asdict(), "settled_at": _micro_of(at), "day": at.date().isoformat()}
        if not insert(self._connection, ENTRIES, values):
            raise Duplicate(entry.request_id)

    def top_up(self, reference: str) -> tuple[str, int] | None:
        row = self._row(TOP_UPS, reference=reference)
        return None if row is None else (row.account, row.amount)

    def book(self, reference: str, account: str, amount: int, at: datetime) -> None:
        names = {"reference": reference, "account": account}
        if not insert(
            self._connection, TOP_UPS, {**names, "amount": amount, "booked_at": _micro_of(at)}
        ):
            raise Duplicate(reference)

    def faults(self) -> Iterator[str]:
        said, added = self._sums()
        for account in sorted({account for account, _ in (*said, *added)}):
            row = {name: said.get((account, name), 0) for name in Balance._fields}
            if row["available"] + row["held"] + row["spent"] != row["topped_up"]:
                yield f"{account}: available, held and spent are not what was topped up: {row}"
            for name in _SUMS:
                total = added.get((account, name), 0)
                if row[name] != total:
                    yield f"{account}: {name} is {row[name]}, its rows add up to {total}"

    def _sums(self) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
        """What the balances say and what the rows add up to, by account and name.

        One statement sees one moment, though calls go on meanwhile.
        """
        parts = [
            sa.select(BALANCES.c.account, sa.literal(name), sa.literal(True), BALANCES.c[name])
            for name in Balance._fields
        ]
        for name, (column, condition) in _SUMS.items():
            account = column.table.c.account
            summed = sa.select(account, sa.literal(name), sa.literal(False), sa.func.sum(column))
            parts.append(summed.where(condition).group_by(account))
        said: dict[tuple[str, str], int] = {}
        added: dict[tuple[str, str], int] = {}
        for account, name, is_said, total in self._connection.execute(sa.union_all(*parts)):
            (said if is_said else added)[account, name] = int(total)
        return said, added

    def _row(self, table: sa.Table, **names: str) -> Any:
        its = [table.c[name] == value for name, value in names.items()]
        return self._connection.execute(sa.select(table).where(*its)).one_or_none()


def _within(
    account: str, since: datetime | None, until: datetime | None
) -> list[sa.ColumnElement[bool]]:
    conditions = [ENTRIES.c.account == account]
    if since is not None:
        conditions.append(ENTRIES.c.settled_at >= _micro_of(since))
    if until is not None:
        conditions.append(ENTRIES.c.settled_at < _micro_of(until))
    return conditions


def _packed(draft: Entry) -> str:
    return json.encode({**draft._asdict(), "settled_at": None}).decode()


def _entry(row: Any) -> Entry:
    values = {name: getattr(row, name) for name in Entry._fields}
    at = datetime.fromtimestamp(row.settled_at // MICRO, UTC)
    return Entry(**{**values, "settled_at": at.replace(microsecond=row.settled_at % MICRO)})


def _micro(seconds: float) -> int:
    return round(seconds * MICRO)


def _micro_of(at: datetime) -> int:
    whole = at.replace(microsecond=0)
    return int(whole.timestamp()) * MICRO + at.microsecond
