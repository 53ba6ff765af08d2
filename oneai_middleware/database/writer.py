"""The threads of a process write to a SQLite file in turn, and share their commits.

SQLite lets one at a time write, and who waits has to ask again and again. And each commit
waits for the disk, which takes longer than all that is done in it. So whoever comes while
another is at it goes on in the same transaction; the last one commits for all. Nobody is
told before how they fared, nor that they failed, since that may be due to what others did.
Each has a savepoint: who fails undoes only what they did.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from .kinds import begin_to_write
from .patience import ENDING, time_left

MOST = 64
"""How many share one commit, with those who fail: the first waits for the last."""


class Writer:
    """Lets one thread write at a time. ``connect`` gives a connection to write with."""

    def __init__(self, connect: Callable[[], sa.Connection]) -> None:
        self._connect = connect
        self._turn = threading.Lock()  # taken as long as it is somebody's
        self._line: deque[_Place] = deque()
        self._group: _Group | None = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A connection that is this thread's in here; committed at the end, undone if
        anything is raised.

        :raises sqlite3.OperationalError: others write for too long. If it was this one's
            turn before, it may be committed all the same.
        """
        group = self._entered()
        try:
            try:
                with group.joined() as connection:
                    yield connection
            finally:
                self._pass_on()
        except Exception:
            group.wait()
            raise
        group.wait()

    def _entered(self) -> _Group:
        """The group that goes on, or a new one, once it is this thread's turn."""
        self._take_turn()
        try:
            if self._group is None:
                self._group = _Group(self._connect())
            return self._group
        except BaseException:
            self._pass_on()
            raise

    def _take_turn(self) -> None:
        if self._turn.acquire(blocking=False):
            return
        place = _Place()
        self._line.append(place)
        if self._turn.acquire(blocking=False):  # it was given back meanwhile
            self._line.remove(place)
            return
        try:
            is_mine = place.wait(time_left())
        except BaseException:  # a greenlet that is killed
            if not self._has_left(place):
                self._pass_on()
            raise
        if not is_mine and self._has_left(place):
            raise sqlite3.OperationalError("database is locked")

    def _has_left(self, place: _Place) -> bool:
        """Leave the line; false if it had come to be this one's turn."""
        try:
            self._line.remove(place)
        except ValueError:
            return False
        return True

    def _pass_on(self) -> None:
        """Let the next one go on in this transaction, or end it. Nothing is waited for in
        here: who is killed while they wait would leave the turn taken."""
        group = self._group
        if group is not None and group.has_room and self._called():
            return
        self._group = None
        try:
            if group is not None:
                group.end()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        while not self._called():
            self._turn.release()
            if not self._line or not self._turn.acquire(blocking=False):
                return  # nobody came meanwhile, or somebody has it

    def _called(self) -> bool:
        """Give the turn to the first in the line, if there is one."""
        try:
            place = self._line.popleft()
        except IndexError:
            return False
        place.call()
        return True


class _Place:
    """A place in the line."""

    def __init__(self) -> None:
        self._called = threading.Lock()
        self._called.acquire()

    def wait(self, seconds: float | None) -> bool:
        """Whether it was called in time."""
        return self._called.acquire(timeout=-1 if seconds is None else max(0.0, seconds))

    def call(self) -> None:
        """It is its turn."""
        self._called.release()


class _Group:
    """Those who share a transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        raw: Any = connection.connection.driver_connection
        self._raw: sqlite3.Connection = raw
        self._size = 0
        self._has_work = False
        self._error: sqlite3.Error | None = None
        self._ended = threading.Event()
        try:
            begin_to_write(self._raw)
        except BaseException:
            connection.close()
            raise

    @property
    def has_room(self) -> bool:
        """Whether another can join."""
        # A connection that is closed cannot be asked any more.
        return self._size < MOST and self._error is None and self._raw.in_transaction

    @contextlib.contextmanager
    def joined(self) -> Iterator[sa.Connection]:
        """One more writes in here. What they did is undone if anything is raised."""
        is_first, self._size = self._size == 0, self._size + 1
        if not is_first:
            self._raw.execute("SAVEPOINT one")
        try:
            yield self._connection
            if not is_first:
                self._raw.execute("RELEASE one")
        except BaseException as error:
            self._undo("ROLLBACK" if is_first else "ROLLBACK TO one", error)
            raise
        self._has_work = True

    def _undo(self, statement: str, cause: BaseException) -> None:
        try:
            self._raw.execute(statement)
        except sqlite3.Error as error:
            # SQLite has undone by itself all that there was, or SQLAlchemy has closed the
            # connection of who was stopped in the midst of a statement.
            cause = getattr(cause, "orig", cause)
            self._error = cause if isinstance(cause, sqlite3.Error) else error

    def end(self) -> None:
        """Commit for all. What goes wrong is everybody's: :meth:`wait` raises it."""
        try:
            if self._has_work and self._error is None:
                self._error = sqlite3.OperationalError("interrupted")  # unless it gets through
                self._raw.execute("COMMIT")
                self._error = None
        except sqlite3.Error as error:
            self._error = error
        finally:
            try:
                self._connection.close()
            finally:
                self._ended.set()

    def wait(self) -> None:
        """Wait until it is committed, and raise what another met with who did it.

        :raises sqlite3.OperationalError: it takes too long. Whether it will be committed,
            nobody knows.
        """
        left = time_left()
        if not self._ended.wait(None if left is None else left + ENDING):
            raise sqlite3.OperationalError("others do not end the transaction that they share")
        if self._error is not None:
            # One of their own for each thread, whose traceback becomes part of it.
            raise type(self._error)(*self._error.args)
