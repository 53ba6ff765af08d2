"""One database: its engine in every process, its transactions, its version."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import alembic  # noqa: F401 - missed at start rather than at the first call
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StoreUnavailable
from ..per_process import PerProcess
from ..transactions import BrokenOff, in_one
from .kinds import (
    TooLate,
    abandon,
    driver_of,
    is_passing,
    make_engine,
    patience_of,
    read_url,
)
from .patience import PATIENCE, within
from .writer import Writer

T = TypeVar("T")


class Database:
    """The database at ``url``. One object serves all threads and survives a fork.

    Nothing is connected to before it is used. A SQLite file makes and upgrades its
    own tables; a server's are made by ``oneai db upgrade``.

    :raises ConfigurationError: ``url`` is no address, or its driver is not installed.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self.url = read_url(url)
        self._failures = SQLAlchemyError, driver_of(self.url).Error
        self.kind = self.url.get_backend_name()
        self._made: tuple[int, sa.Engine] | None = None
        self._making = PerProcess(threading.Lock)
        self._prepared = PerProcess(threading.Event)
        self._writer = PerProcess(lambda: Writer(lambda: self.engine.connect()))

    @property
    def engine(self) -> sa.Engine:
        """The engine of this process."""
        made = self._made
        if made is None or made[0] != os.getpid():
            with self._making():
                made = self._made
                if made is None or made[0] != os.getpid():
                    if made is not None:
                        abandon(made[1])
                    self._made = made = os.getpid(), make_engine(self.url)
        return made[1]

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that only looks; otherwise as :meth:`transaction`."""
        with self._errors(), within(PATIENCE):
            self._prepare()
            with self.engine.connect().execution_options(oneai_reading=True) as connection:
                yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A connection in a transaction, committed at the end, undone if anything is
        raised.

        :raises StoreUnavailable: the database cannot be used within two seconds, or
            its tables are missing or of another version. Where it falls silent at the
            end, all of it may be committed or nothing.
        :raises BrokenOff: it undid the transaction in favour of another.
        """
        with self._errors(), within(patience_of(self.kind)):
            self._prepare()
            with self._begun() as connection:
                yield connection

    @contextlib.contextmanager
    def _begun(self) -> Iterator[sa.Connection]:
        if self.kind == "sqlite":
            with self._writer().transaction() as connection:
                yield connection
        else:
            with self.engine.connect() as connection:
                yield connection
                connection.commit()

    def run(self, act: Callable[[sa.Connection], T]) -> T:
        """Do ``act`` in a :meth:`transaction`, and again if that was broken off."""
        return in_one(self.transaction, act)

    @contextlib.contextmanager
    def patiently_reading(self) -> Iterator[sa.Connection]:
        """The same as :meth:`reading`, for what may take long because nobody waits."""
        with self._errors(), _patient_engine(self.url) as engine:
            self._prepare()
            with engine.connect().execution_options(oneai_reading=True) as connection:
                yield connection

    def upgrade(self) -> str:
        """Bring the tables to this package's version, however long it takes; what was
        done, in words.

        :raises StoreUnavailable: the database cannot be used, or its tables are newer
            than this package.
        """
        with self._errors(), _patient_engine(self.url) as engine:
            return self._upgrade(engine, patience=60.0)

    def _upgrade(self, engine: sa.Engine, patience: float) -> str:
        from .schema import newest, upgrade, version, versions

        before = version(engine)
        if before == newest():
            return f"{self.kind}: is at version {before}"
        if before not in (None, *versions()):
            raise _unusable(
                f"the tables are of version {before}, which this package does not know: "
                "upgrade oneai_middleware"
            )
        if not upgrade(engine, patience):
            raise _unusable("somebody else is upgrading the tables; try again when they have")
        return f"{self.kind}: upgraded from {before or 'nothing'} to version {newest()}"

    def _prepare(self) -> None:
        """See to the tables, once in every process. No lock is held: where the database
        is down, one after the other would wait for it."""
        prepared = self._prepared()
        if prepared.is_set():
            return
        from .schema import newest, version

        if self.kind == "sqlite":
            self._upgrade(self.engine, PATIENCE)  # which a call may be waiting for
        elif (found := version(self.engine)) != newest():
            raise _unusable(
                f"{self.kind}: the tables are {f'of version {found}' if found else 'missing'}, "
                f"and not of version {newest()}: run `oneai db upgrade`"
            )
        prepared.set()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Name the cause in the words of the driver: without the statement and its
        values, and without the password."""
        try:
            yield
        except TooLate as error:
            raise _unusable(f"{self.kind}: it answers too slowly") from error
        except self._failures as error:
            cause = getattr(error, "orig", None) or error
            words = " ".join(str(cause).split())[:300]
            if self.url.password:
                words = words.replace(str(self.url.password), "***")
            kind = BrokenOff if is_passing(cause) else StoreUnavailable
            raise _unusable(f"{self.kind}: {type(cause).__name__}: {words}", kind) from error


def database_at(url: str) -> Database:
    """The database at ``url``: the same object for all parts that use it."""
    return _database(read_url(url))


@functools.lru_cache(maxsize=64)
def _database(url: sa.URL) -> Database:
    return Database(url)


def _unusable(detail: str, kind: type[StoreUnavailable] = StoreUnavailable) -> StoreUnavailable:
    return kind(
        "The service cannot check your account at the moment. Try again shortly.",
        detail=detail,
        retry_after=1,
    )


@contextlib.contextmanager
def _patient_engine(url: sa.URL) -> Iterator[sa.Engine]:
    engine = make_engine(url, patient=True)
    try:
        yield engine
    finally:
        engine.dispose()
