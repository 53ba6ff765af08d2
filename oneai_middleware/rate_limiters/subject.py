"""One subject under its limits: what it has left, and why a call of it must wait."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ..accounts import Limits
from ..errors import RateLimitExceeded
from .base import Claim, LimitStatus
from .token_bucket import UNITS, given, refilled, remaining, resized, until_full
from .token_bucket import wait as wait_for

SECOND = 10**9
"""Nanoseconds in a second."""

NEVER = math.inf
"""The wait for more than a limit can ever allow."""

Bucket = tuple[int, int | None]
"""Level, and capacity or ``None`` where there is no limit."""


class Subject:
    """The levels of one subject's buckets and how many of its calls are running.

    ``requests`` and ``tokens`` are units, and mean nothing where there is no limit.
    Times are nanoseconds. There may be a million of these.
    """

    __slots__ = ("at", "limits", "name", "requests", "running", "tokens")

    def __init__(
        self, name: str, limits: Limits, at: int, requests: int, tokens: int, running: int = 0
    ) -> None:
        self.name = name
        self.limits = limits
        self.at = at
        self.requests = requests
        self.tokens = tokens
        self.running = running

    @classmethod
    def new(cls, claim: Claim, now: int) -> Subject:
        """One that nothing has been taken from."""
        rpm, tpm, _ = claim.limits
        return cls(claim.subject, claim.limits, now, (rpm or 0) * UNITS, (tpm or 0) * UNITS)

    def under(self, limits: Limits) -> Subject:
        """The same, as it stands under other limits."""
        requests = _changed(self.requests, self.limits.rpm, limits.rpm)
        tokens = _changed(self.tokens, self.limits.tpm, limits.tpm)
        return Subject(self.name, limits, self.at, requests, tokens, self.running)

    def refill(self, now: int) -> None:
        """See what has come in since."""
        elapsed = now - self.at
        if elapsed <= 0:
            return
        self.at = now
        rpm, tpm, _ = self.limits
        if rpm is not None:
            self.requests = refilled(self.requests, rpm, elapsed)
        if tpm is not None:
            self.tokens = refilled(self.tokens, tpm, elapsed)

    def has_room(self, tokens: int) -> bool:
        """Whether a call of so many tokens need not wait."""
        rpm, tpm, concurrent = self.limits
        return (
            (rpm is None or self.requests >= UNITS)
            and (tpm is None or self.tokens >= tokens * UNITS)
            and (concurrent is None or self.running < concurrent)
        )

    def waits(self, tokens: int) -> Iterator[tuple[str, float]]:
        """The limits that have no room now, and for how many nanoseconds not."""
        rpm, tpm, concurrent = self.limits
        if rpm is not None and (ns := wait_for(self.requests, rpm, 1)) != 0:
            yield "rpm", NEVER if ns is None else ns
        if tpm is not None and (ns := wait_for(self.tokens, tpm, tokens)) != 0:
            yield "tpm", NEVER if ns is None else ns
        if concurrent is not None and self.running >= concurrent:
            # When a call will end cannot be known; in a second it pays to ask again.
            yield "concurrent", SECOND if concurrent else NEVER

    def take(self, tokens: int) -> None:
        """A call begins: one request, its tokens and a slot."""
        self.running += 1
        self.requests -= UNITS
        self.tokens -= tokens * UNITS

    def give_back(self, requests: int, tokens: int, now: int) -> None:
        """A call has ended; tokens below zero are taken, into debt if need be."""
        self.running -= 1
        self.refill(now)
        rpm, tpm, _ = self.limits
        if rpm is not None:
            self.requests = given(self.requests, rpm, requests)
        if tpm is not None:
            self.tokens = given(self.tokens, tpm, tokens)

    def buckets(self) -> tuple[Bucket, Bucket]:
        """Those of its requests and its tokens, as they are now."""
        rpm, tpm, _ = self.limits
        return (self.requests, rpm), (self.tokens, tpm)

    def is_like_new(self, now: int) -> bool:
        """Whether it equals one that nothing has been taken from."""
        if self.running:
            return False
        rpm, tpm, _ = self.limits
        elapsed = now - self.at
        return (rpm is None or self.requests + elapsed * rpm >= rpm * UNITS) and (
            tpm is None or self.tokens + elapsed * tpm >= tpm * UNITS
        )


def figures(buckets: Sequence[tuple[Bucket, Bucket]]) -> LimitStatus:
    """What is left to a caller who is all the subjects that have these ``buckets``."""
    if len(buckets) == 1:
        [(requests, tokens)] = buckets
    else:
        requests = _tightest([requests for requests, _ in buckets])
        tokens = _tightest([tokens for _, tokens in buckets])
    return LimitStatus(*_shown(*requests), *_shown(*tokens))


def refuse_if_short(subjects: Sequence[Subject], tokens: int) -> None:
    """See that all subjects have room for a call of so many tokens.

    :raises RateLimitExceeded: one has not.
    """
    for subject in subjects:
        if not subject.has_room(tokens):
            break
    else:
        return
    waits = [(ns, s, limit) for s in subjects for limit, ns in s.waits(tokens)]
    ns, subject, limit = max(waits, key=lambda short: short[0])
    _refuse(subjects, subject, limit, ns, tokens)


def _refuse(
    subjects: Sequence[Subject], subject: Subject, limit: str, ns: float, tokens: int
) -> NoReturn:
    message, code = _wording(limit, getattr(subject.limits, limit), ns / SECOND, tokens)
    raise RateLimitExceeded(
        message,
        subject=subject.name,
        limit=limit,
        figures=figures([subject.buckets() for subject in subjects]),
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


def _changed(level: int, old: int | None, new: int | None) -> int:
    if old is None or new is None:
        return (new or 0) * UNITS
    return resized(level, old, new)


def _shown(level: int, capacity: int | None) -> tuple[int | None, int, float]:
    """Limit, what remains and seconds to full."""
    if capacity is None:
        return None, 0, 0.0
    return capacity, remaining(level), until_full(level, capacity) / SECOND


def _tightest(buckets: Sequence[Bucket]) -> Bucket:
    """The one with the least share left, of those that there are."""
    there = [(level, capacity) for level, capacity in buckets if capacity is not None]
    return min(there, key=_share_left) if there else (0, None)


def _share_left(bucket: tuple[int, int]) -> tuple[float, int]:
    level, capacity = bucket
    return level / (capacity or 1), capacity
