"""Databases that are down, silent, locked or exhausted: known soon, and nothing half-done."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from oneai_middleware.database.engine import Database
from oneai_middleware.database.tables import BALANCES
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import draft, hold

SOON = 4.0
"""Seconds in which a caller is told that the database does not answer: two are promised,
and a machine may have other things to do."""

on_a_server = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
on_any = pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"], indirect=True)


@contextmanager
def refused_soon(soon: float = SOON) -> Iterator[Any]:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as refused:
        yield refused
    assert time.monotonic() - began < soon
    assert refused.value.status == 503
    assert refused.value.headers()[0] == ("Retry-After", "1")


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another session has changed alice's row and not said yet whether that holds."""
    with database.transaction() as connection:
        connection.execute(sa.update(BALANCES).values(held=BALANCES.c.held))
        yield


@pytest.fixture
def ledger(empty_database: Database) -> SQLLedger:
    """One in which alice owns 100."""
    ledger = SQLLedger(empty_database)
    ledger.top_up("alice", 100, "r1")
    return ledger


# --- silent -----------------------------------------------------------------------


@on_a_server
def test_a_server_that_falls_silent_is_given_up_soon_by_everyone_and_asked_again(
    ledger: SQLLedger, proxied: Database, proxy: Any
) -> None:
    seen = SQLLedger(proxied)
    assert seen.balance("alice").available == 100
    proxy.silent = True

    def ask(number: int) -> None:
        with refused_soon(2 * SOON):
            hold(seen, draft(f"c{number}"), 10, 60)

    callers = 30  # more than there are connections
    with ThreadPoolExecutor(callers) as pool:
        assert len(list(pool.map(ask, range(callers)))) == callers
    proxy.silent = False
    assert hold(seen, draft("a"), 10, 60) == 60
    assert ledger.balance("alice") == Balance(available=40, held=60, topped_up=100)


@on_a_server
def test_what_a_silent_server_was_told_before_is_done_whole_or_not_at_all(
    ledger: SQLLedger, proxied: Database, proxy: Any
) -> None:
    SQLLedger(proxied).balance("alice")

    def fall_silent(*_: Any) -> None:
        proxy.silent = True

    sa.event.listen(proxied.engine, "after_cursor_execute", fall_silent)
    with refused_soon():
        hold(SQLLedger(proxied), draft("a"), 10, 600)  # more than one statement's worth
    proxy.cut()
    assert ledger.audit() == []
    assert hold(ledger, draft("a"), 10, 60) == 60


# --- slow -------------------------------------------------------------------------


@on_a_server
@pytest.mark.parametrize("delay", [0.35, 0.6])
def test_a_server_whose_every_word_is_late_is_given_up_and_nothing_is_half_done(
    ledger: SQLLedger, proxied: Database, proxy: Any, delay: float
) -> None:
    seen = SQLLedger(proxied)
    seen.balance("alice")
    proxy.delay = delay
    with refused_soon() as refused:
        hold(seen, draft("a", key="k1"), 10, 60, budget=100)
    assert refused.value.detail == f"{proxied.kind}: it answers too slowly"
    proxy.delay = 0.0
    assert ledger.balance("alice") == Balance(available=100, topped_up=100)
    assert ledger.audit() == []
    assert hold(seen, draft("a", key="k1"), 10, 60, budget=60) == 60


# --- down -------------------------------------------------------------------------


@on_a_server
def test_a_server_that_was_restarted_between_two_calls_is_connected_to_anew(
    ledger: SQLLedger, proxied: Database, proxy: Any
) -> None:
    seen = SQLLedger(proxied)
    with ThreadPoolExecutor(4) as pool:
        assert {b.available for b in pool.map(lambda _: seen.balance("alice"), range(8))} == {100}
        proxy.cut()
        assert {b.available for b in pool.map(lambda _: seen.balance("alice"), range(8))} == {100}


@on_a_server
def test_a_transaction_that_loses_its_connection_is_undone(
    ledger: SQLLedger, proxied: Database, proxy: Any
) -> None:
    with refused_soon(), proxied.transaction() as connection:
        connection.execute(sa.update(BALANCES).values(available=0))
        proxy.cut()
        connection.execute(sa.update(BALANCES).values(available=1))
    assert ledger.balance("alice").available == 100


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_server_that_is_down_is_named_with_the_cause_and_without_the_password(kind: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        database = Database(f"{kind}://shop:geheim@127.0.0.1:{port}/shop")
        with refused_soon() as refused:
            SQLLedger(database).balance("alice")
    assert refused.value.detail.startswith(f"{kind}: OperationalError: ")
    assert "refused" in refused.value.detail
    assert "geheim" not in refused.value.detail
    assert "SELECT" not in refused.value.detail


def test_a_password_that_the_driver_repeats_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any, **options: Any) -> None:
        raise psycopg.OperationalError(f"no {options['password']!r} for you")

    monkeypatch.setattr(psycopg.Connection, "connect", connect)
    database = Database("postgresql://shop:gehe%20im@127.0.0.1:1/shop")
    with refused_soon() as refused:
        SQLLedger(database).balance("alice")
    assert refused.value.detail == "postgresql: OperationalError: no '***' for you"


