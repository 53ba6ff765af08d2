"""Limits counted in this process: the default, and exact with one worker."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Self

from ..accounts import Limits
from ..errors import ConfigurationError, RateLimitExceeded
from ..per_process import PerProcess
from .base import Claim, Grant, LimitStatus, RateLimiter
from .token_bucket import (
    Bucket,
    full,
    give,
    is_full,
    refill,
    remaining,
    resize,
    take,
    until_full,
    wait,
)

SECOND = 10**9
"""Nanoseconds in a second."""

NEVER = math.inf
"""The wait for more than a limit can ever allow."""


class MemoryRateLimiter(RateLimiter):
    """Token buckets and slots in this process's memory.

    ``lease`` is in seconds; ``clock`` answers nanoseconds and never goes back. A
    forked child starts with full buckets. Memory is kept only for subjects whose
    buckets are not full or whose calls are running.
    """

    def __init__(
        self, *, lease: float = 30.0, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._lease = round(lease * SECOND)
        self._clock = clock
        self._state = PerProcess(_State)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is not None:
            raise ConfigurationError(f"rate_limiter: {cls.__name__} is not configured by a URL")
        return cls(lease=settings["lease"])

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        state = self._state()
        with state.lock:
            now = self._clock()
            state.close_expired(now)
            state.forget_full(now, at_most=len(claims) + 1)
            subjects = [state.look(claim, now) for claim in claims]
            _refuse_if_short(subjects, tokens)
            for subject in subjects:
                subject.take(tokens)
                state.subjects[subject.name] = subject
            grant = Grant(state.new_id(), account, tuple(claims), tokens, _figures(subjects))
            state.open[grant.id] = (now + self._lease, grant)
        return grant

    def renew(self, grant: Grant) -> None:
        state = self._state()
        with state.lock:
            now = self._clock()
            state.close_expired(now)
            if grant.id in state.open:
                state.open[grant.id] = (now + self._lease, grant)
                state.open.move_to_end(grant.id)

    def settle(self, grant: Grant, tokens: int) -> None:
        self._close(grant, requests=0, tokens=grant.tokens - tokens)

    def cancel(self, grant: Grant) -> None:
        self._close(grant, requests=1, tokens=grant.tokens)

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        state = self._state()
        with state.lock:
            now = self._clock()
            return _figures([state.look(claim, now) for claim in claims])

    def _close(self, grant: Grant, *, requests: int, tokens: int) -> None:
        """Free the slots and give back; a grant that is not open is closed already."""
        state = self._state()
        with state.lock:
            now = self._clock()
            state.close_expired(now)
            if state.open.pop(grant.id, None) is not None:
                for claim in grant.claims:
                    state.subjects[claim.subject].give_back(requests, tokens, now)


class _State:
    """What one process knows. The lock is held over every use.

    ``open`` is ordered by expiry, since all leases are equally long and a renewed
    one goes to the end.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.subjects: OrderedDict[str, _Subject] = OrderedDict()
        self.open: OrderedDict[str, tuple[int, Grant]] = OrderedDict()
        self._pid = os.getpid()
        self._ids = count(1)

    def new_id(self) -> str:
        return f"{self._pid}-{next(self._ids)}"

    def look(self, claim: Claim, now: int) -> _Subject:
        """The subject as it stands at ``now``; one never seen is not kept yet."""
        subject = self.subjects.get(claim.subject) or _Subject(claim.subject)
        subject.refill(claim.limits, now)
        return subject

    def close_expired(self, now: int) -> None:
        """Forget grants whose lease is over: the slots come back, the tokens do not."""
        while self.open:
            expiry, grant = next(iter(self.open.values()))
            if expiry > now:
                return
            del self.open[grant.id]
            for claim in grant.claims:
                self.subjects[claim.subject].running -= 1

    def forget_full(self, now: int, *, at_most: int) -> None:
        """Look at the next few subjects in turn and drop those that equal new ones.

        Looking at more than a call can add keeps the turn going round.
        """
        for _ in range(min(at_most, len(self.subjects))):
            name, subject = self.subjects.popitem(last=False)
            if not subject.is_like_new(now):
                self.subjects[name] = subject


