"""The arithmetic of token buckets: integers only, exact, and no clock of its own.

A level is counted in *units*: tokens times the nanoseconds of a minute. A bucket
of capacity C tokens a minute then refills by exactly C units a nanosecond, and
nothing is ever rounded. Below zero a level is in debt. A full bucket equals none,
so full ones need not be kept.
"""

from __future__ import annotations

UNITS = 60 * 10**9
"""Units in a token."""
GRAIN = 1_000
"""Units that a bucket of 1 token a minute gains in a microsecond."""


def refilled(level: int, capacity: int, elapsed: int) -> int:
    """The level after ``elapsed`` nanoseconds; a clock that goes back changes nothing."""
    if elapsed <= 0:
        return level
    level += elapsed * capacity
    brim = capacity * UNITS
    return level if level < brim else brim


def resized(level: int, capacity: int, new: int) -> int:
    """The level under another limit: the same share of it, so that nobody gains by a
    limit that is changed to and fro. Rounded down to what a microsecond would bring, which is
    as finely as Redis counts."""
    if capacity == 0:
        return level or new * UNITS
    return level * new // (capacity * GRAIN) * GRAIN


def wait(level: int, capacity: int, tokens: int) -> int | None:
    """Nanoseconds until ``tokens`` can be taken: 0 is now, ``None`` is never.

    It is the first whole nanosecond at which they are there. Never is the answer
    for more than the bucket can hold.
    """
    if tokens > capacity:
        return None
    missing = tokens * UNITS - level
    return -(-missing // capacity) if missing > 0 else 0


def given(level: int, capacity: int, tokens: int) -> int:
    """The level with ``tokens`` put back; what does not fit is lost. Fewer than none
    are taken, into debt if they are not there: ask :func:`wait` before."""
    return min(level + tokens * UNITS, capacity * UNITS)


def remaining(level: int) -> int:
    """Whole tokens that can be taken now, never negative."""
    return level // UNITS if level > 0 else 0


def until_full(level: int, capacity: int) -> int:
    """Nanoseconds until nothing is missing."""
    return -((level - capacity * UNITS) // capacity) if capacity else 0
