"""What each kind of database needs: its driver, its limits of time, its beginnings."""

from __future__ import annotations

import functools
import random
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError, NoSuchModuleError

from ..errors import ConfigurationError
from .patience import ABANDONED, BUSY, PATIENCE, SILENCE, is_late
from .prepared import Prepared

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mariadb+pymysql",
    "mariadb": "mariadb+pymysql",
}
_EXTRAS = {"postgresql": "postgresql", "mysql": "mariadb", "mariadb": "mariadb"}


def read_url(given: str | sa.URL) -> sa.URL:
    """A database's address, with the driver that we use for its kind.

    :raises ConfigurationError: it is none.
    """
    try:
        url = sa.make_url(given)
        kind, _, driver = url.drivername.partition("+")
        known = _DRIVERS[kind]
    except (sa.exc.ArgumentError, KeyError, ValueError):
        raise ConfigurationError(
            "a database's address, such as 'sqlite:///oneai.db' or 'postgresql://user@host/name'"
        ) from None
    if driver and driver != known.partition("+")[2]:
        raise ConfigurationError(f"the driver for {kind} is {known}; write '{kind}://…'")
    if kind == "sqlite":
        return _file_url(url)
    if not url.database:
        raise ConfigurationError(
            f"the address names no database, as '{kind}://user@host/name' does"
        )
    return url.set(drivername=known)


def _file_url(url: sa.URL) -> sa.URL:
    """The same file from whatever folder the process goes to."""
    file = url.database
    if file in (None, "", ":memory:"):
        raise ConfigurationError("a SQLite file, such as 'sqlite:///oneai.db'")
    url = url.set(drivername="sqlite")
    return url if file.startswith("file:") else url.set(database=str(Path(file).absolute()))


def driver_of(url: sa.URL) -> Any:
    """The module of the driver for ``url``.

    :raises ConfigurationError: it cannot be imported.
    """
    try:
        return url.get_dialect().import_dbapi()
    except (NoSuchModuleError, ImportError) as error:
        kind = url.get_backend_name()
        raise ConfigurationError(
            f"the driver of {kind} is not installed: pip install "
            f"'oneai_middleware[{_EXTRAS.get(kind, 'sql')}]'"
        ) from error


class TooLate(Exception):
    """The transaction has taken so long that nothing more of it is begun."""


def make_engine(url: sa.URL, *, patient: bool = False) -> sa.Engine:
    """An engine; a ``patient`` one waits as long as it takes, and keeps no connection."""
    kind = url.get_backend_name()
    pool = {"poolclass": sa.NullPool} if patient else _POOL
    engine = sa.create_engine(url, **{**pool, **_OPTIONS[kind](url, patient)})
    if kind == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", functools.partial(_begin_sqlite, _busy(patient)))
    elif not patient:
        sa.event.listen(engine, "before_cursor_execute", _check_time)
    if kind == "postgresql":
        sa.event.listen(engine, "begin", _begin_postgresql)
        if not patient:
            sa.event.listen(engine, "do_connect", _connect_to_postgresql)
            sa.event.listen(engine, "checkout", _check_postgresql)
    return engine


def patience_of(kind: str) -> float:
    """Seconds in which a transaction has to get on."""
    return BUSY if kind == "sqlite" else PATIENCE


def _check_time(connection: sa.Connection, *_: Any) -> None:
    if is_late():
        if connection.in_transaction():
            connection.invalidate()  # to undo it politely would take another round trip
        raise TooLate


_POOL = {
    "pool_pre_ping": True,
    "pool_size": 16,
    "max_overflow": 9,
    "pool_timeout": PATIENCE,
}


def abandon(engine: sa.Engine) -> None:
    """Have done with the connections that a fork has copied into this process.

    A server must not be told that they are closed: the parent goes on with them.
    SQLite would take them for this process's own and share their locks, which it does
    not hold: what it writes would be lost. So they are closed before it opens others.
    """
    engine.dispose(close=engine.dialect.name == "sqlite")


