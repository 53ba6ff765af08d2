"""The arithmetic of token buckets: integers only, exact, and no clock of its own.

A level is counted in *units*: tokens times the nanoseconds of a minute. A bucket
of capacity C tokens a minute then refills by exactly C units a nanosecond, and
nothing is ever rounded. Times are nanoseconds of any clock that does not go back.
A full bucket equals none, so full ones need not be kept.
"""

from __future__ import annotations

from typing import NamedTuple

UNITS = 60 * 10**9
"""Units in a token."""


class Bucket(NamedTuple):
    """``level`` units of ``capacity`` tokens at the time ``at``; below zero it is in debt."""

    capacity: int
    level: int
    at: int


def full(capacity: int, now: int) -> Bucket:
    """A bucket that holds all of its ``capacity`` tokens."""
    return Bucket(capacity, capacity * UNITS, now)


def refill(bucket: Bucket, now: int) -> Bucket:
    """The bucket as it stands at ``now``."""
    capacity, level, at = bucket
    if now <= at:
        return bucket
    return Bucket(capacity, min(level + (now - at) * capacity, capacity * UNITS), now)


def resize(bucket: Bucket, capacity: int) -> Bucket:
    """The bucket under another limit: what no longer fits is lost."""
    return Bucket(capacity, min(bucket.level, capacity * UNITS), bucket.at)


def wait(bucket: Bucket, tokens: int) -> int | None:
    """Nanoseconds until ``tokens`` can be taken: 0 is now, ``None`` is never.

    It is the first whole nanosecond at which they are there. Never is the answer
    for more than the bucket can hold.
    """
    if tokens > bucket.capacity:
        return None
    missing = tokens * UNITS - bucket.level
    return -(-missing // bucket.capacity) if missing > 0 else 0


def take(bucket: Bucket, tokens: int) -> Bucket:
    """Take ``tokens``, into debt if they are not there: ask :func:`wait` before."""
    return Bucket(bucket.capacity, bucket.level - tokens * UNITS, bucket.at)


def give(bucket: Bucket, tokens: int) -> Bucket:
    """Put ``tokens`` back; what does not fit is lost. Fewer than none are taken."""
    level = bucket.level + tokens * UNITS
    return Bucket(bucket.capacity, min(level, bucket.capacity * UNITS), bucket.at)


def remaining(bucket: Bucket) -> int:
    """Whole tokens that can be taken now, never negative."""
    return max(0, bucket.level // UNITS)


def until_full(bucket: Bucket) -> int:
    """Nanoseconds until nothing is missing."""
    return wait(bucket, bucket.capacity) or 0


def is_full(bucket: Bucket, now: int) -> bool:
    """Whether nothing is missing at ``now``."""
    capacity, level, at = bucket
    return level + (now - at) * capacity >= capacity * UNITS
