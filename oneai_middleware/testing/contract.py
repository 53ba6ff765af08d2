"""What every contract stands on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

THREADS = 8
LEASE = 30.0
"""The lease that contracts ask for, in seconds."""

NAMES = [
    *("alice", "Alice", "alice ", " alice", "àlice", "a\u0300lice", "ａlice", "alice\n", "😀"),
    *("'", '"', "`", "\\", "%", "_", "/", "--", "NULL", "0", "00", "'; DROP TABLE oneai_keys; --"),
    *("a" * 189, "a" * 190, "😀" * 190),
]
"""Names of which no two are the same, though some databases take some for the same."""


class Contract:
    """What the contracts share: time that may be moved."""

    def advance(self, seconds: float) -> Any:
        """Let time pass for the part under test. Override it where that can be done."""
        return NotImplemented

    def pass_time(self, seconds: float) -> None:
        """Advance, or skip the test where time cannot be moved."""
        if self.advance(seconds) is NotImplemented:
            pytest.skip("the clock of this part cannot be moved")


def in_threads(action: Callable[[], T], times: int) -> list[T]:
    """Run ``action`` so often from several threads that start together; what it gave."""
    barrier = threading.Barrier(THREADS)

    def work(share: int) -> list[T]:
        barrier.wait(timeout=60)
        return [action() for _ in range(share)]

    shares = [len(range(start, times, THREADS)) for start in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [result for results in pool.map(work, shares) for result in results]
