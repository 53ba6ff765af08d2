"""A connection to PostgreSQL that gives up on a server that has gone silent.

The server's own timeouts end what takes it too long. From a server that has vanished,
or from behind a proxy that is stuck, nothing would ever be heard.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

from .patience import SILENCE

T = TypeVar("T")


class ImpatientConnection(psycopg.Connection[Any]):
    """Breaks off after :data:`~.patience.SILENCE`, also while it connects."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Wait for ``gen``.

        :raises psycopg.OperationalError: nothing was heard.
        """
        try:
            return super().wait(_heard(gen), *args, **options)
        except Unheard:
            self.pgconn.finish()  # whatever comes now would answer an older question
            raise

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