class _Subject:
    """The buckets of one subject and how many of its calls are running.

    There is no bucket where there is no limit.
    """

    __slots__ = ("limits", "name", "requests", "running", "tokens")

    def __init__(self, name: str) -> None:
        self.name = name
        self.limits = Limits()
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0

    def refill(self, limits: Limits, now: int) -> None:
        self.limits = limits
        self.requests = _refilled(self.requests, limits.rpm, now)
        self.tokens = _refilled(self.tokens, limits.tpm, now)

    def waits(self, tokens: int) -> Iterator[tuple[str, float]]:
        """The limits that have no room now, and for how many nanoseconds not."""
        if self.requests and (ns := wait(self.requests, 1)) != 0:
            yield "rpm", NEVER if ns is None else ns
        if self.tokens and (ns := wait(self.tokens, tokens)) != 0:
            yield "tpm", NEVER if ns is None else ns
        slots = self.limits.concurrent
        if slots is not None and self.running >= slots:
            # When a call will end cannot be known; in a second it pays to ask again.
            yield "concurrent", SECOND if slots else NEVER

    def take(self, tokens: int) -> None:
        self.running += 1
        self.requests = self.requests and take(self.requests, 1)
        self.tokens = self.tokens and take(self.tokens, tokens)

    def give_back(self, requests: int, tokens: int, now: int) -> None:
        """A call has ended; tokens below zero are taken, into debt if need be."""
        self.running -= 1
        if self.requests and requests:
            self.requests = give(refill(self.requests, now), requests)
        if self.tokens and tokens:
            self.tokens = give(refill(self.tokens, now), tokens)

    def is_like_new(self, now: int) -> bool:
        return not (
            self.running
            or (self.requests and not is_full(self.requests, now))
            or (self.tokens and not is_full(self.tokens, now))
        )


def _refilled(bucket: Bucket | None, capacity: int | None, now: int) -> Bucket | None:
    if capacity is None:
        return None
    if bucket is None:
        return full(capacity, now)
    bucket = refill(bucket, now)
    return bucket if bucket.capacity == capacity else resize(bucket, capacity)


def _figures(subjects: Sequence[_Subject]) -> LimitStatus:
    return LimitStatus(
        *_tightest([subject.requests for subject in subjects if subject.requests]),
        *_tightest([subject.tokens for subject in subjects if subject.tokens]),
    )


def _tightest(buckets: Sequence[Bucket]) -> tuple[int | None, int, float]:
    """Limit, what remains and seconds to full, of the bucket with the least share left."""
    if not buckets:
        return None, 0, 0.0
    bucket = min(buckets, key=_share_left) if len(buckets) > 1 else buckets[0]
    return bucket.capacity, remaining(bucket), until_full(bucket) / SECOND


def _share_left(bucket: Bucket) -> tuple[float, int]:
    return bucket.level / (bucket.capacity or 1), bucket.capacity


def _refuse_if_short(subjects: Sequence[_Subject], tokens: int) -> None:
    waits = [(s, *short) for s in subjects for short in s.waits(tokens)]
    if not waits:
        return
    subject, limit, ns = max(waits, key=lambda short: short[2])
    number = getattr(subject.limits, limit)
    message, code = _wording(limit, number, ns / SECOND, tokens)
    raise RateLimitExceeded(
        message,
        subject=subject.name,
        limit=limit,
        figures=_figures(subjects),
        code=code,
        retry_after=None if ns == NEVER else ns / SECOND,
        retryable=False if ns == NEVER else None,
    )


def _wording(limit: str, number: int, seconds: float, tokens: int) -> tuple[str, str | None]:
    """The message and the code of a refusal, for a caller who reads it once."""
    if limit == "concurrent":
        return (
            f"Concurrency limit reached (limit {number} requests at once). "
            "Try again when one of them has ended."
        ), "concurrency_limit_exceeded"
    name = "requests per minute" if limit == "rpm" else "tokens per minute"
    if seconds == NEVER:
        needed = 1 if limit == "rpm" else tokens
        return (
            f"Request too large for {name} (limit {number}): it may need {needed}. "
            "Shorten the prompt or lower max_tokens."
        ), "request_exceeds_limit"
    return (
        f"Rate limit reached for {name} (limit {number}). Try again in {math.ceil(seconds)}s."
    ), None
