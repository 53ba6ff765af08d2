"""Money in an SQL database: SQLite, PostgreSQL, MariaDB."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

import sqlalchemy as sa

from ..database.engine import Database, database_at
from ..database.kinds import insert, is_written
from ..database.prepared import Prepared
from ..database.tables import BALANCES, ENTRIES, HOLDS, SPENDING, TOP_UPS
from ..errors import ConfigurationError
from ..protocol import json
from .at_once import ASKING, holding, settling
from .audit import faults
from .base import Balance, Entry, UsageRow, check_no_balances
from .bookkeeping import BookkeepingLedger
from .books import Books, Duplicate, Hold, Spending, Sum
from .statements import HELD, statements

MICRO = 1_000_000
UNBOUND = 2**63 - 1
"""More than anybody can spend."""


class SQLLedger(BookkeepingLedger):
    """Balances and entries in the tables of ``database``.

    ``clock``, seconds since 1970, replaces the database's own in tests. Who looks at much
    at once must be ``patient``: callers are not made to wait.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] | None = None,
        patient: bool = False,
    ) -> None:
        self._database = database
        self._clock = clock
        self._reading = database.patiently_reading if patient else database.reading

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is None:
            raise ConfigurationError("ledger: a database's address, such as 'sqlite:///oneai.db'")
        check_no_balances(settings)
        return cls(database_at(url))

    def upgrade(self) -> str:
        return self._database.upgrade()

    @contextlib.contextmanager
    def begin(self, *, reading: bool = False) -> Iterator[Books]:
        enter = self._reading if reading else self._database.transaction
        with enter() as connection:
            yield _SQLBooks(connection, self._clock)

    def patient(self) -> SQLLedger:
        return SQLLedger(self._database, clock=self._clock, patient=True)

    def audit(self) -> list[str]:
        with self._database.patiently_reading() as connection:
            return list(faults(_SQLBooks(connection, self._clock)))

    def entries(
        self, account: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Iterable[Entry]:
        chosen = sa.select(ENTRIES).where(*_within(account, since, until))
        with self._reading() as connection:
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
        with self._reading() as connection:
            return [
                UsageRow(name, *(int(figure) for figure in figures))
                for name, *figures in connection.execute(chosen)
            ]


class _SQLBooks:
    """See :class:`~.bookkeeping.Books`."""

    def __init__(self, connection: sa.Connection, clock: Callable[[], float] | None) -> None:
        kind = connection.dialect.name
        if clock is None and kind == "sqlite":  # the file is on this machine
            clock = time.time
        self._connection = connection
        self._clock = clock
        self._statements = statements(kind, asks_clock=clock is None)
        self._read: int | None = None

    def now(self) -> float:
        if self._read is None:
            self._read = _micro(self._clock()) if self._clock else self._asked_clock()
        return self._read / MICRO

    def _asked_clock(self) -> int:
        row = self._at_once(*ASKING)  # so that another can still follow at once
        if row is None:
            row = self._connection.execute(sa.select(self._statements.now)).one()
        return int(row[0])

    def _time(self) -> dict[str, Any]:
        """The time for a statement, unless that asks the database's clock."""
        return {} if self._clock is None else {"now": _micro(self._clock())}

    # --- money ----------------------------------------------------------------

    def balance(self, account: str) -> Balance:
        row = self._row(BALANCES, account=account)
        return Balance(*(getattr(row, name) for name in Balance._fields)) if row else Balance()

    def move(self, account: str, change: Balance) -> bool:
        return self._add(
            self._statements.move,
            BALANCES,
            {"account": account},
            change._asdict(),
            least=-change.available,
        )

    def spending(self, key: str, window: str) -> Spending:
        row = self._row(SPENDING, key=key, budget_window=window)
        return Spending(row.spent, row.held) if row else Spending()

    def spend(self, key: str, window: str, change: Spending, budget: int | None = None) -> bool:
        most = UNBOUND if budget is None else budget - change.spent - change.held
        return self._add(
            self._statements.spend,
            SPENDING,
            {"key": key, "budget_window": window},
            change._asdict(),
            fits=most >= 0,
            most=most,
        )

    def _add(
        self,
        update: Prepared,
        table: sa.Table,
        names: Mapping[str, str],
        change: Mapping[str, int],
        *,
        fits: bool = True,
        **room: int,
    ) -> bool:
        """Add ``change`` to the figures of a row, if there is ``room``. A row that is
        missing is made, if the change ``fits`` one of zeros."""
        if not any(change.values()):
            return True
        its = {f"its_{name}": value for name, value in names.items()}
        more = {f"more_{name}": figure for name, figure in change.items()}
        values = {**its, **more, **room}
        if update.count(self._connection, values):
            return True
        if not fits or min(change.values()) < 0:
            return False
        missing = self._row(table, **names) is None
        if missing and insert(self._connection, table, {**names, **change}):
            return True
        # Somebody may have been faster to make it.
        return update.count(self._connection, values) > 0

    # --- holds ------------------------------------------------------------------

    def open(self, hold: Hold, lease: float) -> None:
        id = hold.draft.request_id
        values = {
            **_row_of(hold),
            "its_request_id": id,
            "lease": _micro(lease),
            **self._time(),
        }
        if not is_written(self._connection, self._statements.open, values):
            raise Duplicate(id)

    def open_at_once(self, hold: Hold, lease: float) -> bool:
        most = UNBOUND if hold.budget is None else hold.budget - hold.counted
        now = self._time().get("now")
        row = self._at_once(*holding(_row_of(hold), _micro(lease), most, now))
        return row is not None

    def settle_at_once(self, entry: Entry) -> Entry | None:
        row = self._at_once(*settling(entry, self._time().get("now")))
        return None if row is None else entry._replace(settled_at=_datetime(row[0]))

    def _at_once(self, text: str, values: Mapping[str, Any]) -> Any:
        """The row that a statement gives, or ``None`` if it has done nothing."""
        connection = self._connection
        if connection.dialect.name != "postgresql" or connection.in_transaction():
            return None
        raw: Any = connection.connection.driver_connection
        return raw.at_once(text, values)

    def renew(self, draft: Entry, lease: float) -> Hold | None:
        values = {
            "its_request_id": draft.request_id,
            "new_draft": _packed(draft),
            "lease": _micro(lease),
            **self._time(),
        }
        if not self._statements.renew.count(self._connection, values):
            return None
        its = HOLDS.c.request_id == draft.request_id
        return _hold(*self._connection.execute(sa.select(*HELD).where(its)).one())

    def enlarge(self, request_id: str, amount: int, counted: int) -> None:
        enlarged = sa.update(HOLDS).where(HOLDS.c.request_id == request_id)
        self._connection.execute(enlarged.values(amount=amount, counted=counted))

    def take(self, request_id: str) -> Hold | None:
        values = {"its_request_id": request_id, **self._time()}
        row = self._statements.take.row(self._connection, values)
        if row is None:
            return None
        *hold, now = row
        self._read = int(now)
        return _hold(*hold)

    def take_lost(self, account: str | None) -> Hold | None:
        chosen = sa.select(HOLDS.c.request_id).where(*self._lost(account))
        found = self._connection.scalars(
            chosen.order_by(HOLDS.c.expires).limit(1).with_for_update(skip_locked=True),
            self._time(),
        ).one_or_none()
        return None if found is None else self.take(found)

    def has_lost(self, account: str) -> bool:
        chosen = sa.select(HOLDS.c.request_id).where(*self._lost(account)).limit(1)
        return self._connection.execute(chosen, self._time()).first() is not None

    def _lost(self, account: str | None) -> list[sa.ColumnElement[bool]]:
        over = HOLDS.c.expires <= self._statements.now
        return [over] if account is None else [over, HOLDS.c.account == account]

    # --- rows ---------------------------------------------------------------------

    def entry(self, request_id: str) -> tuple[Entry, str] | None:
        row = self._row(ENTRIES, request_id=request_id)
        return None if row is None else (_entry(row), row.budget_window)

    def write(self, entry: Entry, window: str) -> None:
        if not insert(self._connection, ENTRIES, {**_columns(entry), "budget_window": window}):
            raise Duplicate(entry.request_id)

    def rewrite(self, entry: Entry, outcome: str) -> bool:
        its = ENTRIES.c.request_id == entry.request_id, ENTRIES.c.outcome == outcome
        rewritten = sa.update(ENTRIES).where(*its).values(_columns(entry))
        return self._connection.execute(rewritten).rowcount > 0

    def top_up(self, reference: str) -> tuple[str, int] | None:
        row = self._row(TOP_UPS, reference=reference)
        return None if row is None else (row.account, row.amount)

    def book(self, reference: str, account: str, amount: int, at: datetime) -> None:
        names = {"reference": reference, "account": account}
        if not insert(
            self._connection, TOP_UPS, {**names, "amount": amount, "booked_at": _micro_of(at)}
        ):
            raise Duplicate(reference)

    def account_sums(self) -> Iterator[Sum]:
        parts = [_said(BALANCES.c.account, BALANCES.c[name]) for name in Balance._fields]
        parts += [
            _added(HOLDS.c.account, HOLDS.c.amount, "held"),
            _added(ENTRIES.c.account, ENTRIES.c.cost, "spent", ENTRIES.c.prepaid),
            _added(ENTRIES.c.account, ENTRIES.c.cost, "invoiced", ~ENTRIES.c.prepaid),
            _added(TOP_UPS.c.account, TOP_UPS.c.amount, "topped_up"),
        ]
        for account, name, is_said, total in self._connection.execute(sa.union_all(*parts)):
            yield Sum(account, name, is_said, int(total))

    def key_sums(self) -> Iterator[Sum]:
        def of(table: sa.Table) -> sa.ColumnElement[str]:
            return table.c.key + " " + table.c.budget_window

        parts = [_said(of(SPENDING), SPENDING.c[name]) for name in Spending._fields]
        parts += [
            _added(of(HOLDS), HOLDS.c.counted, "held", HOLDS.c.key.is_not(None)),
            _added(of(ENTRIES), ENTRIES.c.cost, "spent", ENTRIES.c.key.is_not(None)),
        ]
        for key, name, is_said, total in self._connection.execute(sa.union_all(*parts)):
            yield Sum(f"key {key}".rstrip(), name, is_said, int(total))

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


def _said(whose: sa.ColumnElement[str], figure: sa.Column[int]) -> Any:
    return sa.select(whose, sa.literal(figure.name), sa.true(), figure)


def _added(
    whose: sa.ColumnElement[str],
    figure: sa.Column[int],
    name: str,
    condition: sa.ColumnElement[bool] | None = None,
) -> Any:
    summed = sa.select(whose, sa.literal(name), sa.false(), sa.func.sum(figure)).group_by(whose)
    return summed if condition is None else summed.where(condition)


def _packed(draft: Entry) -> str:
    return json.encode({**draft._asdict(), "settled_at": None}).decode()


def _row_of(hold: Hold) -> dict[str, Any]:
    draft = hold.draft
    return {
        "request_id": draft.request_id,
        "account": draft.account,
        "key": draft.key,
        "amount": hold.amount,
        "counted": hold.counted,
        "budget_window": hold.window,
        "budget": hold.budget,
        "draft": _packed(draft),
    }


def _hold(packed: str, amount: int, counted: int, window: str, budget: int | None) -> Hold:
    """The hold in a row, also in one that a newer version of this package has written."""
    draft = json.decode(packed.encode())
    known = {name: draft[name] for name in Entry._fields if name in draft}
    return Hold(Entry(**known), amount, counted, window, budget)


def _columns(entry: Entry) -> dict[str, Any]:
    at = entry.settled_at
    assert at is not None
    return {**entry._asdict(), "settled_at": _micro_of(at), "day": at.date().isoformat()}


def _entry(row: Any) -> Entry:
    values = {name: getattr(row, name) for name in Entry._fields}
    return Entry(**{**values, "settled_at": _datetime(row.settled_at)})


def _datetime(micro: int) -> datetime:
    return datetime.fromtimestamp(micro // MICRO, UTC).replace(microsecond=micro % MICRO)


def _micro(seconds: float) -> int:
    return round(seconds * MICRO)


def _micro_of(at: datetime) -> int:
    whole = at.replace(microsecond=0)
    return int(whole.timestamp()) * MICRO + at.microsecond
