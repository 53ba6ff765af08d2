"""What must not cross a fork: made anew in every process, on first use.

Locks held at a fork stay locked in the child for ever, and pools and counters
would be shared with the parent. Hooks that run at a fork are skipped by some
servers, so the process id is compared on every use; that takes some 100 ns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value of this process: call it to get what ``make()`` made here."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}

    def made(self) -> T | None:
        """What was made here, if anybody has asked for it."""
        return self._made.get(os.getpid())

    def __call__(self) -> T:
        pid = os.getpid()
        try:
            return self._made[pid]
        except KeyError:
            # No lock: one could be held at the fork. Of several threads that
            # come first at once, setdefault lets exactly one value win.
            made = self._made.setdefault(pid, self._make())
            self._made = {pid: made}
            return made
