"""A connection to PostgreSQL that gives up on a server that has gone silent.

The server's own timeouts end what takes it too long. From a server that has vanished,
or from behind a proxy that is stuck, nothing would ever be heard.
"""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.types.numeric import Int8Dumper

from .patience import SILENCE

T = TypeVar("T")

QUIET = 1.0
"""Seconds without a word after which a server is asked whether it is still there."""


class ImpatientConnection(psycopg.Connection[Any]):
    """Breaks off after :data:`~.patience.SILENCE`, also while it connects."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._heard = time.monotonic()
        # By its size a number would be of this type or that, and each statement be prepared
        # anew for all that may come together.
        self.adapters.register_dumper(int, Int8Dumper)

    def is_alive(self) -> bool:
        """Whether the server is still there, at the beginning of a transaction. It is asked
        only if it has said nothing for a while, or something that is not an answer."""
        if time.monotonic() - self._heard < QUIET and not self._has_something_to_read():
            return True
        try:
            self.execute("")
        except psycopg.Error:
            return False
        return True

    def at_once(self, text: str, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The row that a statement gives, which is a transaction of its own; ``None`` if it
        gives none, or breaks a rule of its tables and so does nothing."""
        try:
            row: tuple[Any, ...] | None = self.execute(text, values).fetchone()
        except psycopg.IntegrityError:
            return None
        return row

    def _has_something_to_read(self) -> bool:
        if not hasattr(select, "poll"):  # as in Windows
            return True
        looking = select.poll()
        looking.register(self.fileno(), select.POLLIN)
        return bool(looking.poll(0))

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Wait for ``gen``.

        :raises psycopg.OperationalError: nothing was heard.
        """
        try:
            result = super().wait(_heard(gen), *args, **options)
        except Unheard:
            self.pgconn.finish()  # whatever comes now would answer an older question
            raise
        self._heard = time.monotonic()
        return result

    @classmethod
    def _connect_gen(cls, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        # Private to psycopg, whose own timeout is two seconds at least.
        return _heard(super()._connect_gen(*args, **options))


class Unheard(psycopg.OperationalError):
    """The server has said nothing for too long."""


def _heard(steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """The same steps, as long as something comes of them.

    :raises Unheard: nothing has come for too long.
    """
    heard, late = time.monotonic(), False
    try:
        wanted = next(steps)
        while True:
            # psycopg looks in from time to time, with something false if nothing is new.
            ready = yield wanted
            if ready:
                heard, late = time.monotonic(), False
            elif late:
                raise Unheard(f"the server has said nothing for {SILENCE:g} s")
            else:
                # Once more: it may have been this process that had no time.
                late = time.monotonic() - heard > SILENCE - 0.1
            wanted = steps.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result