def test_a_file_that_cannot_be_opened_is_named_with_the_cause(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/no/such/folder/oneai.db")
    with refused_soon() as refused:
        SQLLedger(database).balance("alice")
    assert refused.value.detail == "sqlite: OperationalError: unable to open database file"


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Any, connect: Any) -> None:
    file = tmp_path / "oneai.db"
    file.write_bytes(b"an invoice" * 1_000)
    with refused_soon() as refused:
        SQLLedger(connect(f"sqlite:///{file}")).top_up("alice", 1, "r1")
    assert refused.value.detail == "sqlite: DatabaseError: file is not a database"
    assert file.read_bytes() == b"an invoice" * 1_000


# --- locked -----------------------------------------------------------------------


@on_any
def test_a_hold_does_not_wait_long_for_a_lock_and_is_not_half_done(
    ledger: SQLLedger, empty_database: Database
) -> None:
    before = ledger.balance("alice")
    with locked(empty_database), refused_soon() as refused:
        hold(ledger, draft("a"), 10, 60)
    words = {"sqlite": "locked", "postgresql": "lock timeout", "mariadb": "interrupted"}
    assert words[empty_database.kind] in refused.value.detail
    assert "alice" not in refused.value.detail
    assert ledger.balance("alice") == before
    assert hold(ledger, draft("a"), 10, 60) == 60


@pytest.mark.parametrize(
    ("mode", "begin", "callers"),
    [("DELETE", "EXCLUSIVE", 1), ("WAL", "IMMEDIATE", 1), ("WAL", "IMMEDIATE", 8)],
)
def test_a_new_file_that_somebody_else_has_locked_is_not_waited_for(
    tmp_path: Any, connect: Any, mode: str, begin: str, callers: int
) -> None:
    file = tmp_path / "oneai.db"
    seen = SQLLedger(connect(f"sqlite:///{file}"))

    def ask(number: int) -> None:
        with refused_soon() as refused:
            hold(seen, draft(f"c{number}"), 10, 60)
        words = ("database is locked", "somebody else is upgrading")
        assert any(word in refused.value.detail for word in words)

    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute(f"PRAGMA journal_mode={mode}")
        other.execute(f"BEGIN {begin}")
        with ThreadPoolExecutor(callers) as pool:
            assert len(list(pool.map(ask, range(callers)))) == callers
        other.execute("ROLLBACK")
    assert seen.top_up("alice", 100, "r1")
    assert seen.audit() == []


@on_any
def test_looking_waits_for_no_lock(ledger: SQLLedger, empty_database: Database) -> None:
    with locked(empty_database):
        assert ledger.balance("alice").available == 100
        assert list(ledger.usage("alice")) == []


@on_any
def test_a_settlement_is_waited_for_no_longer_than_a_hold(
    ledger: SQLLedger, empty_database: Database
) -> None:
    hold(ledger, draft("a"), 10, 60)
    with locked(empty_database), refused_soon():
        ledger.settle(draft("a", cost=25))
    assert ledger.balance("alice") == Balance(available=40, held=60, topped_up=100)
    assert ledger.settle(draft("a", cost=25)).cost == 25


# --- patient --------------------------------------------------------------------

LOOKS = ("usage", "entries")
LOCKS = {
    "postgresql": ("LOCK TABLE oneai_entries IN ACCESS EXCLUSIVE MODE", "ROLLBACK"),
    "mariadb": ("LOCK TABLES oneai_entries WRITE", "UNLOCK TABLES"),
}


@pytest.mark.parametrize("database", LOCKS, indirect=True)
def test_who_has_time_may_look_for_longer_than_a_caller_waits(
    ledger: SQLLedger, empty_database: Database, connect: Any
) -> None:
    ledger.settle(draft("a", prepaid=False, cost=5))
    patient = ledger.patient()
    looks = [lambda books, what=what: list(getattr(books, what)("alice")) for what in LOOKS]
    lock, unlock = LOCKS[empty_database.kind]
    with ThreadPoolExecutor() as pool, connect(empty_database.url).engine.connect() as other:
        other.exec_driver_sql(lock)
        waiting = [pool.submit(look, patient) for look in looks]
        for look in looks:  # together these wait for longer than any of theirs may
            with pytest.raises(StoreUnavailable):
                look(ledger)
        assert not any(future.done() for future in waiting)
        other.exec_driver_sql(unlock)
        assert [len(future.result()) for future in waiting] == [1, 1]


# --- exhausted --------------------------------------------------------------------


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_pool_with_no_connection_to_spare_is_not_waited_for(
    ledger: SQLLedger, empty_database: Database
) -> None:
    with ExitStack() as taken:
        for _ in range(25):
            taken.enter_context(empty_database.reading())
        with refused_soon() as refused:
            ledger.balance("alice")
    assert "QueuePool limit" in refused.value.detail
    assert ledger.balance("alice").available == 100
