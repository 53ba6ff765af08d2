"""The rate limiter family: what a plug-in author implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from ..accounts import Limits
from ..announcements import Announcements
from ..errors import ConfigurationError


class Claim(NamedTuple):
    """A subject (``"account:alice"``, ``"key:k1"``) and the limits it is under; those that
    are not to be ``enforced`` are only looked at."""

    subject: str
    limits: Limits
    enforced: bool = True


UNLIMITED = Limits()


class LimitStatus(NamedTuple):
    """What is left, for the x-ratelimit headers.

    Limits are per minute and ``None`` when unlimited; resets are seconds until
    the bucket is full again. Of several claims the tightest is shown.
    """

    limit_requests: int | None = None
    remaining_requests: int = 0
    reset_requests: float = 0.0
    limit_tokens: int | None = None
    remaining_tokens: int = 0
    reset_tokens: float = 0.0


class Grant(NamedTuple):
    """What the limiter gave: one request, ``tokens`` tokens and a slot of each claim."""

    id: str
    account: str
    claims: tuple[Claim, ...]
    tokens: int
    status: LimitStatus = LimitStatus()


def limited(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims that have a limit; nothing need be counted for the others.

    :raises ValueError: two are of one subject.
    """
    if len(claims) == 1 and claims[0].limits != UNLIMITED:
        return (claims[0],)
    some = tuple([claim for claim in claims if claim.limits != UNLIMITED])
    if len(some) > 1 and len({claim.subject for claim in some}) < len(some):
        raise ValueError("two claims are of one subject")
    return some


class RateLimiter:
    """Requests a minute, tokens a minute and calls at once, as token buckets.

    A bucket holds the per-minute number and refills evenly: a full one may be
    spent at once, so any one minute sees at most twice the number, and the long
    run exactly the number. Slots are leases: one that is not renewed for
    ``lease`` seconds comes back by itself, so a killed worker frees what it held.
    """

    one_process = False
    """Whether it counts what this process does alone, so that several workers would
    admit several times as much."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        """A limiter as the settings describe it; ``url`` where the setting is one.

        :raises ConfigurationError: naming the setting and the fix.
        """
        if url is not None:
            raise ConfigurationError(f"rate_limiter: {cls.__name__} is not configured by a URL")
        return cls()

    def announcements(self) -> Announcements | None:
        """A way for all processes that share this limiter to tell each other what has
        changed; ``None`` where there is none."""
        return None

    def counts(self) -> Mapping[str, int]:
        """What it has counted of this process so far, by name, for whoever runs the service.
        One that wraps another adds its own."""
        return {}

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        """Take one request, ``tokens`` tokens and one slot from every claim; no two are of
        one subject.

        All claims are granted, or nothing is consumed.

        :raises RateLimitExceeded: with the limit that is furthest away, the true
            wait in seconds and the figures for the headers. A call larger than a
            whole bucket is refused for good (``code="request_exceeds_limit"``).
        :raises StoreUnavailable: when the limiter cannot decide.
        """
        raise NotImplementedError

    def renew(self, grant: Grant) -> None:
        """Prolong the slots of a grant by one lease. Called every third of a lease."""
        raise NotImplementedError

    def settle(self, grant: Grant, tokens: int) -> None:
        """The call is over and took ``tokens``: correct the buckets, free the slots.

        The difference goes either way; a bucket may go into debt. The request
        stays counted. Idempotent, and after :meth:`cancel` it does nothing.
        """
        raise NotImplementedError

    def cancel(self, grant: Grant) -> None:
        """The call never was: give request, tokens and slots back. Idempotent."""
        raise NotImplementedError

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        """What is left, without taking any."""
        raise NotImplementedError
