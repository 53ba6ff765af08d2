"""Threads that write to one SQLite file: in turn, with one commit, and each for itself."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from oneai_middleware.database import writer
from oneai_middleware.database.engine import Database
from oneai_middleware.database.tables import KEYS, TOP_UPS
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import LEASE, FakeClock, draft, hold

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

Act = Callable[[sa.Connection], object]


@pytest.fixture
def commits(empty_database: Database) -> list[str]:
    """The commits so far."""
    said: list[str] = []

    def listen(connection: Any, *_: Any) -> None:
        connection.set_trace_callback(lambda text: said.append(text) if text == "COMMIT" else None)

    sa.event.listen(empty_database.engine, "checkout", listen)
    return said


def note(name: str) -> Act:
    row = {"reference": name, "account": "alice", "amount": 1, "booked_at": 0}
    return lambda connection: connection.execute(sa.insert(TOP_UPS).values(row))


def fail(connection: sa.Connection) -> None:
    note("never")(connection)
    raise ZeroDivisionError


def owe(connection: sa.Connection) -> None:
    """Do what can be found wrong at the commit only."""
    connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
    row = dict.fromkeys(("id", "digest", "account", "label", "hint"), "x")
    connection.execute(sa.insert(KEYS).values(row | {"revoked": False, "created_at": 0}))


def be_stopped(connection: sa.Connection) -> None:
    """Be stopped in the midst of a statement, at which SQLAlchemy closes the connection."""

    def stop(*_: Any) -> None:
        raise SystemExit

    sa.event.listen(connection, "after_cursor_execute", stop)
    note("never")(connection)


def fill(connection: sa.Connection) -> None:
    """Find no room in the file, at which SQLite undoes the whole transaction."""
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    note("x" * (free + 50) * size)(connection)  # what others deleted is room, too


@contextlib.contextmanager
def in_line(
    database: Database,
    eventually: Callable[[Callable[[], bool]], None],
    *doings: Callable[[], object],
) -> Iterator[list[Future[object]]]:
    """Do these on threads that wait, in this order, while one is at it in here."""
    waiting: list[Future[object]] = []
    with ThreadPoolExecutor(len(doings)) as pool, database.transaction():
        for do in doings:
            waiting.append(pool.submit(do))
            number = len(waiting)
            eventually(lambda number=number: len(database._writer()._line) == number)
        yield waiting


def at_once(
    database: Database, eventually: Callable[[Callable[[], bool]], None], *acts: Act
) -> AbstractContextManager[list[Future[object]]]:
    """Do these in transactions, each of them one."""
    return in_line(database, eventually, *(partial(database.run, act) for act in acts))


def noted(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.scalars(sa.select(TOP_UPS.c.reference).order_by("reference")))


def test_who_comes_while_another_writes_shares_its_commit(
    empty_database: Database, commits: list[str], eventually: Any
) -> None:
    with at_once(empty_database, eventually, *map(note, "abc")) as waiting:
        assert not any(act.done() for act in waiting)
    assert [act.exception() for act in waiting] == [None] * 3
    assert noted(empty_database) == ["a", "b", "c"]
    assert len(commits) == 1


@pytest.mark.parametrize("acts", [(fail, note("a")), (note("a"), fail), (fail, note("a"), fail)])
def test_who_fails_undoes_only_what_they_did(
    empty_database: Database, eventually: Any, acts: tuple[Act, ...]
) -> None:
    with at_once(empty_database, eventually, *acts) as waiting:
        pass
    failures = [isinstance(act.exception(), ZeroDivisionError) for act in waiting]
    assert failures == [act is fail for act in acts]
    assert noted(empty_database) == ["a"]


def test_a_first_one_who_fails_leaves_the_turn_to_the_next(
    empty_database: Database, eventually: Any
) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        at_once(empty_database, eventually, note("a")) as waiting,
    ):
        raise ZeroDivisionError
    assert waiting[0].exception() is None
    assert noted(empty_database) == ["a"]


@pytest.mark.parametrize("acts", [(note("a"), owe), (owe, note("a"))])
def test_a_commit_that_fails_is_nobodys_success(
    empty_database: Database, eventually: Any, acts: tuple[Act, ...]
) -> None:
    with (
        pytest.raises(StoreUnavailable, match="check your account"),
        at_once(empty_database, eventually, *acts) as waiting,
    ):
        pass
    for act in waiting:
        error = act.exception()
        assert isinstance(error, StoreUnavailable)
        assert error.detail == "sqlite: IntegrityError: FOREIGN KEY constraint failed"
    assert noted(empty_database) == []
    empty_database.run(note("b"))
    assert noted(empty_database) == ["b"]


def test_who_fails_is_told_so_when_that_is_certain_which_others_have_done(
    empty_database: Database, eventually: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(writer, "MOST", 4)
    ledger = SQLLedger(empty_database)
    pay = partial(ledger.top_up, "alice", 5, "a payment that is announced twice")
    with (
        pytest.raises(StoreUnavailable),
        in_line(empty_database, eventually, pay, pay, partial(empty_database.run, owe)) as waiting,
    ):
        pass
    # And not that the reference was booked with another amount, which it never was.
    assert [type(do.exception()) for do in waiting] == [StoreUnavailable] * 3
    assert pay() is True


@pytest.mark.parametrize("is_lost", [False, True])
def test_one_who_hangs_is_not_waited_for_and_the_books_are_right_whatever_comes_of_it(
    empty_database: Database, eventually: Any, clock: FakeClock, is_lost: bool
) -> None:
    ledger = SQLLedger(empty_database, clock=clock)
    ledger.top_up("alice", 100, "r1")
    hold(ledger, draft("a"), 10, 20)
    settle = partial(ledger.settle, draft("a", cost=15))
    pay = partial(ledger.top_up, "alice", 7, "r2")

    def hang(connection: sa.Connection) -> None:
        for do in others:
            assert isinstance(do.exception(timeout=10), StoreUnavailable)
        if is_lost:
            owe(connection)

    doings = (settle, pay, partial(hold, ledger, draft("b"), 10, 60))
    with (
        pytest.raises(StoreUnavailable, match="check your account"),
        in_line(empty_database, eventually, *doings, partial(empty_database.run, hang)) as waiting,
    ):
        *others, hanging = waiting
    assert isinstance(hanging.exception(), StoreUnavailable) == is_lost
    assert ledger.balance("alice") == (
        Balance(available=80, held=20, topped_up=100)
        if is_lost
        else Balance(available=32, held=60, spent=15, topped_up=107)
    )
    assert ledger.audit() == []
    assert settle() == ledger.settle(draft("a", cost=15))
    assert pay() is is_lost
    clock.advance(LEASE)
    assert ledger.sweep() == (0 if is_lost else 1)
    assert ledger.balance("alice") == Balance(available=92, spent=15, topped_up=107)
    assert ledger.audit() == []


def test_what_undoes_the_work_of_all_is_named_to_all(
    empty_database: Database, connect: Callable[..., Database], eventually: Any
) -> None:
    database = connect(empty_database.url)  # whose connection has no room from then on
    with (
        pytest.raises(StoreUnavailable) as first,
        at_once(database, eventually, note("a"), fill) as waiting,
    ):
        pass
    for error in (first.value, *(act.exception() for act in waiting)):
        assert isinstance(error, StoreUnavailable)
        assert error.detail == "sqlite: OperationalError: database or disk is full"
    empty_database.run(note("b"))
    assert noted(empty_database) == ["b"]


def test_who_is_stopped_in_the_midst_of_a_statement_leaves_the_turn_to_the_next(
    empty_database: Database, eventually: Any
) -> None:
    with (
        pytest.raises(StoreUnavailable),
        at_once(empty_database, eventually, note("a"), be_stopped, note("b")) as waiting,
    ):
        pass
    assert [type(act.exception()) for act in waiting] == [
        StoreUnavailable,  # whose work went with the connection
        SystemExit,
        type(None),
    ]
    assert noted(empty_database) == ["b"]


@pytest.mark.parametrize(("point", "others"), [("COMMIT", StoreUnavailable), ("close", type(None))])
def test_who_is_stopped_while_they_commit_for_all_stops_nobody_else(
    empty_database: Database,
    eventually: Any,
    monkeypatch: Any,
    point: str,
    others: type[object],
) -> None:
    end = writer._Group.end

    def stopped(act: Callable[..., object]) -> Callable[..., None]:
        def be_stopped(*given: Any) -> None:
            act(*given)
            raise SystemExit

        return be_stopped

    def end_stopped(group: Any) -> None:
        if point == "COMMIT":
            group._raw = SimpleNamespace(execute=stopped(group._raw.execute))
        else:
            group._connection = SimpleNamespace(close=stopped(group._connection.close))
        end(group)

    with contextlib.ExitStack() as told:
        if others is StoreUnavailable:
            told.enter_context(pytest.raises(StoreUnavailable))
        with at_once(empty_database, eventually, note("a"), note("b")) as waiting:
            monkeypatch.setattr(writer._Group, "end", end_stopped)
    assert [type(act.exception()) for act in waiting] == [others, SystemExit]
    monkeypatch.undo()
    empty_database.run(note("c"))
    assert noted(empty_database) == ["a", "b", "c"]


def test_who_is_stopped_and_ends_the_transaction_meets_with_no_error_of_its_own(
    empty_database: Database, eventually: Any, monkeypatch: Any
) -> None:
    wait, number = writer._Place.wait, itertools.count()

    def stop(*given: Any) -> bool:
        is_mine = wait(*given)
        if next(number) == 1:
            raise SystemExit
        return is_mine

    monkeypatch.setattr(writer._Place, "wait", stop)
    with (
        pytest.raises(StoreUnavailable),
        at_once(empty_database, eventually, owe, note("a")) as waiting,
    ):
        pass
    assert [type(act.exception()) for act in waiting] == [StoreUnavailable, SystemExit]


def test_no_more_share_a_commit_than_the_first_can_wait_for(
    empty_database: Database, commits: list[str], eventually: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(writer, "MOST", 2)
    with at_once(empty_database, eventually, *map(note, "abc")):
        pass
    assert noted(empty_database) == ["a", "b", "c"]
    assert len(commits) == 2


def test_who_fails_counts_as_well_since_the_first_waits_for_them_too(
    empty_database: Database, commits: list[str], eventually: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(writer, "MOST", 2)
    with at_once(empty_database, eventually, fail, note("a")):
        pass
    assert noted(empty_database) == ["a"]
    assert len(commits) == 2


def test_who_is_stopped_when_it_is_their_turn_leaves_it_to_the_next(
    empty_database: Database, eventually: Any, monkeypatch: Any
) -> None:
    wait, stopped = writer._Place.wait, threading.Event()

    def stop(*given: Any) -> bool:
        is_mine = wait(*given)
        if not stopped.is_set():
            stopped.set()
            raise SystemExit  # as gevent's kill does
        return is_mine

    monkeypatch.setattr(writer._Place, "wait", stop)
    with at_once(empty_database, eventually, note("a"), note("b")) as waiting:
        pass
    assert isinstance(waiting[0].exception(), SystemExit)
    assert waiting[1].exception() is None
    assert noted(empty_database) == ["b"]


def test_the_turn_is_never_lost_however_many_give_up_or_are_stopped(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, number = writer._Place.wait, itertools.count()

    def stop(place: Any, seconds: float | None) -> bool:
        """Give up now and then: at once, or when it has become their turn."""
        match next(number) % 4:
            case 0:
                return wait(place, 0)
            case 1:
                wait(place, seconds)
                raise SystemExit
            case _:
                return wait(place, seconds)

    monkeypatch.setattr(writer._Place, "wait", stop)
    names = [f"{each:03}" for each in range(300)]
    with ThreadPoolExecutor(16) as pool:
        doing = {name: pool.submit(empty_database.run, note(name)) for name in names}
    done = [name for name, one in doing.items() if one.exception() is None]
    assert noted(empty_database) == done
    assert 0 < len(done) < len(names)
    monkeypatch.undo()
    empty_database.run(note("last"))
