"""Limits shared out to processes that cannot ask each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..accounts import Limits
from .base import Claim, Grant, LimitStatus, RateLimiter


class DividedRateLimiter(RateLimiter):
    """A limiter of one process of ``processes``, each of which gives its share alone.

    Together they never give more than the whole, as long as every limit is at least as
    high as their number: a share is whole, and at least 1. A caller whose requests all
    reach the same process gets that share; one request larger than a share of the tokens
    is refused for good. What callers are told are the figures of the share.
    """

    def __init__(self, limiter: RateLimiter, processes: int) -> None:
        self.limiter = limiter
        """The one that counts the share."""
        self.processes = processes

    def counts(self) -> Mapping[str, int]:
        return self.limiter.counts()

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        return self.limiter.acquire(account, self._shares(claims), tokens)

    def renew(self, grant: Grant) -> None:
        self.limiter.renew(grant)

    def settle(self, grant: Grant, tokens: int) -> None:
        self.limiter.settle(grant, tokens)

    def cancel(self, grant: Grant) -> None:
        self.limiter.cancel(grant)

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        return self.limiter.status(account, self._shares(claims))

    def _shares(self, claims: Sequence[Claim]) -> list[Claim]:
        return [claim._replace(limits=self._share(claim.limits)) for claim in claims]

    def _share(self, limits: Limits) -> Limits:
        return Limits(*[limit and max(1, limit // self.processes) for limit in limits])
