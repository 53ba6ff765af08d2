"""One thread a process that looks after all its calls.

A call's own thread blocks on a provider or on a slow reader; somebody else must
renew its leases, keep its deadlines and notice that its caller has left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from ..per_process import PerProcess

log = logging.getLogger("oneai_middleware.relay")

INTERVAL = 0.25
"""Seconds between two looks."""


class Watched(Protocol):
    """A call under way."""

    def look(self) -> None:
        """See whether the call must be renewed or ended, and do so."""


class Watch:
    """Looks at every call four times a second, while there are any.

    The thread starts with the first call and ends when the last has been gone for
    a while; importing or mounting the gateway starts none.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._rounds = PerProcess(lambda: _Rounds(interval))

    def add(self, watched: Watched) -> None:
        """Look after ``watched`` from now on."""
        self._rounds().add(watched)

    def remove(self, watched: Watched) -> None:
        """Look no more."""
        self._rounds().remove(watched)

    def aside(self, job: Callable[[], None]) -> None:
        """Run ``job``, which may wait for a store, without keeping the watch waiting."""
        try:
            threading.Thread(target=job, name="oneai-aside", daemon=True).start()
        except RuntimeError:  # no more threads to be had
            job()

    def look(self) -> None:
        """Look at every call once, now; for tests that own the clock."""
        self._rounds().look()


class _Rounds:
    """The calls of this process and the thread that goes round them."""

    IDLE = 10.0

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._lock = threading.Lock()
        self._arrival = threading.Condition(self._lock)
        self._watched: dict[int, Watched] = {}
        self._thread: threading.Thread | None = None
        self._is_idle = False

    def add(self, watched: Watched) -> None:
        with self._lock:
            self._watched[id(watched)] = watched
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="oneai-watch", daemon=True)
                thread.start()
                self._thread = thread
            elif self._is_idle:
                self._arrival.notify()

    def remove(self, watched: Watched) -> None:
        with self._lock:
            self._watched.pop(id(watched), None)

    def look(self) -> None:
        with self._lock:
            everyone = list(self._watched.values())
        for watched in everyone:
            try:
                watched.look()
            except BaseException:  # one that ended this thread would end every lease
                log.exception("looking after a call failed")

    def _run(self) -> None:
        pause = threading.Event()
        while self._has_work():
            self.look()
            pause.wait(self._interval)

    def _has_work(self) -> bool:
        with self._lock:
            self._is_idle = True
            # A call that is gone before we look is one after which others may come.
            while not self._watched and self._arrival.wait(self.IDLE):
                pass
            self._is_idle = False
            if self._watched:
                return True
            self._thread = None
            return False
