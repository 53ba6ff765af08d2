"""One transaction on the project's database: begun to write, bounded in time.

It works inside a transaction of the project's too, as a part of it: then what is
done is undone with the rest, and the project's own time limits hold.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from django.db import Error, IntegrityError, OperationalError, connections, transaction
from django.db.models import QuerySet

from ...errors import StoreUnavailable
from ...transactions import BrokenOff, in_one
from .models import Hold

T = TypeVar("T")

PATIENCE = 0.8
"""Seconds that a statement or a lock is waited for."""

# For the transaction alone, or for a connection that gets back what it had: what it had,
# and what it has meanwhile.
_POSTGRESQL = f"SET LOCAL statement_timeout = {PATIENCE * 1000:.0f}"
_WAITS = {
    "sqlite": ("PRAGMA busy_timeout", "PRAGMA busy_timeout = %d", (PATIENCE * 1000,)),
    "mysql": (
        "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout",
        "SET innodb_lock_wait_timeout = %d, lock_wait_timeout = %d",
        (1, 1),
    ),
}

# A table or a column that is not there: PostgreSQL, MySQL, SQLite.
_MISSING = {"42P01", "42703", 1146, 1054, "SQLITE_ERROR"}
# Broken off for another's sake: a deadlock, or rows that somebody else was faster to change.
_PASSING = {"40001", "40P01", 1213, 1020}


@contextlib.contextmanager
def transaction_on(alias: str, *, reading: bool = False) -> Iterator[Any]:
    """The connection ``alias`` in a transaction: committed at the end, undone if
    anything is raised. One that is only ``reading`` waits for nobody who writes: it is
    a transaction where it is part of the project's own, or where its time limit is one's.

    :raises StoreUnavailable: the database cannot be used now, or its tables are
        missing or of another version.
    :raises BrokenOff: it undid the transaction in favour of another.
    """
    connection = connections[alias]
    nested = connection.in_atomic_block
    with named_errors(connection, nested=nested), contextlib.ExitStack() as stack:
        if not nested:
            _see_to(connection)
            stack.enter_context(_patience(connection))
        if connection.vendor == "sqlite" and not nested and not reading:
            _begin_to_write(connection, stack)
        elif connection.vendor == "postgresql" or not reading:
            stack.enter_context(transaction.atomic(using=alias))
        if connection.vendor == "postgresql" and not nested:
            _execute(connection, _POSTGRESQL)
        yield connection


def run_on(alias: str, act: Callable[[], T]) -> T:
    """Do ``act`` in a :func:`transaction_on`, and again if that was broken off."""
    return in_one(lambda: transaction_on(alias), lambda _: act())


def insert(rows: QuerySet[Any], values: Mapping[str, Any]) -> bool:
    """Write a row, unless there is one of its name; whether it was written."""
    try:
        with transaction.atomic(using=rows.db):
            rows.create(**values)
    except IntegrityError:
        return False
    return True


@contextlib.contextmanager
def named_errors(connection: Any, *, nested: bool) -> Iterator[None]:
    """Name what goes wrong in the words of the driver, without the password.

    :raises StoreUnavailable: as :func:`transaction_on`.
    """
    try:
        yield
    except Error as error:
        codes, cause = _codes(error), error.__cause__ or error
        words = " ".join(str(cause).split())[:300]
        if password := connection.settings_dict["PASSWORD"]:
            words = words.replace(password, "***")
        detail = f"{connection.vendor}: {type(cause).__name__}: {words}"
        if codes & _MISSING:
            detail += "; are its tables there, and of this version? Run `manage.py migrate`"
        # A part of the project's own transaction is not begun again alone.
        kind = BrokenOff if codes & _PASSING and not nested else StoreUnavailable
        raise kind(
            "The service cannot check your account at the moment. Try again shortly.",
            detail=detail,
            retry_after=1,
        ) from error


def _codes(error: Error) -> set[Any]:
    """What the driver calls the error: by a name of its own, and as its first argument."""
    cause = error.__cause__
    names = ("sqlstate", "pgcode", "sqlite_errorname")
    return {getattr(cause, name, None) for name in names} | {*getattr(cause, "args", ())[:1]}


def _see_to(connection: Any) -> None:
    """Have done with a connection that broke: the transaction after it gets another."""
    if connection.connection is None or not connection.errors_occurred:
        return
    if connection.is_usable():
        connection.errors_occurred = False
    else:
        connection.close()


@contextlib.contextmanager
def _patience(connection: Any) -> Iterator[None]:
    if connection.vendor not in _WAITS:
        yield
        return
    ask, change, patient = _WAITS[connection.vendor]
    before = _execute(connection, ask)
    _execute(connection, change % patient)
    try:
        yield
    finally:
        with contextlib.suppress(Error):  # a connection that broke has no settings
            _execute(connection, change % before)


def _begin_to_write(connection: Any, stack: contextlib.ExitStack) -> None:
    """Begin a transaction, for ``stack`` to end, when nobody else writes to SQLite's file.

    One that reads first and then writes would find that others wrote meanwhile. SQLite
    asks ever less often the longer it waits, so it waits here a little at a time: who
    came first is not overtaken for ever, and a worker of gevent's is not held up.
    """
    _execute(connection, "PRAGMA busy_timeout = 20")
    end = time.monotonic() + 2 * PATIENCE  # it waits for nothing else
    while not _has_begun(connection, stack, at_last=time.monotonic() > end):
        time.sleep(random.uniform(0.0, 0.004))
    _execute(connection, f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")


def _has_begun(connection: Any, stack: contextlib.ExitStack, *, at_last: bool) -> bool:
    try:
        with contextlib.ExitStack() as begun:
            begun.enter_context(transaction.atomic(using=connection.alias))
            _execute(connection, f"DELETE FROM {Hold._meta.db_table} WHERE 0")
            stack.push(begun.pop_all())
    except OperationalError as error:
        if at_last or "SQLITE_BUSY" not in _codes(error):
            raise
        return False
    return True


def _execute(connection: Any, statement: str) -> Any:
    """The first row of what the statement gives, if it gives any."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None
