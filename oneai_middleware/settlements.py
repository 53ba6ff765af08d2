"""Calls that have ended and that their ledger could not settle yet."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from .errors import APIError, OneAIError, store_errors
from .ledgers.base import Entry, Ledger
from .per_process import PerProcess

log = logging.getLogger("oneai_middleware.admission")

PAUSE = 1.0
"""Seconds between two tries."""
PATIENCE = 24 * 3600.0
"""Seconds after which an entry is given up, with a line in the log that has its cost."""


class Settlements:
    """Settles calls, at once or when the ledger can again be reached.

    An answer has been given and is to be paid for, though a database may be away for
    minutes. What is outstanding lives in this process: should that die as well, the sweep
    writes what the last checkpoint knew. ``clock`` is monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        scope: Callable[[], AbstractContextManager[object]],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger = ledger
        self._scope = scope
        self._clock = clock
        self._pause = pause
        self._outstanding = PerProcess(_Outstanding)

    def settle(self, entry: Entry) -> int:
        """Settle the entry now, or as soon as may be; what it costs, as far as is known."""
        try:
            with store_errors("ledger"):
                return self._ledger.settle(entry).cost
        except OneAIError as error:
            if self._outstanding().add(entry, self._clock()):
                self._see_to_it(error)
            return entry.cost

    def retry(self) -> int:
        """Try each outstanding entry once more, until the ledger fails; how many are left."""
        outstanding = self._outstanding()
        for entry, since in outstanding.entries():
            try:
                with store_errors("ledger"), self._scope():
                    self._ledger.settle(entry)
            except OneAIError:
                if self._clock() - since < PATIENCE:
                    outstanding.postpone(entry)  # it may be this one alone that fails
                    break
                log.error("%s: given up unsettled: %d nano-dollars", entry.request_id, entry.cost)
            outstanding.remove(entry)
        return outstanding.count()

    def _see_to_it(self, error: OneAIError) -> None:
        cause = error.detail if isinstance(error, APIError) else error
        log.error("calls cannot be settled and will be later: %s", cause)
        atexit.register(self.retry)  # a worker that is stopped in peace tries once more
        threading.Thread(target=self._run, name="oneai-settle", daemon=True).start()

    def _run(self) -> None:
        while self._outstanding().is_needed():
            self._pause(PAUSE)
            self.retry()
        atexit.unregister(self.retry)


class _Outstanding:
    """The entries of one process, oldest first, and whether a thread sees to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[Entry, float]] = {}
        self._is_seen_to = False

    def add(self, entry: Entry, now: float) -> bool:
        """Whether nobody sees to the entries yet, so that somebody must from now on."""
        with self._lock:
            self._entries[entry.request_id] = entry, now
            is_first, self._is_seen_to = not self._is_seen_to, True
            return is_first

    def entries(self) -> list[tuple[Entry, float]]:
        with self._lock:
            return list(self._entries.values())

    def remove(self, entry: Entry) -> None:
        with self._lock:
            self._entries.pop(entry.request_id, None)

    def postpone(self, entry: Entry) -> None:
        with self._lock:
            if entry.request_id in self._entries:
                self._entries[entry.request_id] = self._entries.pop(entry.request_id)

    def count(self) -> int:
        return len(self._entries)

    def is_needed(self) -> bool:
        """Whether there is still something to see to; if not, the thread is done."""
        with self._lock:
            self._is_seen_to = bool(self._entries)
        if not self._is_seen_to:
            log.warning("all calls are settled")
        return self._is_seen_to