def insert(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Write a row, unless there is one of its name; whether it was written."""
    statement = _insertion(connection.dialect.name, table, tuple(values))
    return is_written(connection, statement, values)


@functools.lru_cache(maxsize=64)
def _insertion(kind: str, table: sa.Table, names: tuple[str, ...]) -> Prepared:
    return Prepared(insertion(kind, table), *names)


def insertion(kind: str, table: sa.Table) -> Any:
    """A statement that writes no second row of the same name."""
    if kind == "postgresql":  # where an error ends the transaction
        return postgresql.insert(table).on_conflict_do_nothing()
    return sa.insert(table)


def is_written(connection: sa.Connection, statement: Prepared, values: Mapping[str, Any]) -> bool:
    """Run an :func:`insertion`; whether it wrote a row."""
    try:
        return statement.count(connection, values) > 0
    except (IntegrityError, sqlite3.IntegrityError):
        return False


def is_passing(error: Exception) -> bool:
    """Whether the database broke a transaction off only because another was in its way.
    ``error`` is the driver's."""
    state = getattr(error, "sqlstate", None)
    number = error.args[0] if error.args else None
    return state in ("40001", "40P01") or number in (1213, 1020)


# --- SQLite ---------------------------------------------------------------------


def _busy(patient: bool) -> float:
    return 60.0 if patient else BUSY


def _sqlite_options(url: sa.URL, patient: bool) -> dict[str, Any]:
    return {"connect_args": {"timeout": _busy(patient)}, "pool_pre_ping": False}


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(patience: float, connection: sa.Connection) -> None:
    raw: Any = connection.connection.driver_connection
    if raw.in_transaction:  # which we began for several at once
        return
    if connection.get_execution_options().get("oneai_reading"):
        raw.execute("BEGIN")
    else:
        begin_to_write(raw, patience)


def begin_to_write(connection: sqlite3.Connection, patience: float = BUSY) -> None:
    """Begin a transaction when nobody else writes to the file."""
    # One that reads first and then writes would find that others wrote meanwhile. And
    # while SQLite waits by itself, nothing else runs in a worker of gevent's.
    connection.execute("PRAGMA busy_timeout=0")
    end = time.monotonic() + patience
    try:
        while not _has_begun(connection, at_last=is_late() or time.monotonic() > end):
            time.sleep(random.uniform(0.0, 0.004))  # who came first is not overtaken for ever
    finally:
        connection.execute(f"PRAGMA busy_timeout={round(patience * 1000)}")


def _has_begun(connection: sqlite3.Connection, *, at_last: bool) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if at_last or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


# --- PostgreSQL -----------------------------------------------------------------


def _postgresql_options(url: sa.URL, patient: bool) -> dict[str, Any]:
    # The one that fits is to be named: waiting for a lock is a part of the statement.
    limits = {} if patient else {"lock_timeout": PATIENCE, "statement_timeout": PATIENCE + 0.05}
    # One that lost its client in mid-transaction would keep its locks for hours.
    limits["idle_in_transaction_session_timeout"] = ABANDONED
    words = [f"-c {name}={round(seconds * 1000)}" for name, seconds in limits.items()]
    # What a transaction reads must be what its updates meet.
    words.append(r"-c default_transaction_isolation=read\ committed")
    said = " ".join([str(url.query.get("options", "")), *words]).strip()
    # Transactions are begun below, not by the driver.
    connect = {"options": said, "connect_timeout": 10, "autocommit": True}
    return {"connect_args": connect, "pool_pre_ping": False}


def _connect_to_postgresql(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
    from .postgresql import ImpatientConnection

    return ImpatientConnection.connect(*arguments, **options)


def _check_postgresql(connection: Any, record: Any, proxy: Any) -> None:
    if not connection.is_alive():
        raise sa.exc.DisconnectionError


def _begin_postgresql(connection: sa.Connection) -> None:
    # A statement alone is a transaction anyway, and one round trip instead of three.
    if not connection.get_execution_options().get("oneai_reading"):
        connection.exec_driver_sql("BEGIN")


# --- MariaDB --------------------------------------------------------------------


def _mariadb_options(url: sa.URL, patient: bool) -> dict[str, Any]:
    settings = {
        "time_zone": "'+00:00'",  # elsewhere an hour comes twice where clocks are put back
        "sql_mode": "CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')",  # nothing is cut to fit
        "idle_transaction_timeout": ABANDONED,
    }
    connect: dict[str, Any] = {"charset": "utf8mb4"}
    if not patient:
        lock = max(1, round(PATIENCE))
        settings |= {"max_statement_time": PATIENCE, "innodb_lock_wait_timeout": lock}
        names = ("connect_timeout", "read_timeout", "write_timeout")
        connect |= dict.fromkeys(names, SILENCE)
    said = ", ".join(f"{name}={value}" for name, value in settings.items())
    return {
        "connect_args": {**connect, "init_command": f"SET {said}"},
        "isolation_level": "READ COMMITTED",
    }


_OPTIONS = {
    "sqlite": _sqlite_options,
    "postgresql": _postgresql_options,
    "mysql": _mariadb_options,
    "mariadb": _mariadb_options,
}
