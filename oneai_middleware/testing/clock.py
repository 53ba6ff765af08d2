"""A clock that a test moves."""

from __future__ import annotations


class FakeClock:
    """Time that moves when told to: call it for seconds, ``ns`` for nanoseconds."""

    def __init__(self, start: float = 1_000.0) -> None:
        self._ns = round(start * 10**9)

    def __call__(self) -> float:
        return self._ns / 10**9

    def ns(self) -> int:
        """The time in whole nanoseconds."""
        return self._ns

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, to the nanosecond."""
        self._ns += round(seconds * 10**9)
