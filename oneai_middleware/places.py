"""How many calls run in this process, and whether there is room for another.

A WSGI server serves the host's own pages with the same threads.
"""

from __future__ import annotations

import os
import random
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .errors import GatewayOverloaded

HOST_THREADS = 2
"""Threads that are left to the host's own pages where nothing else is set."""


class Places:
    """The calls that run in this process, and room for more of them."""

    def __init__(self, most: int | None, drain_file: Path | None) -> None:
        self.count = 0
        self._most = most
        self._drain_file = drain_file
        self._drained = False
        self._lock = threading.Lock()

    @property
    def is_draining(self) -> bool:
        """Whether there is room for nobody any more."""
        if self._drained or self._drain_file is None:
            return self._drained
        return os.path.exists(self._drain_file)  # noqa: PTH110 - this one never raises

    def drain(self) -> None:
        """Make no more room."""
        self._drained = True

    def taken(self, threads: int | None) -> AbstractContextManager[None]:
        """One place, kept if the block succeeds. The server has ``threads``, if known.

        :raises GatewayOverloaded: there is none.
        """
        if self.is_draining:
            raise _full("This server takes no new calls at the moment. Try again shortly.")
        most = self._most or _spare(threads)
        with self._lock:
            if most is not None and self.count >= most:
                raise _full("The server is busy with other calls. Try again shortly.")
            self.count += 1
        return _Taken(self)

    def leave(self) -> None:
        """Give one place back."""
        with self._lock:
            self.count -= 1


class _Taken(AbstractContextManager[None]):
    """Gives the place back if the block fails."""

    __slots__ = ("_places",)

    def __init__(self, places: Places) -> None:
        self._places = places

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._places.leave()


def _spare(threads: int | None) -> int | None:
    """How many calls may run beside the host's own pages. A server of a single thread
    never has two requests at once, and nothing could be kept free."""
    return None if threads is None or threads < 2 else max(1, threads - HOST_THREADS)


def _full(message: str) -> GatewayOverloaded:
    # Spread out, so that those turned away together do not come back together.
    return GatewayOverloaded(message, retry_after=random.randint(1, 5))
